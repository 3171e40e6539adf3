"""Records that name what is not theirs: forged, damaged, or of another account."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import msgspec
import pytest

from aws.conftest import Bench
from pytest_ephemeral import providers
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.errors import ElsewhereError, TamperedRecordError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.cloudformation import stacks
from pytest_ephemeral.providers.cloudformation.tables import StackTemplate
from pytest_ephemeral.tables import Ready
from support.waiting import until

BODY = json.dumps({"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}})


@pytest.fixture
def environment(bench: Bench) -> Iterator[Environment]:
    """One in which nothing runs; it can still be destroyed by its honest record."""
    template = bench.template(command=None, ready=Ready())
    made = bench.lifecycle.bring_up(template).environment
    yield made
    providers.load("ec2").destroy(made)
    bench.ledger.remove(made.id)


def forge(environment: Environment, **handle: str) -> Environment:
    return msgspec.structs.replace(environment, handle={**environment.handle, **handle})


def states(bench: Bench, *ids: str) -> set[str]:
    found = bench.account.ec2.describe_instances(InstanceIds=list(ids))["Reservations"]
    return {one["State"]["Name"] for each in found for one in each["Instances"]}


def changed(bench: Bench) -> list[str]:
    """The calls since the last time that could have changed something."""
    return [one for one in bench.account.calls() if ":Describe" not in one and "sts:" not in one]


@pytest.mark.parametrize("protected", [False, True])
def test_a_strangers_instance_is_left_alone(
    bench: Bench, environment: Environment, protected: bool
) -> None:
    """A record that names an instance without our tags removes nothing, nor lifts a protection."""
    subnet = bench.account.subnets[0]
    ec2 = bench.account.ec2
    made = ec2.run_instances(ImageId=bench.account.base, SubnetId=subnet, MinCount=1, MaxCount=1)
    stranger = made["Instances"][0]["InstanceId"]
    ec2.modify_instance_attribute(InstanceId=stranger, DisableApiTermination={"Value": protected})
    own = environment.handle["instances"]
    bench.account.calls()
    try:
        for ids in (stranger, f"{own},{stranger}"):
            with pytest.raises(TamperedRecordError, match=stranger):
                providers.load("ec2").destroy(forge(environment, instances=ids))
        assert changed(bench) == []
        assert states(bench, stranger, own) <= {"pending", "running"}
    finally:
        ec2.modify_instance_attribute(InstanceId=stranger, DisableApiTermination={"Value": False})
        ec2.terminate_instances(InstanceIds=[stranger])


def test_another_environments_instance_is_left_alone(
    bench: Bench, environment: Environment
) -> None:
    """Its tags name another environment than the record does, though both are ours."""
    template = bench.template(command=None, ready=Ready())
    other = bench.lifecycle.bring_up(template).environment
    bench.account.calls()
    with pytest.raises(TamperedRecordError):
        providers.load("ec2").destroy(forge(environment, instances=other.handle["instances"]))
    assert changed(bench) == []
    bench.lifecycle.destroy(other)


def test_a_strangers_security_group_is_left_alone(bench: Bench, environment: Environment) -> None:
    """Nothing of the environment is removed either: its record can't be believed."""
    group = bench.account.ec2.create_security_group(GroupName="theirs", Description="theirs")
    id = group["GroupId"]
    bench.account.calls()
    try:
        with pytest.raises(TamperedRecordError, match=id):
            providers.load("ec2").destroy(forge(environment, group=id))
        assert changed(bench) == []
    finally:
        bench.account.ec2.delete_security_group(GroupId=id)  # it is still there


def requests(environment: Environment, bench: Bench) -> Iterator[dict[str, Any]]:
    """What someone may write in the place of a request."""
    bare = {"ImageId": bench.account.base, "MinCount": 1, "MaxCount": 1}
    yield bare
    yield {**bare, "ClientToken": "mine", "InstanceType": "m5.24xlarge", "SecurityGroupIds": []}


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_forged_request_launches_nothing(
    bench: Bench, environment: Environment, number: int
) -> None:
    """A request is sent again only if launching this environment could have written it."""
    texts = [*map(json.dumps, requests(environment, bench)), "no JSON", "[1]"]
    handle = {"region": environment.handle["region"], "request": texts[number]}
    unlaunched = msgspec.structs.replace(environment, id="web-zzzzzz", handle=handle)
    bench.account.calls()
    with pytest.raises(TamperedRecordError, match="request"):
        providers.load("ec2").destroy(unlaunched)
    assert changed(bench) == []


def test_reap_says_so_and_keeps_the_record(bench: Bench, environment: Environment) -> None:
    """What is expired by a forged record is reported, and both record and instance stay."""
    stranger = bench.account.ec2.run_instances(
        ImageId=bench.account.base, SubnetId=bench.account.subnets[0], MinCount=1, MaxCount=1
    )["Instances"][0]["InstanceId"]
    past = environment.created_at
    bench.ledger.change(
        environment.id, expires_at=past, handle={**environment.handle, "instances": stranger}
    )
    try:
        found = {one.id: one for one in reaper.reap(bench, dry_run=False)}  # type: ignore[arg-type]
        assert "tampered" in found[environment.id].error
        assert states(bench, stranger) <= {"pending", "running"}
        assert bench.ledger.get(environment.id)
    finally:
        bench.account.ec2.terminate_instances(InstanceIds=[stranger])


def test_a_strangers_stack_is_left_alone(bench: Bench) -> None:
    """A stack that is not tagged with the environment's id, or not called by it, stays."""
    template = StackTemplate(name="stack", file="stack.json", url="http://127.0.0.1", ready=Ready())
    (bench.folder / "stack.json").write_text(BODY)
    environment = bench.lifecycle.bring_up(template).environment
    client = boto3.client("cloudformation")
    theirs = client.create_stack(StackName="theirs", TemplateBody=BODY)["StackId"]
    bench.account.calls()
    for name in (theirs, "theirs"):
        with pytest.raises(TamperedRecordError, match="theirs"):
            providers.load("cloudformation").destroy(forge(environment, stack=name))
    assert changed(bench) == []
    assert stacks.look(client, theirs, older=0.0) is not None
    until(lambda: stacks.look(client, theirs, older=0.0)["StackStatus"] == "CREATE_COMPLETE")
    stacks.delete(client, theirs, "theirs")
    bench.lifecycle.destroy(environment)


def test_another_account_is_elsewhere(
    bench: Bench, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Credentials of another account: "not found" there does not mean that it is gone."""
    role = "arn:aws:iam::222233334444:role/other"
    keys = boto3.client("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
        patch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
        patch.setenv("AWS_SESSION_TOKEN", keys["SessionToken"])
        for ask in (providers.load("ec2").destroy, providers.load("ec2").status):
            with pytest.raises(ElsewhereError, match="222233334444"):
                ask(environment)
    assert states(bench, environment.handle["instances"]) <= {"pending", "running"}
