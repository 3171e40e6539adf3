"""Which resources reap removes, in which account, and which it leaves alone."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import msgspec
import pytest

from aws.conftest import Bench
from aws.harness import COPIES, REGION
from aws.reaping import (
    DEAD,
    ELSEWHERE,
    FUTURE,
    PAST,
    bring_up,
    finish_test,
    is_up,
    launch_unrecorded,
    reap,
    retag,
)
from pytest_ephemeral import labels, providers
from pytest_ephemeral.environments import expiry, overdue, reaper
from pytest_ephemeral.errors import DestroyError, LaunchError, PromotionError
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.providers.ec2 import resources, security_groups, tags
from pytest_ephemeral.providers.ec2.provider import Ec2Provider
from pytest_ephemeral.providers.protocol import BakeJob
from support.waiting import until


@pytest.mark.parametrize("expires", ["yesterday", "", "2020-01-01T00:00:00", "never"])
def test_an_unreadable_expiry_tag_does_not_expire(bench: Bench, expires: str) -> None:
    """The value is no date, or has no time zone; the expiry is then unknown."""
    environment = launch_unrecorded(bench, expires)
    assert environment.id not in reap(bench)
    assert is_up(bench, environment)
    finish_test(bench, environment)


def test_a_fast_local_clock_reaps_nothing(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """The local clock is a day ahead of AWS's, by which the environment has another hour."""
    environment = launch_unrecorded(bench, FUTURE)

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(days=1)

    monkeypatch.setattr(overdue, "datetime", Ahead)
    monkeypatch.setattr(tags, "datetime", Ahead)
    assert environment.id not in reap(bench)
    finish_test(bench, environment)


def test_reap_leaves_what_was_created_after_it_listed(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By AWS's clock, it was launched after the listing began, so its tags do not matter."""
    environment = launch_unrecorded(bench)
    provider = providers.load("ec2")
    assert environment.id in {one.id for one in provider.list_owned()}
    earlier = datetime.now(UTC) - timedelta(minutes=10)
    monkeypatch.setattr(resources, "read_clock", lambda _: earlier)
    assert environment.id not in {one.id for one in provider.list_owned()}
    finish_test(bench, environment)


def test_foreign_resources_with_copied_tags_are_not_reaped(bench: Bench) -> None:
    """They are an instance that someone else launched, and a group with another name."""
    environment = bring_up(bench)
    ec2 = bench.account.ec2
    marks = {**environment.labels, labels.EXPIRES: PAST, tags.PROCESS: DEAD}
    copied = [{"Key": key, "Value": value} for key, value in marks.items()]
    foreign = ec2.run_instances(
        ImageId=bench.account.base,
        MinCount=1,
        MaxCount=1,
        TagSpecifications=[{"ResourceType": "instance", "Tags": copied}],
    )["Instances"][0]["InstanceId"]
    theirs = ec2.create_security_group(
        GroupName="theirs",
        Description="theirs",
        TagSpecifications=[{"ResourceType": "security-group", "Tags": copied}],
    )["GroupId"]
    bench.lifecycle.destroy(environment)  # which waits only for its own instance
    assert reap(bench) == {}
    state = ec2.describe_instances(InstanceIds=[foreign])["Reservations"][0]["Instances"][0]
    assert state["State"]["Name"] == "running"
    ec2.terminate_instances(InstanceIds=[foreign])
    ec2.delete_security_group(GroupId=theirs)
    until(lambda: not any(foreign in one for one in bench.account.left()))


@pytest.mark.parametrize(
    ("instance", "ours"),
    [
        ({"ClientToken": tags.client_token("web-1", "0", "t3.small")}, True),
        ({"ClientToken": tags.client_token("web-2", "0", "t3.small")}, False),
        ({}, False),
        ({"ClientToken": "of-the-request", "InstanceLifecycle": "spot"}, True),
        ({"InstanceLifecycle": "spot", "aws:autoscaling:groupName": "theirs"}, False),
        ({"InstanceLifecycle": "spot", "aws:ec2:fleet-id": "theirs"}, False),
    ],
)
def test_an_instance_is_ours_by_the_token_of_its_launch(
    instance: dict[str, str], ours: bool
) -> None:
    """A spot instance has another token: it is ours unless tags of an AWS service mark it."""
    facts = {key: text for key, text in instance.items() if not key.startswith("aws:")}
    marks = {key: text for key, text in instance.items() if key.startswith("aws:")}
    tagged = {**facts, "Tags": tags.to_tags({labels.ID: "web-1", **marks})}
    assert tags.has_our_token(tagged) is ours


@pytest.mark.parametrize("until_when", [None, datetime.now(UTC) + timedelta(hours=3)])
def test_reap_spares_an_instance_extended_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, until_when: datetime | None
) -> None:
    """It has no record. Its tags change between the listing and the removal."""
    environment = launch_unrecorded(bench)
    sweep = Ec2Provider.sweep_all

    def late(self: Any, owned: Sequence[Any], still: Any) -> Any:
        self.extend(environment, until_when)
        return sweep(self, owned, still)

    monkeypatch.setattr(Ec2Provider, "sweep_all", late)
    found = reap(bench)[environment.id]
    assert (found.spared, found.error) == (True, "")
    assert is_up(bench, environment)
    providers.load("ec2").extend(environment, datetime.now(UTC))
    finish_test(bench, environment)


