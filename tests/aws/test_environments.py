"""Environments on EC2: launches despite failures, and complete removal."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import msgspec
import pytest

from aws.conftest import Bench
from pytest_ephemeral import providers
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.environments.orders import make_order, register_environment
from pytest_ephemeral.errors import (
    ConfigurationError,
    DestroyError,
    EnvironmentGoneError,
    EphemeralError,
    LaunchError,
    UnavailableError,
)
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.abilities import SupportsLastLogMark
from pytest_ephemeral.tables import Ready
from support.waiting import until
from support.web import get


def instance(bench: Bench, environment: Environment) -> dict[str, Any]:
    """Describe the environment's first instance."""
    id = environment.handle["instances"].split(",")[0]
    found = bench.account.ec2.describe_instances(InstanceIds=[id])
    made: dict[str, Any] = found["Reservations"][0]["Instances"][0]
    return made


def test_an_environment_is_restricted_tagged_and_removed(bench: Bench) -> None:
    """Only the runner has access, IMDSv2 is required, and all is tagged. Destroy leaves nothing."""
    timed = bench.lifecycle.bring_up(bench.template(ready=Ready(http="/healthz")))
    environment = timed.environment
    assert get(environment.url) == "hello"
    made = instance(bench, environment)
    assert made["MetadataOptions"]["HttpTokens"] == "required"
    tags = {tag["Key"]: tag["Value"] for tag in made["Tags"]}
    assert tags.items() >= environment.labels.items()
    group = bench.account.ec2.describe_security_groups(GroupIds=[environment.handle["group"]])
    (rule,) = group["SecurityGroups"][0]["IpPermissions"]
    assert (rule["FromPort"], rule["ToPort"]) == (18573, 18573)
    assert [one["CidrIp"] for one in rule["IpRanges"]] == ["127.0.0.1/32"]
    bench.lifecycle.destroy(environment)
    assert bench.account.left() == []
    assert bench.ledger.entries() == []


def test_without_capacity_the_next_type_and_subnet_are_tried(bench: Bench) -> None:
    """Instance types and subnets are tried in turn until a launch succeeds."""
    bench.bake()
    for code in ("InsufficientInstanceCapacity", "VcpuLimitExceeded", "Unsupported"):
        bench.account.fault("RunInstances", code)
    template = bench.template(instance_type=["t3.small", "t3a.small"])
    environment = bench.lifecycle.bring_up(template).environment
    made = instance(bench, environment)
    assert (made["InstanceType"], made["SubnetId"]) == ("t3a.small", bench.account.subnets[1])
    bench.lifecycle.destroy(environment)


def test_lack_of_capacity_everywhere_lists_each_refusal(bench: Bench) -> None:
    """The error names each type and subnet. No security group remains."""
    bench.bake()
    bench.account.fault("RunInstances", "InsufficientInstanceCapacity", times=9)
    with pytest.raises(LaunchError, match=r"t3.small in subnet-.*InsufficientInstanceCapacity"):
        bench.lifecycle.bring_up(bench.template())
    assert bench.account.left() == []


def test_an_unreadable_console_only_fails_log_requests(bench: Bench) -> None:
    """The mark of the log's end is then empty, and reading the log raises the reason."""
    environment = bench.lifecycle.bring_up(bench.template()).environment
    provider = providers.load("ec2")
    bench.account.fault("GetConsoleOutput", "UnauthorizedOperation")
    assert isinstance(provider, SupportsLastLogMark)
    assert provider.last_log_mark(environment) == "{}"
    with pytest.raises(EphemeralError, match="GetConsoleOutput"):
        provider.logs(environment, since="")
    assert provider.logs(environment, since="") == provider.logs(environment)
    bench.lifecycle.destroy(environment)


def test_a_reclaimed_instance_is_reported_with_its_reason(bench: Bench) -> None:
    """The error contains EC2's reason and the last lines of the console."""
    bench.bake()
    template = bench.template(command="echo starting; sleep 100", ready=Ready(http="/"))
    launched: list[str] = []

    def said(progress: Any) -> None:
        if progress.phase == "ready":
            found = bench.ledger.get(progress.subject)
            launched.append(found.handle["instances"])

    bench.lifecycle.say = said
    import threading

    def reclaim() -> None:
        until(lambda: launched)
        time.sleep(0.5)
        bench.account.tell("reclaim", id=launched[0], reason="Server.SpotInstanceTermination")

    thread = threading.Thread(target=reclaim)
    thread.start()
    with pytest.raises(LaunchError, match="SpotInstanceTermination") as caught:
        bench.lifecycle.bring_up(template)
    thread.join()
    assert "starting" in str(caught.value)


