"""Stacks: their templates, their failures and their deletion."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import msgspec
import pytest

from aws.conftest import Bench
from pytest_ephemeral import labels, providers
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.errors import (
    ConfigurationError,
    DestroyError,
    EnvironmentGoneError,
    LaunchError,
    UnverifiedDestroyError,
)
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.cloudformation import stacks
from pytest_ephemeral.providers.cloudformation.tables import StackTemplate
from pytest_ephemeral.providers.ec2.tags import format_expiry, tags_of
from pytest_ephemeral.tables import Ready
from support.waiting import until

RESOURCES = {"Topic": {"Type": "AWS::SNS::Topic", "Properties": {"TopicName": "orders"}}}


def template(
    bench: Bench, *, resources: Any = RESOURCES, host: Any = "127.0.0.1", **keys: Any
) -> StackTemplate:
    """Return a template of a stack, by default without instances."""
    body = {"Resources": resources, "Outputs": {"Host": {"Value": host}}}
    if names := keys.get("parameters"):
        body["Parameters"] = {name: {"Type": "String"} for name in names if name == "Given"}
    (bench.folder / "stack.json").write_text(json.dumps(body))
    return StackTemplate(
        **{"name": "stack", "file": "stack.json", "url": "http://{output:Host}", **keys}
    )


def instance(bench: Bench) -> StackTemplate:
    """Return a template of a stack with an instance that runs nothing."""
    properties = {
        "ImageId": bench.account.base,
        "InstanceType": "t3.small",
        "SubnetId": bench.account.subnets[0],
    }
    return template(
        bench, resources={"One": {"Type": "AWS::EC2::Instance", "Properties": properties}}
    )


def parameters(bench: Bench, given: Mapping[str, str], **keys: Any) -> StackTemplate:
    """Return a template of a stack whose host is a parameter."""
    return template(bench, host={"Ref": "Given"}, parameters=dict(given), **keys)


def bucket(name: str) -> dict[str, Any]:
    return {"Type": "AWS::S3::Bucket", "Properties": {"BucketName": name}}


def up(bench: Bench, wanted: StackTemplate) -> Environment:
    """Bring up a stack without a readiness probe, as it may have no server."""
    return bench.lifecycle.bring_up(msgspec.structs.replace(wanted, ready=Ready())).environment


def stack_of(environment: Environment) -> Any:
    client = boto3.client("cloudformation")
    (found,) = client.describe_stacks(StackName=environment.handle["stack"])["Stacks"]
    return found


def stacks_left() -> list[str]:
    return [
        one["StackName"]
        for one in boto3.client("cloudformation").describe_stacks()["Stacks"]
        if one["StackStatus"] != "DELETE_COMPLETE"
    ]


def test_the_urls_of_a_stack_come_from_its_outputs(bench: Bench) -> None:
    """A URL without a port has the port of its scheme."""
    provider = providers.load("cloudformation")
    environment = up(bench, template(bench, further={"admin": "https://{output:Host}:9443/"}))
    assert environment.url == "http://127.0.0.1:80/"
    assert environment.url_for("admin") == "https://127.0.0.1:9443/"
    assert provider.status(environment).state == "running"
    bench.lifecycle.destroy(environment)
    assert provider.status(environment).state == "gone"


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"file": "none.yaml"}, ConfigurationError, "can't be read"),
        ({"parameters": {"Imag": "x"}}, ConfigurationError, "no parameter 'Imag'"),
        ({"url": "http://{output:Hots}"}, LaunchError, "Did you mean 'Host'"),
    ],
)
def test_invalid_stack_settings_are_named(bench: Bench, keys: Any, error: Any, said: str) -> None:
    """The file, the parameter or the output does not exist. No record remains."""
    with pytest.raises(error, match=said):
        bench.lifecycle.bring_up(template(bench, **keys))
    assert bench.ledger.entries() == []


def test_a_stack_has_the_labels_as_tags(bench: Bench) -> None:
    """The stack and its resources have the id, owner and expiry from the beginning."""
    environment = up(bench, instance(bench))
    ec2 = bench.account.ec2
    filters = [{"Name": f"tag:{labels.ID}", "Values": [environment.id]}]
    (found,) = ec2.describe_instances(Filters=filters)["Reservations"]
    said = {name: value for name, value in environment.labels.items() if value}
    assert tags_of(found["Instances"][0]).items() >= said.items()
    stack = stack_of(environment)
    assert tags_of(stack).items() >= said.items()
    assert stack["TimeoutInMinutes"] == 120
    bench.lifecycle.destroy(environment)


def test_the_log_of_a_stack_without_instances_is_its_events(bench: Bench) -> None:
    """A stack without a console is not taken for gone. After destroy, its log is an error."""
    environment = up(bench, template(bench))
    provider = providers.load("cloudformation")
    mark = provider.log_mark(environment)
    assert "AWS::CloudFormation::Stack CREATE_COMPLETE" in provider.logs(environment)
    assert provider.logs(environment, since=mark) == ""
    assert list(provider.log_files(environment)) == ["stack"]
    assert provider.status(environment).state == "running"
    assert "$HOST" not in provider.hint(environment)
    assert "outputs in its URL" in provider.hint(environment)
    bench.lifecycle.destroy(environment)
    with pytest.raises(EnvironmentGoneError):
        provider.logs(environment)


def test_the_log_of_a_stack_includes_its_log_groups(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These are the groups among its resources, unless access is denied, and no others."""
    monkeypatch.setattr("pytest_ephemeral.providers.cloudformation.log_groups.FRESH", 0.0)
    group = {"Type": "AWS::Logs::LogGroup", "Properties": {"LogGroupName": "/shop/web"}}
    environment = up(bench, template(bench, resources={**RESOURCES, "Group": group}))
    provider, logs = providers.load("cloudformation"), boto3.client("logs")
    logs.create_log_group(logGroupName="/theirs")
    for name in ("/shop/web", "/theirs"):
        logs.create_log_stream(logGroupName=name, logStreamName="one")
    assert list(provider.log_files(environment)) == ["stack"]

    def write(*lines: str) -> None:
        now = int(datetime.now(UTC).timestamp() * 1000)
        found = [{"timestamp": now, "message": line} for line in lines]
        for name in ("/shop/web", "/theirs"):
            logs.put_log_events(logGroupName=name, logStreamName="one", logEvents=found)

    write("first\n", "second")
    mark = provider.log_mark(environment)
    write("third")
    assert provider.log_files(environment)["shop-web"] == "first\nsecond\nthird\n"
    assert provider.logs(environment, since=mark) == "shop-web | third\n"
    bench.account.fault("FilterLogEvents", "AccessDeniedException", times=9)
    assert list(provider.log_files(environment)) == ["stack"]
    logs.delete_log_group(logGroupName="/theirs")
    bench.lifecycle.destroy(environment)


