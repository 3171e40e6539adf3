"""Settings of EC2 templates: each is applied, or refused with a helpful line."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import pytest

from aws.conftest import Bench
from aws.test_environments import get, instance
from pytest_ephemeral import providers
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import ConfigurationError, EphemeralError, LaunchError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2 import launch, run_instances, security_groups
from pytest_ephemeral.providers.ec2.tags import tags_of
from pytest_ephemeral.tables import Ready
from support import web
from support.waiting import until


def up(bench: Bench, **keys: Any) -> Environment:
    return bench.lifecycle.bring_up(bench.template(**keys)).environment


def refused(bench: Bench, said: str, **keys: Any) -> str:
    """Try a launch that must fail: the error, which is returned, is one line; nothing remains."""
    bench.bake()
    with pytest.raises(LaunchError, match=said) as caught:
        up(bench, **keys)
    assert len(str(caught.value).splitlines()) == 1
    assert bench.account.left() == []
    assert bench.ledger.entries() == []
    return str(caught.value)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"key_name": "nobody"}, r"The key pair 'nobody' .*key-name.*describe-key-pairs"),
        ({"instance_type": "t9.huge"}, r"Invalid value 't9.huge' for InstanceType"),
        ({"security_groups": ["sg-0123456789abcdef0"]}, "sg-0123.*describe-security-groups"),
        ({"subnet": "subnet-0123456789abcdef0"}, "no subnet subnet-0123.*describe-subnets"),
        ({"user_data": "#" * 17000}, "16384: put large files into the image"),
    ],
)
def test_a_missing_resource_is_named_with_its_setting(bench: Bench, keys: Any, said: str) -> None:
    """The error names the value or the limit, and for most a command that lists valid ones."""
    refused(bench, said, **keys)


def test_the_key_pair_is_set_and_not_removed(bench: Bench) -> None:
    """It is for SSH, and belongs to the user."""
    bench.account.ec2.create_key_pair(KeyName="mine")
    environment = up(bench, key_name="mine")
    assert instance(bench, environment)["KeyName"] == "mine"
    bench.lifecycle.destroy(environment)
    assert bench.account.ec2.describe_key_pairs(KeyNames=["mine"])["KeyPairs"]
    bench.account.ec2.delete_key_pair(KeyName="mine")


# -- instance profiles -----------------------------------------------------------------------


def test_a_missing_instance_profile_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The launch first waits for the profile, because it may be new."""
    monkeypatch.setattr(run_instances, "PROPAGATING", 0.3)
    refused(
        bench, r"\(nobody\).*instance-profile.*list-instance-profiles", instance_profile="nobody"
    )


def test_launch_waits_for_a_new_instance_profile(bench: Bench) -> None:
    """EC2 refuses a new profile for some seconds; the launch is repeated until it succeeds."""
    bench.bake()
    bench.account.tell("profile", name="new", after=2)
    bench.account.calls()
    environment = up(bench, instance_profile="new")
    assert bench.account.calls().count("ec2:RunInstances") == 3
    assert len([one for one in bench.account.left() if one.startswith("i-")]) == 1
    bench.lifecycle.destroy(environment)


# -- volumes ---------------------------------------------------------------------------------


def volumes(bench: Bench, environment: Environment) -> dict[str, dict[str, Any]]:
    """Describe the volumes of an environment's first instance, by device."""
    attached = instance(bench, environment)["BlockDeviceMappings"]
    devices = {one["Ebs"]["VolumeId"]: one for one in attached}
    found = bench.account.ec2.describe_volumes(VolumeIds=list(devices))["Volumes"]
    return {
        devices[one["VolumeId"]]["DeviceName"]: {**devices[one["VolumeId"]], **one} for one in found
    }


def test_volumes_have_the_given_size_and_are_removed(bench: Bench) -> None:
    """This holds for the root volume and others; all are tagged from the beginning."""
    root = bench.bake().handle["root-device"]
    environment = up(bench, volume_size=40, volumes={"/dev/sdf": 100})
    found = volumes(bench, environment)
    assert {name: one["Size"] for name, one in found.items()} == {root: 40, "/dev/sdf": 100}
    for one in found.values():
        assert one["Ebs"]["DeleteOnTermination"]
        assert tags_of(one).items() >= environment.labels.items()
    assert found["/dev/sdf"]["VolumeType"] == "gp3"
    bench.lifecycle.destroy(environment)
    assert bench.account.ec2.describe_volumes()["Volumes"] == []