def test_reap_spares_an_environment_promoted_meanwhile(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its expiry is removed after the listing. An environment being destroyed is not promoted."""
    environment, other = bring_up(bench), bring_up(bench)
    for one in (environment, other):
        bench.ledger.change(one.id, expires_at=datetime.now(UTC) - timedelta(hours=1))
    mark_destroying = Ledger.mark_destroying

    def late(self: Ledger, id: str, still: Any) -> Any:
        if id == environment.id:
            expiry.disarm(self, environment)
        return mark_destroying(self, id, still)

    monkeypatch.setattr(Ledger, "mark_destroying", late)
    found = reap(bench)
    assert (found[environment.id].spared, found[other.id].spared) == (True, False)
    assert is_up(bench, environment)
    bench.ledger.change(environment.id, state="destroying")
    with pytest.raises(PromotionError, match="being destroyed"):
        expiry.disarm(bench.ledger, environment)
    bench.lifecycle.destroy(environment)


def test_two_reaps_at_once_do_not_fail_each_other(bench: Bench) -> None:
    """Both find the same environments, with and without records, and all are removed."""
    bench.bake()
    with ThreadPoolExecutor(6) as pool:
        made = list(pool.map(lambda _: bring_up(bench), range(6)))
    for number, environment in enumerate(made):
        if number % 2:
            bench.ledger.remove(environment.id)
            retag(bench, environment, PAST)
        else:
            bench.ledger.change(environment.id, expires_at=datetime.now(UTC))
    with ThreadPoolExecutor(2) as pool:
        both = list(pool.map(lambda _: reap(bench), range(2)))
    assert {one.error for found in both for one in found.values()} == {""}
    assert set().union(*both) >= {environment.id for environment in made}
    assert bench.account.left() == []


def test_a_bake_on_another_machine_is_reaped_only_when_overdue(
    bench: Bench, tmp_path: Path
) -> None:
    """Its process can't be checked from here, so its group remains until it expires."""
    key = "sha256:" + "ab" * 32
    made = {}
    for name, process, expires in (
        ("elsewhere", ELSEWHERE, FUTURE),
        ("overdue", ELSEWHERE, PAST),
        ("dead", DEAD, FUTURE),
    ):
        id = f"bake-{name}"
        marks = {labels.ID: id, labels.EXPIRES: expires, tags.PROCESS: process, tags.KEY: key}
        made[name] = security_groups.ensure(bench.account.ec2, id, tags.to_tags(marks), None, ())

    def left() -> set[str]:
        found = bench.account.ec2.describe_security_groups()["SecurityGroups"]
        return {name for name, id in made.items() if id in {one["GroupId"] for one in found}}

    job = BakeJob(bench.recipe(), key, tmp_path, None, tmp_path / "log", bench.messages.append)
    providers.load("ec2").discard(job)  # type: ignore[attr-defined]
    assert left() == {"elsewhere", "overdue"}
    assert set(reap(bench)) == {"bake-overdue"}
    assert left() == {"elsewhere"}
    bench.account.ec2.delete_security_group(GroupId=made["elsewhere"])


def test_reap_reads_all_pages_of_a_listing(bench: Bench) -> None:
    """The server lists two groups in each page, and all five are found."""
    bench.account.tell("times", page=2)
    try:
        for number in range(5):
            marks = {labels.ID: f"bake-{number}", tags.PROCESS: DEAD, labels.EXPIRES: FUTURE}
            pairs = tags.to_tags(marks)
            security_groups.ensure(bench.account.ec2, f"bake-{number}", pairs, None, ())
        assert len(reap(bench)) == 5
    finally:
        bench.account.tell("times", page=0)
    assert bench.account.left() == []


def test_an_unreadable_account_is_reported(bench: Bench) -> None:
    """An empty listing would not prove that nothing remains, so this is an error."""
    bench.account.fault("DescribeInstances", "UnauthorizedOperation", times=9)
    found = reaper.reap(bench, dry_run=True)  # type: ignore[arg-type]
    with pytest.raises(DestroyError, match=r"an unknown environment \(ec2\).*may not do this"):
        reaper.raise_leftovers(found)


def test_reap_searches_all_configured_regions(bench: Bench) -> None:
    """Templates, recipes and records name them. A launch that fails in one leaves nothing."""
    bench.keys["copy_to"] = [COPIES]
    bench.bake()
    there: dict[str, Any] = {"region": COPIES, "subnet": [], "ingress": ["10.0.0.0/8"]}
    away = boto3.client("ec2", region_name=COPIES)
    bench.account.fault("RunInstances", "InsufficientInstanceCapacity")
    with pytest.raises(LaunchError, match="InsufficientInstanceCapacity"):
        bring_up(bench, **there)
    assert bench.account.left() == []
    environment = bring_up(bench, **there)
    bench.ledger.remove(environment.id)
    tags = [{"Key": labels.EXPIRES, "Value": PAST}]
    away.create_tags(Resources=[environment.handle["instances"]], Tags=tags)
    assert environment.id not in reap(bench)
    bench.config.templates["away"] = bench.template(**there)
    assert environment.id in reap(bench)
    assert bench.account.left() == []
    assert providers.load("ec2").regions([bench.recipe(region=COPIES)]) == [REGION, COPIES]  # type: ignore[attr-defined]
    bench.images.prune(0, ())


def test_environments_of_a_run_share_a_security_group(bench: Bench) -> None:
    """Environments with equal ingress rules share a group; other rules have another group."""
    one, two, other = bring_up(bench), bring_up(bench), bring_up(bench, ingress=["10.0.0.0/8"])
    assert one.handle["group"] == two.handle["group"] != other.handle["group"]
    bench.lifecycle.destroy(one)
    assert len([name for name in bench.account.left() if "ingress" in name]) == 2
    bench.lifecycle.destroy(other)
    bench.lifecycle.keep(two)
    assert len([name for name in bench.account.left() if "ingress" in name]) == 1
    finish_test(bench, msgspec.structs.replace(two, kept=True))
    assert bench.account.left() == []


def test_a_deleted_security_group_is_created_again(bench: Bench) -> None:
    """Someone else deletes it between its lookup and the launch."""
    bench.bake()
    bench.account.fault("RunInstances", "InvalidGroup.NotFound")
    environment = bring_up(bench)
    bench.lifecycle.destroy(environment)
    assert bench.account.left() == []


def test_recovery_works_without_secrets_in_the_ledger(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The recorded request lacks its user data, yet the launched instance is found."""
    monkeypatch.setenv("REAPING_KEY", "hunter2hunter2")
    bench.bake()
    change = Ledger.change

    def dies(self: Ledger, id: str, **changes: Any) -> Any:
        if "instances" in changes.get("handle", {}):
            raise KeyboardInterrupt
        return change(self, id, **changes)

    monkeypatch.setattr(bench.lifecycle.__class__, "_abandon", lambda *_: None)
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "change", dies)
        with pytest.raises(KeyboardInterrupt):
            bring_up(bench, env={"KEY": "{env:REAPING_KEY}"})
    (environment,) = bench.ledger.entries()
    assert "request" in environment.handle
    assert "instances" not in environment.handle
    assert "hunter2" not in bench.store.read(f"environments/{environment.id}.json").data.decode()
    assert any(one.startswith("i-") for one in bench.account.left())
    bench.lifecycle.destroy(environment)
    assert bench.account.left() == []
