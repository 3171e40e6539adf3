"""Instances on standby: they are kept when environments end, renewed, and started for others."""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from aws.conftest import Bench
from aws.project import Project
from aws.test_environments import get, instance
from pytest_ephemeral import config, labels, providers
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.errors import EnvironmentGoneError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2.tags import LAUNCHED_AS, tags_of
from pytest_ephemeral.providers.protocol import CLAIMED_BY
from support.waiting import until


def bring_up(bench: Bench, **keys: Any) -> Environment:
    bench.bake()
    return bench.lifecycle.bring_up(bench.template(**{"standby": 1, **keys})).environment


def states(bench: Bench) -> dict[str, str]:
    return {one.id: one.state for one in bench.ledger.entries()}


def end(bench: Bench, environment: Environment) -> Environment:
    """End an environment, keep its instance, and wait until the instance has stopped."""
    assert bench.lifecycle.keep_machine(environment)
    until(lambda: instance(bench, environment)["State"]["Name"] == "stopped")
    return bench.ledger.get(environment.id)


class RecordedWarnings:
    """The warnings that users see."""

    def __init__(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        self._said: list[Progress] = []
        monkeypatch.setattr(bench.lifecycle, "say", self._said.append)

    def __str__(self) -> str:
        return "\n".join(one.text for one in self._said if one.phase == "warning")


def is_gone(bench: Bench) -> bool:
    return bench.account.left() == []


#: The calls that give an instance on standby to the next environment, and how many of each.
REUSE = {
    "ec2:CreateSecurityGroup": 1,
    "ec2:AuthorizeSecurityGroupIngress": 1,
    "ec2:CreateTags": 1,
    "ec2:ModifyInstanceAttribute": 3,
    "ec2:StartInstances": 1,
    "ec2:DeleteSecurityGroup": 1,
}


def volumes(bench: Bench) -> set[str]:
    """The ids of the account's volumes."""
    return {one["VolumeId"] for one in bench.account.ec2.describe_volumes()["Volumes"]}


def user_data(bench: Bench, id: str) -> bytes:
    """Return an instance's user data as AWS has it."""
    asked = bench.account.ec2.describe_instance_attribute(InstanceId=id, Attribute="userData")
    return base64.b64decode(asked["UserData"]["Value"])


def test_a_standby_instance_is_renewed_and_reused(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Instance and address are the same; tags, group, variables and files are the second's own.

    No secret of the first remains on the disk or in the user data. The first volume is deleted.
    """
    monkeypatch.setenv("SECRET", "hunter2-hunter2")
    one = bring_up(
        bench, env={"COLOUR": "blue", "KEY": "{env:SECRET}"}, ingress=["runner", "10.0.0.0/8"]
    )
    assert get(f"{one.url}/variable/KEY") == "hunter2-hunter2"
    one.run(["sh", "-c", 'echo wrong >"$STATE/wrong"'])
    bench.account.asked("RunInstances")
    earlier = volumes(bench)
    assert end(bench, one).state == "standby"
    kept = Path(bench.account.tell("cloud_init", id=one.handle["instances"]))
    assert not any(b"hunter2" in file.read_bytes() for file in kept.rglob("*") if file.is_file())
    bench.account.calls()
    other = bring_up(bench, env={"COLOUR": "red"})
    calls = bench.account.calls()
    changing = [one for one in calls if not one.startswith("ec2:Describe")]
    assert Counter(changing) == REUSE
    assert calls.count("ec2:DescribeReplaceRootVolumeTasks") == 1
    assert bench.account.asked("RunInstances") == []
    assert (other.handle["instances"], other.id != one.id) == (one.handle["instances"], True)
    assert other.endpoints["http"].host == one.endpoints["http"].host
    assert get(f"{other.url}/variable/COLOUR") == "red"
    assert other.run(["sh", "-c", 'ls "$STATE"']).stdout == ""
    assert states(bench) == {other.id: "ready"}
    made = instance(bench, other)
    assert {group["GroupId"] for group in made["SecurityGroups"]} == {other.handle["group"]}
    assert tags_of(made).items() >= {**other.labels, LAUNCHED_AS: one.id, "Name": other.id}.items()
    assert earlier.isdisjoint(volumes(bench))
    assert b"hunter2" not in user_data(bench, made["InstanceId"])
    bench.lifecycle.destroy(other)
    until(lambda: is_gone(bench))
    assert volumes(bench) == set()


def test_an_instance_is_kept_again_up_to_the_limit(bench: Bench) -> None:
    """A reused instance can be kept again; one above the limit is not kept."""
    one, other = bring_up(bench), bring_up(bench)
    end(bench, one)
    assert not bench.lifecycle.keep_machine(other)
    assert bench.ledger.get(other.id).kept is False
    bench.lifecycle.destroy(other)
    third = bring_up(bench)
    end(bench, third)
    fourth = bring_up(bench)
    assert fourth.handle["instances"] == one.handle["instances"]
    assert tags_of(instance(bench, fourth))[LAUNCHED_AS] == one.id
    bench.lifecycle.destroy(fourth)
    assert states(bench) == {}


def test_only_one_environment_gets_an_instance_on_standby(bench: Bench) -> None:
    """Several environments start at once; the others launch instances of their own."""
    one = bring_up(bench)
    end(bench, one)
    bench.account.asked("RunInstances")
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: bring_up(bench), range(3)))
    ids = [each.handle["instances"] for each in found]
    assert (len(set(ids)), ids.count(one.handle["instances"])) == (3, 1)
    assert len(bench.account.asked("RunInstances")) == 2
    for each in found:
        assert get(each.url) == "hello"
        bench.lifecycle.destroy(each)


def test_an_instance_that_does_not_fit_or_is_not_ready_is_not_used(bench: Bench) -> None:
    """A new instance is launched at once, and the one on standby remains."""
    one = bring_up(bench)
    bench.account.tell("times", root=1.0)
    assert bench.lifecycle.keep_machine(one)
    early, fitting = bring_up(bench), bring_up(bench, instance_type="t3a.small")
    until(lambda: instance(bench, one)["State"]["Name"] == "stopped")
    late = bring_up(bench, instance_type="t3a.small")
    assert states(bench) == {
        one.id: "standby",
        **dict.fromkeys([early.id, fitting.id, late.id], "ready"),
    }
    for each in (early, fitting, late, bench.ledger.get(one.id)):
        bench.lifecycle.destroy(each)


def test_an_instance_that_cannot_be_renewed_is_destroyed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call is refused, the warning is one line, and the instance is not kept."""
    one = bring_up(bench)
    for action, code, after in [
        ("ModifyInstanceAttribute", "UnauthorizedOperation", 0),
        ("CreateTags", "UnauthorizedOperation", 0),
        ("CreateReplaceRootVolumeTask", "InvalidParameterValue", 0),
        ("CreateTags", "UnauthorizedOperation", 1),
    ]:
        heard = RecordedWarnings(bench, monkeypatch)
        bench.account.fault(action, code, after=after)
        assert not bench.lifecycle.keep_machine(one), action
        said = f"the machine of {one.id} is not kept on standby: AWS"
        assert str(heard).startswith(said), action
        assert len(str(heard).splitlines()) == 1
        recorded = bench.ledger.get(one.id)
        assert (recorded.kept, recorded.expires_at) == (False, one.expires_at)
    bench.lifecycle.destroy(one)
    assert states(bench) == {}
    until(lambda: is_gone(bench))


def test_an_instance_that_cannot_be_started_is_replaced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever call is refused, it is terminated and a new one launched, with a warning."""
    one = bring_up(bench)
    for action, code, after in [
        ("CreateTags", "UnauthorizedOperation", 0),
        ("ModifyInstanceAttribute", "UnauthorizedOperation", 0),
        ("ModifyInstanceAttribute", "IncorrectInstanceState", 2),
        ("StartInstances", "InsufficientInstanceCapacity", 0),
    ]:
        end(bench, one)
        heard = RecordedWarnings(bench, monkeypatch)
        bench.account.fault(action, code, after=after, times=5)
        started = bring_up(bench)
        bench.account.tell("faults")
        assert started.handle["instances"] != one.handle["instances"], action
        assert str(heard).startswith(f"{one.id} was on standby, and can't be started: ")
        assert str(heard).endswith("It is removed")
        assert len(str(heard).splitlines()) == 1
        assert states(bench) == {started.id: "ready"}
        assert instance(bench, one)["State"]["Name"] == "terminated"
        assert get(started.url) == "hello"
        one = started
    bench.lifecycle.destroy(one)


def test_an_instance_whose_renewal_failed_is_removed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its root volume was not replaced, so no environment may use it."""
    one, heard = bring_up(bench), RecordedWarnings(bench, monkeypatch)
    bench.account.tell("tasks", state="failed")
    assert bench.lifecycle.keep_machine(one)
    bench.account.tell("times", root=0.1)
    tasks = bench.account.ec2.describe_replace_root_volume_tasks
    until(lambda: tasks()["ReplaceRootVolumeTasks"][-1]["TaskState"] == "failed")
    other = bring_up(bench)
    assert other.handle["instances"] != one.handle["instances"]
    assert str(heard) == f"{one.id} was on standby, but could not be renewed: it is removed"
    assert instance(bench, one)["State"]["Name"] == "terminated"
    bench.lifecycle.destroy(other)


def test_destroying_by_the_old_record_leaves_the_next_environment_alone(bench: Bench) -> None:
    """A process was killed before it removed the old record; the instance is the next one's."""
    one = bring_up(bench)
    standby = end(bench, one)
    other = bring_up(bench)
    handle = {**standby.handle, CLAIMED_BY: other.id}
    bench.ledger.create(replace(standby, state="destroying", handle=handle), bench.template())
    bench.lifecycle.destroy(bench.ledger.get(one.id))
    assert states(bench) == {other.id: "ready"}
    assert get(other.url) == "hello"
    bench.lifecycle.destroy(other)


def expire(bench: Bench, standby: Environment) -> None:
    bench.ledger.change(standby.id, expires_at=datetime.now(UTC))


def lose_record(bench: Bench, standby: Environment) -> None:
    """Remove the record; the instance's tags say that it has expired."""
    past = (datetime.now(UTC) - timedelta(seconds=2)).isoformat(timespec="seconds")
    bench.ledger.remove(standby.id)
    tags = [{"Key": labels.EXPIRES, "Value": past}]
    bench.account.ec2.create_tags(Resources=[standby.handle["instances"]], Tags=tags)


@pytest.mark.parametrize("what", [expire, lose_record])
def test_reap_terminates_an_expired_instance_on_standby(
    bench: Bench, what: Callable[[Bench, Environment], None]
) -> None:
    """It outlives its run until the expiry in its tags, and is not reaped before."""
    one = bring_up(bench, standby_ttl=3600)
    standby = end(bench, one)
    assert standby.expires_at is not None
    expires = datetime.fromisoformat(tags_of(instance(bench, one))[labels.EXPIRES])
    assert abs(expires - standby.expires_at) < timedelta(seconds=1)
    project: Any = bench
    assert reaper.reap(project, dry_run=False) == []
    what(bench, standby)
    (reaped,) = reaper.reap(project, dry_run=False)
    assert (reaped.id, reaped.error) == (one.id, "")
    until(lambda: instance(bench, one)["State"]["Name"] == "terminated")
    assert states(bench) == {}
    reaper.reap(project, dry_run=False)  # for its security group: the run is not over


def test_an_instance_on_standby_is_not_an_environment(bench: Bench) -> None:
    """It runs while it is renewed, but can't be extended, kept or promoted, and runs no command."""
    one = bring_up(bench)
    bench.account.tell("times", root=30.0)
    assert bench.lifecycle.keep_machine(one)
    standby = bench.ledger.get(one.id)
    provider = providers.load("ec2")
    assert bench.lifecycle.status(standby).state == "gone"
    for act in (
        lambda: provider.extend(standby, None),
        lambda: provider.keep(standby),
        lambda: provider.run(standby, ["true"], timeout=5),
    ):
        with pytest.raises(EnvironmentGoneError, match="is on standby for the next"):
            act()
    bench.lifecycle.destroy(standby)
    assert states(bench) == {}


@pytest.mark.parametrize(
    "more", ["count = 2", "spot = true", 'volumes = { "/dev/sdf" = 8 }', "standby-ttl = 3"]
)
def test_a_template_whose_instance_cannot_be_kept_is_refused(tmp_path: Path, more: str) -> None:
    """The error comes when the configuration is read, and names the template."""
    text = '[images.app]\nprovider = "ec2"\nreference = "ami-0123"\n'
    text += f'[templates.web]\nimage = "app"\nstandby = 1\n{more}\n'
    (tmp_path / "ephemeral.toml").write_text(text)
    with pytest.raises(Exception, match=r"templates\.web.*standby"):
        config.load(tmp_path / "ephemeral.toml")


def test_the_next_run_uses_the_instance_of_the_last(bench: Bench) -> None:
    """Two runs of pytest use the same instance, and ``down --all`` terminates it."""
    project = Project(bench)
    configuration = project.folder / "ephemeral.toml"
    configuration.write_text(configuration.read_text() + "standby = 1\n")
    bench.account.asked("RunInstances")
    done = project.run("pytest", "--ephemeral-env", "test_suite.py::test_it_answers")
    assert "its machine is renewed, and kept on standby for the next" in done.stdout
    (first,) = project.json("list")["environments"]
    assert first["state"] == "standby"
    ids = [first["handle"]["instances"]]
    waiter = bench.account.ec2.get_waiter("instance_stopped")
    waiter.wait(InstanceIds=ids, WaiterConfig={"Delay": 1})
    project.run("pytest", "--ephemeral-env", "test_suite.py::test_it_answers")
    assert len(bench.account.asked("RunInstances")) == 3  # two are of the bake
    (second,) = project.json("list")["environments"]
    assert second["handle"]["instances"] == ids[0]
    project.run("down", "--all")
    until(lambda: is_gone(bench))