def test_a_stack_gets_the_images_of_its_region(bench: Bench) -> None:
    """``{image:…}`` is the AMI's id; in another region, it is the id of the copy there."""
    bench.keys = {"copy_to": ["eu-west-1"]}
    image = bench.bake()
    ami = boto3.client("ec2", region_name="eu-west-1").describe_images(Owners=["self"])["Images"]
    for region, wanted in (("us-east-1", image.reference), ("eu-west-1", ami[0]["ImageId"])):
        environment = up(bench, parameters(bench, {"Given": "{image:app}"}, region=region))
        assert environment.url == f"http://{wanted}:80/"
        bench.lifecycle.destroy(environment)
    with pytest.raises(LaunchError, match="not copied to eu-north-1"):
        up(bench, parameters(bench, {"Given": "{image:app}"}, region="eu-north-1"))


def test_a_stack_failure_names_the_causing_event(bench: Bench) -> None:
    """Resources that were only cancelled are not named. The stack is deleted."""
    bench.account.tell("failing", Topic="orders already exists in another stack")
    wanted = template(bench, resources={**RESOURCES, "Queue": {"Type": "AWS::SQS::Queue"}})
    with pytest.raises(LaunchError, match="already exists in another stack") as caught:
        bench.lifecycle.bring_up(wanted)
    assert "Topic (AWS::SNS::Topic)" in str(caught.value)
    assert "cancelled" not in str(caught.value)
    assert stacks_left() == []
    assert bench.ledger.entries() == []


def test_a_cloudformation_refusal_is_reported_in_one_line(bench: Bench) -> None:
    """No stack and no record remains."""
    resources = {"X": {"Type": "AWS::Nope::Thing"}}
    with pytest.raises(LaunchError, match="Unrecognized resource types") as caught:
        bench.lifecycle.bring_up(template(bench, resources=resources))
    assert len(str(caught.value).splitlines()) == 1
    assert (stacks_left(), bench.ledger.entries()) == ([], [])


def test_a_lost_response_creates_no_second_stack(bench: Bench) -> None:
    """The retried call has the same token, and returns the first stack."""
    bench.account.fault("CreateStack", kind="lost")
    environment = up(bench, template(bench))
    assert stacks_left() == [stacks.name_of(environment.id)]
    bench.lifecycle.destroy(environment)


