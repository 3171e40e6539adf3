"""What a template may ask of EC2: given as it was asked for, or refused in a line that helps."""

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
    """Bring up what can't be: it is said in one line, and nothing is left."""
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
    """With the key of the template, and the command that shows what there is."""
    refused(bench, said, **keys)


def test_the_key_pair_is_set_and_not_removed(bench: Bench) -> None:
    """For SSH; it is the user's, and stays."""
    bench.account.ec2.create_key_pair(KeyName="mine")
    environment = up(bench, key_name="mine")
    assert instance(bench, environment)["KeyName"] == "mine"
    bench.lifecycle.destroy(environment)
    assert bench.account.ec2.describe_key_pairs(KeyNames=["mine"])["KeyPairs"]
    bench.account.ec2.delete_key_pair(KeyName="mine")


# -- instance profiles -----------------------------------------------------------------------


def test_a_missing_instance_profile_is_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """After it was waited for, as it may only just have been made."""
    monkeypatch.setattr(run_instances, "PROPAGATING", 0.3)
    refused(
        bench, r"\(nobody\).*instance-profile.*list-instance-profiles", instance_profile="nobody"
    )


def test_launch_waits_for_a_new_instance_profile(bench: Bench) -> None:
    """EC2 comes to know of it within seconds, and refuses it until then."""
    bench.bake()
    bench.account.tell("profile", name="new", after=2)
    bench.account.calls()
    environment = up(bench, instance_profile="new")
    assert bench.account.calls().count("ec2:RunInstances") == 3
    assert len([one for one in bench.account.left() if one.startswith("i-")]) == 1
    bench.lifecycle.destroy(environment)


# -- volumes ---------------------------------------------------------------------------------


def volumes(bench: Bench, environment: Environment) -> dict[str, dict[str, Any]]:
    """The volumes of its first instance, by device."""
    attached = instance(bench, environment)["BlockDeviceMappings"]
    devices = {one["Ebs"]["VolumeId"]: one for one in attached}
    found = bench.account.ec2.describe_volumes(VolumeIds=list(devices))["Volumes"]
    return {
        devices[one["VolumeId"]]["DeviceName"]: {**devices[one["VolumeId"]], **one} for one in found
    }


def test_volumes_have_the_given_size_and_are_removed(bench: Bench) -> None:
    """The root's, and more; all of them tagged from the beginning."""
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
    """Packer's AMIs may have some that are meant to outlive their instance: not an environment."""
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
    """One-time, terminated on interruption, the request tagged too; AWS would not protect it."""
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
    """Of types and subnets, as on demand."""
    bench.bake()
    for code in ("MaxSpotInstanceCountExceeded", "InsufficientInstanceCapacity"):
        bench.account.fault("RunInstances", code)
    environment = up(bench, spot=True, instance_type=["t3.small", "t3a.small"])
    assert instance(bench, environment)["InstanceType"] == "t3a.small"
    bench.lifecycle.destroy(environment)


# -- lack of capacity ------------------------------------------------------------------------


def test_each_launch_attempt_is_sent_once_with_its_own_token(bench: Bench) -> None:
    """boto3 would ask ten times for what EC2 calls a server's error: there is none of it."""
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
    """What RunInstances has just given is "not found" for a while: it runs all the same."""
    bench.bake()
    bench.account.tell("times", unseen=1.0)
    environment = up(bench, command="exit 1", ready=Ready())
    bench.lifecycle.destroy(environment)
    time.sleep(1.0)  # until it can be seen, if it is there
    assert bench.account.left() == []


def test_launch_waits_for_a_new_security_group(bench: Bench) -> None:
    """Neither letting someone in nor launching into it fails because it was only just made."""
    bench.bake()
    for action in ("AuthorizeSecurityGroupIngress", "RunInstances"):
        bench.account.fault(action, "InvalidGroup.NotFound", times=2)
    environment = up(bench)
    assert get(environment.url) == "hello"
    bench.lifecycle.destroy(environment)


# -- addresses -------------------------------------------------------------------------------


@contextmanager
def serving_own_address(answer: str) -> Iterator[str]:
    """What stands in for AWS's word for the address that this machine has on the internet."""

    class Handler(web.Handler):
        def do_GET(self) -> None:
            self.answer(200, answer.encode())

    with web.serving(web.server_of(Handler)) as server:
        yield f"http://127.0.0.1:{server.server_port}"


def public(bench: Bench) -> dict[str, Any]:
    """Listens everywhere: here, no network translates the public address to the private one."""
    command = bench.template().command.replace('"$HOST"', "0.0.0.0")  # type: ignore[union-attr]
    return {"address": "public", "command": command, "port": 18581}


def test_ingress_allows_the_public_address_of_this_machine(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The URL has the public address, once there is one; no Elastic IP is taken for it."""
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
    """A captive portal answers every request; nothing is launched on its word."""
    with serving_own_address(answer) as url:
        monkeypatch.setattr(security_groups, "WHO_AM_I", url)
        refused(bench, "does not report this machine", **public(bench))


def test_an_unreachable_address_service_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And what can be written instead of asking."""
    monkeypatch.setattr(security_groups, "WHO_AM_I", "http://127.0.0.1:9")
    refused(bench, "127.0.0.1 does not report this machine", **public(bench))


def test_a_missing_public_address_is_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A subnet without a route to the internet gives none."""
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
    """With what frees one."""
    bench.bake()
    bench.account.fault("RunInstances", "AddressLimitExceeded")
    refused(
        bench, "AddressLimitExceeded.*describe-addresses", ingress=["10.0.0.0/8"], **public(bench)
    )


# -- user data, price, regions ---------------------------------------------------------------


def test_metadata_requests_are_repeated_until_answered(bench: Bench) -> None:
    """An application without its address would listen on all of them."""
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
    """With the same variables, in the same folder."""
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
    """By what was asked for with ``--ttl``, for all instances; before even the image is baked."""
    template = bench.template(
        instance_type=["t3.small", "t3.xlarge"], count=2, max_cost="$1", ttl=Duration(3600)
    )
    bench.account.calls()
    with pytest.raises(ConfigurationError, match=r"2 x t3.xlarge for 10 h would cost \$3.33"):
        bench.lifecycle.bring_up(template, ttl=Duration(36000))
    assert "ec2:RunInstances" not in bench.account.calls()
    assert bench.ledger.entries() == []


def test_a_region_launches_its_own_copy_of_the_ami(bench: Bench) -> None:
    """Which is in use then, and not pruned; without one, it is said what makes one."""
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