def test_deleting_a_security_group_in_use_is_retried(bench: Bench) -> None:
    """Network interfaces outlive their instance; the group is deleted once they are gone."""
    environment = bench.lifecycle.bring_up(bench.template()).environment
    bench.account.tell("times", linger=1.0)
    bench.lifecycle.destroy(environment)
    assert bench.account.calls().count("ec2:DeleteSecurityGroup") > 1
    assert bench.account.left() == []


def test_an_interrupted_launch_is_found_by_its_request(bench: Bench) -> None:
    """The answer to RunInstances was lost. Destroy repeats the recorded request to find it."""
    image = bench.bake()
    provider = providers.load("ec2")
    journaled: list[Environment] = []
    template = bench.template()
    images = {"app": image}
    project: Any = bench
    environment = register_environment(project, "run", template, images, template.ttl)
    order = make_order(project, environment, template, images, journaled.append)
    provider.launch(order)
    (halfway,) = [
        one for one in journaled if "request" in one.handle and "instances" not in one.handle
    ]
    provider.destroy(halfway)
    assert bench.account.left() == []
    bench.ledger.remove(environment.id)


def test_the_guest_timer_ends_an_expired_instance(bench: Bench) -> None:
    """The timer in the guest reads the expiry tag by IMDSv2, and ends no instance before it."""
    environment = bench.lifecycle.bring_up(bench.template()).environment
    id = environment.handle["instances"]
    provider = providers.load("ec2")
    bench.account.tell("expire", id=id)
    time.sleep(0.5)
    assert instance(bench, environment)["State"]["Name"] == "running"
    provider.extend(environment, datetime.now(UTC) - timedelta(seconds=5))
    bench.account.tell("expire", id=id)
    until(lambda: instance(bench, environment)["State"]["Name"] == "terminated")
    until(lambda: bench.lifecycle.status(environment).state == "gone")
    bench.lifecycle.destroy(environment)


def test_promotion_removes_the_expiry(bench: Bench) -> None:
    """The tag becomes ``never``, a shutdown stops the instance, and termination is protected."""
    environment = bench.lifecycle.bring_up(bench.template()).environment
    id, provider = environment.handle["instances"], providers.load("ec2")
    provider.extend(environment, None)
    bench.account.tell("expire", id=id)

    def attribute(name: str) -> Any:
        found = bench.account.ec2.describe_instance_attribute(InstanceId=id, Attribute=name)
        return found[name[0].upper() + name[1:]]["Value"]

    assert attribute("instanceInitiatedShutdownBehavior") == "stop"
    assert attribute("disableApiTermination")
    production = msgspec.structs.replace(environment, production="production", expires_at=None)
    with pytest.raises(DestroyError, match="production"):
        provider.destroy(production)
    (owned,) = [one for one in provider.list_owned() if one.id == environment.id]
    assert owned.labels["pytest-ephemeral.expires-at"] == "never"
    with pytest.raises(DestroyError):
        provider.sweep(owned)
    assert instance(bench, environment)["State"]["Name"] == "running"
    bench.lifecycle.destroy(environment)


def test_reap_removes_only_expired_tagged_instances(bench: Bench) -> None:
    """Without records, tags decide. Untagged and unexpired instances remain."""
    environment = bench.lifecycle.bring_up(bench.template()).environment
    living = bench.lifecycle.bring_up(bench.template()).environment
    other = bench.account.ec2.run_instances(ImageId=bench.account.base, MinCount=1, MaxCount=1)
    untagged = other["Instances"][0]["InstanceId"]
    providers.load("ec2").extend(environment, datetime.now(UTC) - timedelta(minutes=1))
    for one in (environment, living):
        bench.ledger.remove(one.id)
    reaped = reaper.reap(bench, dry_run=True)  # type: ignore[arg-type]
    assert environment.id in {one.id for one in reaped}
    assert instance(bench, environment)["State"]["Name"] == "running"
    unnamed = reaper.reap(bench, dry_run=False, accounts=["1"])  # type: ignore[arg-type]
    assert {one.account for one in unnamed if one.id == environment.id} == {"123456789012"}
    assert instance(bench, environment)["State"]["Name"] == "running"
    reaped = reaper.reap(bench, dry_run=False)  # type: ignore[arg-type]
    assert [one.error for one in reaped if one.id == environment.id] == [""]
    assert living.id not in {one.id for one in reaped}
    left = bench.account.left()
    assert any(untagged in one for one in left)
    assert any(living.handle["instances"] in one for one in left)
    bench.account.ec2.terminate_instances(InstanceIds=[untagged])
    providers.load("ec2").destroy(living)
    until(lambda: not bench.account.left())