def test_throttled_polling_fails_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls are throttled during creation and deletion, while boto3's own retries are off."""
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    bench.account.fault("DescribeStacks", "Throttling", times=3)
    environment = up(bench, template(bench))
    bench.account.fault("DescribeStacks", "Throttling", times=3, after=1)
    bench.lifecycle.destroy(environment)
    assert stacks_left() == []


def test_a_nonempty_bucket_is_named(bench: Bench) -> None:
    """The stack and its record remain. Once the bucket is empty, destroy removes both."""
    environment = up(bench, template(bench, resources={"Data": bucket("full")}))
    s3 = boto3.client("s3")
    s3.put_object(Bucket="full", Key="order", Body=b"1")
    with pytest.raises(DestroyError, match=r"Data \(AWS::S3::Bucket\): The bucket .* not empty"):
        bench.lifecycle.destroy(environment)
    assert [one.id for one in bench.ledger.entries()] == [environment.id]
    assert stack_of(environment)["StackStatus"] == "DELETE_FAILED"
    s3.delete_object(Bucket="full", Key="order")
    bench.lifecycle.destroy(environment)
    assert (stacks_left(), bench.ledger.entries()) == ([], [])


@pytest.mark.parametrize("recorded", [True, False])
def test_retained_resources_are_named(bench: Bench, recorded: bool) -> None:
    """They are named although the stack is gone, even if the record lacks the stack's id."""
    kept = {"Data": {**bucket("retained"), "DeletionPolicy": "Retain"}, **RESOURCES}
    environment = up(bench, template(bench, resources=kept))
    if not recorded:
        handle = {key: value for key, value in environment.handle.items() if key != "stack"}
        environment = msgspec.structs.replace(environment, handle=handle)
    with pytest.raises(UnverifiedDestroyError, match=r"Data \(AWS::S3::Bucket retained\)"):
        bench.lifecycle.destroy(environment)
    assert stacks_left() == []
    bench.lifecycle.destroy(environment)  # this is reported only once
    boto3.client("s3").delete_bucket(Bucket="retained")


def test_an_extension_changes_the_tags_of_all_resources(bench: Bench) -> None:
    """Instances get the tags at once, because guests read them; the stack follows, even if busy."""
    environment = up(bench, instance(bench))
    bench.account.tell("times", stack=0.5)
    provider = providers.load("cloudformation")
    later = datetime.now(UTC) + timedelta(hours=5)
    for wanted in (later - timedelta(hours=1), later):
        provider.extend(environment, wanted)
    filters = [{"Name": f"tag:{labels.EXPIRES}", "Values": [format_expiry(later)]}]
    assert bench.account.ec2.describe_instances(Filters=filters)["Reservations"]
    assert tags_of(stack_of(environment))[labels.EXPIRES] == format_expiry(later)
    provider.extend(environment, later)  # nothing to be changed is no error
    bench.lifecycle.destroy(environment)


def test_a_promoted_stack_is_protected_from_deletion(bench: Bench) -> None:
    """Neither destroy nor reap deletes it until the protection is lifted."""
    environment = up(bench, template(bench))
    provider = providers.load("cloudformation")
    provider.extend(environment, None)
    production = msgspec.structs.replace(environment, production="production", expires_at=None)
    with pytest.raises(DestroyError, match="TerminationProtection"):
        provider.destroy(production)
    (owned,) = [one for one in provider.list_owned() if one.id == environment.id]
    assert owned.labels[labels.EXPIRES] == labels.NEVER
    with pytest.raises(DestroyError, match="TerminationProtection"):
        provider.sweep(owned)
    assert provider.status(environment).state == "running"
    bench.lifecycle.destroy(environment)


def test_reap_deletes_a_stack_without_a_record(bench: Bench) -> None:
    """Its tags show that it has expired. A stack of others is left alone."""
    wanted = template(bench)
    bench.config.templates = {"stack": wanted}  # an account is read only if a template uses it
    environment = up(bench, wanted)
    client = boto3.client("cloudformation")
    body = (bench.folder / "stack.json").read_text().replace("orders", "theirs")
    client.create_stack(StackName="theirs", TemplateBody=body)
    providers.load("cloudformation").extend(environment, datetime.now(UTC) - timedelta(minutes=1))
    bench.ledger.remove(environment.id)
    reaped = reaper.reap(bench, dry_run=False)  # type: ignore[arg-type]
    assert [(one.id, one.error) for one in reaped] == [(environment.id, "")]
    assert stacks_left() == ["theirs"]
    client.delete_stack(StackName="theirs")
    until(lambda: stacks_left() == [])