def test_additional_volumes_of_the_ami_are_removed(bench: Bench) -> None:
    """AMIs made by Packer may have volumes that outlive their instance; none may remain here."""
    ec2, base = bench.account.ec2, bench.account.base
    keep = {"image": base, "region": "us-east-1"}
    bench.account.tell("volumes", volumes=[["/dev/sdg", 7]], **keep)
    try:
        bench.bake()
        assert ec2.describe_volumes()["Volumes"] == []  # nor does a bake leave any
        environment = up(bench)
        assert volumes(bench, environment)["/dev/sdg"]["Size"] == 7
        bench.lifecycle.destroy(environment)
        assert ec2.describe_volumes()["Volumes"] == []
    finally:
        bench.account.tell("volumes", volumes=[], **keep)


# -- spot ------------------------------------------------------------------------------------


def test_spot_requests_are_one_time_and_never_promoted(bench: Bench) -> None:
    """They end on interruption and are tagged. AWS can't protect a spot instance."""
    bench.bake()
    bench.account.asked("RunInstances")
    environment = up(bench, spot=True)
    (form,) = bench.account.asked("RunInstances")
    assert form["InstanceMarketOptions.SpotOptions.SpotInstanceType"] == "one-time"
    assert form["InstanceMarketOptions.SpotOptions.InstanceInterruptionBehavior"] == "terminate"
    assert "spot-instances-request" in form.values()
    assert instance(bench, environment)["InstanceLifecycle"] == "spot"
    before = tags_of(instance(bench, environment))
    with pytest.raises(EphemeralError, match="spot = true"):
        providers.load("ec2").extend(environment, None)
    assert tags_of(instance(bench, environment)) == before
    bench.lifecycle.destroy(environment)


def test_lack_of_spot_capacity_tries_the_next_type(bench: Bench) -> None:
    """Types and subnets are tried in turn, as for on-demand instances."""
    bench.bake()
    for code in ("MaxSpotInstanceCountExceeded", "InsufficientInstanceCapacity"):
        bench.account.fault("RunInstances", code)
    environment = up(bench, spot=True, instance_type=["t3.small", "t3a.small"])
    assert instance(bench, environment)["InstanceType"] == "t3a.small"
    bench.lifecycle.destroy(environment)


# -- lack of capacity ------------------------------------------------------------------------


def test_each_launch_attempt_is_sent_once_with_its_own_token(bench: Bench) -> None:
    """EC2 reports a lack of capacity as a server error, which boto3 would retry ten times."""
    bench.bake()
    bench.account.asked("RunInstances")
    bench.account.fault("RunInstances", "InsufficientInstanceCapacity", times=3)
    started = time.monotonic()
    environment = up(bench, instance_type=["t3.small", "t3a.small"])
    asked = bench.account.asked("RunInstances")
    assert [(one["InstanceType"], one["SubnetId"]) for one in asked] == [
        (kind, subnet) for kind in ("t3.small", "t3a.small") for subnet in bench.account.subnets
    ]
    assert len({one["ClientToken"] for one in asked}) == 4
    assert time.monotonic() - started < 30
    bench.lifecycle.destroy(environment)


def test_an_instance_not_yet_visible_is_terminated(bench: Bench) -> None:
    """A new instance may be "not found" for a while although it runs."""
    bench.bake()
    bench.account.tell("times", unseen=1.0)
    environment = up(bench, command="exit 1", ready=Ready())
    bench.lifecycle.destroy(environment)
    time.sleep(1.0)  # until the instance is visible, if it still exists
    assert bench.account.left() == []


def test_launch_waits_for_a_new_security_group(bench: Bench) -> None:
    """A new group may be unknown for a while to the ingress call and to the launch."""
    bench.bake()
    for action in ("AuthorizeSecurityGroupIngress", "RunInstances"):
        bench.account.fault(action, "InvalidGroup.NotFound", times=2)
    environment = up(bench)
    assert get(environment.url) == "hello"
    bench.lifecycle.destroy(environment)


# -- addresses -------------------------------------------------------------------------------