def test_a_launch_over_the_cost_limit_is_refused(bench: Bench) -> None:
    """The cost is hours times price. A type without a known price is refused, too."""
    bench.bake()
    bench.account.calls()
    with pytest.raises(ConfigurationError, match=r"\$0.04 in us-east-1, more than \$0.01"):
        bench.lifecycle.bring_up(bench.template(max_cost="$0.01"))
    with pytest.raises(ConfigurationError, match="set `prices` to a file"):
        bench.lifecycle.bring_up(bench.template(max_cost="$9", instance_type="x2gd.16xlarge"))
    assert "ec2:RunInstances" not in bench.account.calls()
    (bench.folder / "prices.json").write_text('{"*": {"x2gd.16xlarge": 1.5}}')
    template = bench.template(max_cost="$9", instance_type="x2gd.16xlarge", prices="prices.json")
    environment = bench.lifecycle.bring_up(template).environment
    assert environment.handle["dollars-an-hour"] == "1.5"
    bench.lifecycle.destroy(environment)


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("ExpiredToken", "expired"),
        ("AuthFailure", "does not know"),
        ("UnauthorizedOperation", "may not"),
    ],
)
def test_bad_credentials_are_reported_in_one_line(bench: Bench, code: str, said: str) -> None:
    """The credentials are expired, unknown or not authorized."""
    bench.account.fault("DescribeInstances", code, times=20)
    bench.account.fault("DescribeSecurityGroups", code, times=20)
    with pytest.raises(UnavailableError, match=said) as caught:
        list(providers.load("ec2").list_owned())
    assert len(str(caught.value).splitlines()) == 1


def test_missing_credentials_or_region_are_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The error names the variable to set, or the profile that does not exist."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    with pytest.raises(UnavailableError, match="AWS_PROFILE"):
        list(providers.load("ec2").list_owned())
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(UnavailableError, match="nobody"):
        list(providers.load("ec2").list_owned())
    monkeypatch.delenv("AWS_PROFILE")
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    with pytest.raises(UnavailableError, match="AWS_DEFAULT_REGION"):
        list(providers.load("ec2").list_owned())


def test_each_of_several_instances_has_its_endpoints(bench: Bench) -> None:
    """The endpoints of the second instance have the suffix ``-2``."""
    environment = bench.lifecycle.bring_up(bench.template(count=2)).environment
    assert set(environment.endpoints) == {"http", "http-2"}
    assert get(environment.url_for("http-2")) == "hello"
    bench.lifecycle.destroy(environment)


def test_running_a_command_without_an_ssm_agent_is_explained(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands need Systems Manager; the error names the policy that its agent needs."""
    environment = bench.lifecycle.bring_up(bench.template()).environment
    bench.account.fault("SendCommand", "InvalidInstanceId", times=99)
    with pytest.raises(EphemeralError, match="AmazonSSMManagedInstanceCore"):
        environment.run(["true"], timeout=1)
    bench.lifecycle.destroy(environment)


def test_a_command_on_an_instance_that_has_just_ended_says_so(bench: Bench) -> None:
    """SSM answers as for a missing agent, for which a command would wait."""
    environment = bench.lifecycle.bring_up(bench.template()).environment
    boto3.client("ec2").terminate_instances(InstanceIds=[environment.handle["instances"]])
    with pytest.raises(EnvironmentGoneError, match=environment.id):
        environment.run(["true"], timeout=60)
    bench.lifecycle.destroy(environment)


def test_lack_of_volume_capacity_tries_the_next_subnet(bench: Bench) -> None:
    """Another availability zone may have capacity, as for instances."""
    bench.bake()
    bench.account.asked("RunInstances")
    bench.account.fault("RunInstances", "InsufficientVolumeCapacity")
    environment = bench.lifecycle.bring_up(bench.template()).environment
    asked = bench.account.asked("RunInstances")
    assert [one["SubnetId"] for one in asked] == bench.account.subnets
    bench.lifecycle.destroy(environment)


def test_an_unset_pass_env_variable_prevents_the_bake(bench: Bench) -> None:
    """``pass-env`` names the variable. The error is that of all providers; nothing is launched."""
    bench.account.calls()
    with pytest.raises(ConfigurationError, match=r"passes NOT_SET_HERE .*pass-env"):
        bench.bake(pass_env=["NOT_SET_HERE"])
    assert "ec2:RunInstances" not in bench.account.calls()
    assert bench.account.left() == []