@contextmanager
def serving_own_address(answer: str) -> Iterator[str]:
    """Serve the answer of AWS's service that reports this machine's public address."""

    class Handler(web.Handler):
        def do_GET(self) -> None:
            self.answer(200, answer.encode())

    with web.serving(web.server_of(Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


def public(bench: Bench) -> dict[str, Any]:
    """Return keys for a server on all addresses: here, no network translates public ones."""
    command = bench.template().command.replace('"$HOST"', "0.0.0.0")  # type: ignore[union-attr]
    return {"address": "public", "command": command, "port": 18581}


def test_ingress_allows_the_public_address_of_this_machine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The URL contains the instance's public address. No Elastic IP is allocated for it."""
    with serving_own_address("203.0.113.9\n") as url:
        monkeypatch.setattr(security_groups, "WHO_AM_I", url)
        environment = up(bench, **public(bench))
    assert environment.endpoints["http"].host.startswith("127.78.")
    assert get(environment.url) == "hello"
    group = bench.account.ec2.describe_security_groups(GroupIds=[environment.handle["group"]])
    (rule,) = group["SecurityGroups"][0]["IpPermissions"]
    assert [one["CidrIp"] for one in rule["IpRanges"]] == ["203.0.113.9/32"]
    assert bench.account.ec2.describe_addresses()["Addresses"] == []
    bench.lifecycle.destroy(environment)


@pytest.mark.parametrize("answer", ["<html>Sign in to the hotel</html>", ""])
def test_an_invalid_public_address_prevents_the_launch(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, answer: str
) -> None:
    """A captive portal answers every request; its page must not be taken for an address."""
    with serving_own_address(answer) as url:
        monkeypatch.setattr(security_groups, "WHO_AM_I", url)
        refused(bench, "does not report this machine", **public(bench))


def test_an_unreachable_address_service_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the host of the service, and nothing is launched."""
    monkeypatch.setattr(security_groups, "WHO_AM_I", "http://127.0.0.1:9")
    refused(bench, "127.0.0.1 does not report this machine", **public(bench))


def test_a_missing_public_address_is_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subnet without a route to the internet assigns none."""
    bench.bake()
    bench.account.tell("times", boot=3.0)
    monkeypatch.setattr(launch, "ADDRESSING", 0.3)
    refused(
        bench,
        "has no public address.*route to the internet",
        ingress=["10.0.0.0/8"],
        **public(bench),
    )


def test_an_address_limit_is_reported_with_a_remedy(bench: Bench) -> None:
    """The remedy is a command that lists the addresses in use."""
    bench.bake()
    bench.account.fault("RunInstances", "AddressLimitExceeded")
    refused(
        bench, "AddressLimitExceeded.*describe-addresses", ingress=["10.0.0.0/8"], **public(bench)
    )


# -- user data, price, regions ---------------------------------------------------------------


def test_metadata_requests_are_repeated_until_answered(bench: Bench) -> None:
    """Without the metadata, an application would not know its address, and listen on all."""
    bench.bake()
    bench.account.tell("silent", requests=2)
    environment = up(bench)
    assert get(environment.url + "variable/HOST") == environment.endpoints["http"].host
    bench.lifecycle.destroy(environment)
    bench.account.tell("silent", requests=99)
    with pytest.raises(LaunchError, match="metadata of this instance can't be read"):
        up(bench)
    bench.account.tell("silent", requests=0)


def test_user_data_runs_before_the_command(bench: Bench) -> None:
    """It has the command's variables and runs in the command's folder."""
    serve = bench.template().command
    environment = up(
        bench,
        env={"GIVEN": "teal"},
        user_data='echo "$GIVEN" >colour',
        command=f"COLOUR=$(cat colour); export COLOUR; {serve}",
    )
    assert get(environment.url + "variable/COLOUR") == "teal"
    bench.lifecycle.destroy(environment)


def test_max_cost_uses_the_dearest_type_and_full_lifetime(bench: Bench) -> None:
    """The lifetime is that of ``--ttl``, for all instances; the check precedes the bake."""
    template = bench.template(
        instance_type=["t3.small", "t3.xlarge"], count=2, max_cost="$1", ttl=Duration(3600)
    )
    bench.account.calls()
    with pytest.raises(ConfigurationError, match=r"2 x t3.xlarge for 10 h would cost \$3.33"):
        bench.lifecycle.bring_up(template, ttl=Duration(36000))
    assert "ec2:RunInstances" not in bench.account.calls()
    assert bench.ledger.entries() == []


def test_a_region_launches_its_own_copy_of_the_ami(bench: Bench) -> None:
    """The copy is then in use and not pruned. Without a copy, the error names ``copy-to``."""
    bench.keys = {"copy_to": ["eu-west-1"]}
    bench.bake()
    there = boto3.client("ec2", region_name="eu-west-1")
    (copied,) = there.describe_images(Owners=["self"])["Images"]
    keys = {"command": None, "port": None, "subnet": [], "ingress": ["10.0.0.0/8"]}
    environment = up(bench, region="eu-west-1", **keys)
    (found,) = there.describe_instances(InstanceIds=[environment.handle["instances"]])[
        "Reservations"
    ]
    assert found["Instances"][0]["ImageId"] == copied["ImageId"]
    assert bench.images.prune(0, ()) == []
    bench.lifecycle.destroy(environment)
    with pytest.raises(LaunchError, match="add it to copy-to"):
        up(bench, region="eu-north-1", **keys)
    (pruned,) = bench.images.prune(0, ())
    assert pruned.name == "app"
    assert there.describe_images(Owners=["self"])["Images"] == []
    until(lambda: there.describe_security_groups()["SecurityGroups"][1:] == [])
