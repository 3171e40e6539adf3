"""The lifecycle: record before act, nothing left of what failed, and nobody's word taken."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from pytest_ephemeral import providers
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.environments.seeding import run_step
from pytest_ephemeral.errors import DestroyError, LaunchError
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Order, Owned, Status
from pytest_ephemeral.store.directory import DirectoryStore
from pytest_ephemeral.tables import Template
from pytest_ephemeral.testing.bench import make_order
from support.hooks import RecordingHooks

TEMPLATE = Template(name="staging", provider="scripted", env={"KEY": "{env:LIFECYCLE_KEY}"})


class Scripted:
    """A provider that keeps count of what exists, and fails where it is told to."""

    name = "scripted"
    forwards_ports = False

    def __init__(self) -> None:
        self.exists: set[str] = set()
        self.orders: list[Order] = []
        self.fails: dict[str, Exception] = {}
        self.seed_exit = 0
        self.calls: list[str] = []
        self.before: Callable[[str, str], None] = lambda call, id: None

    def _called(self, call: str, id: str) -> None:
        self.calls.append(call)
        self.before(call, id)
        if call in self.fails:
            raise self.fails[call]

    def launch(self, order: Order) -> Environment:
        self.orders.append(order)
        self.exists.add(order.environment.id)
        self._called("launch", order.environment.id)
        return msgspec.structs.replace(
            order.environment, url="http://127.0.0.1:1/", handle={"thing": "1"}
        )

    def status(self, environment: Environment) -> Status:
        self._called("status", environment.id)
        return Status("running" if environment.id in self.exists else "gone")

    def run(self, environment, argv, *, timeout):
        self._called("run", environment.id)
        said = f"no table; key {self.orders[-1].variables['KEY']}\n"
        return subprocess.CompletedProcess(argv, self.seed_exit, "seeding\n", said)

    def logs(self, environment, *, since=None, tail=None):
        return "hello\n"

    def keep(self, environment: Environment) -> None:
        self._called("keep", environment.id)

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        self._called("extend", environment.id)

    def destroy(self, environment: Environment) -> None:
        self._called("destroy", environment.id)
        self.exists.discard(environment.id)

    def list_owned(self):
        return (Owned(id, {}) for id in self.exists)


@pytest.fixture
def provider(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    """The scripted provider, loaded by its name as any other."""
    provider = Scripted()
    monkeypatch.setattr(providers, "load", lambda name: provider)
    monkeypatch.setenv("LIFECYCLE_KEY", "hunter22")
    return provider


@pytest.fixture
def hooks() -> RecordingHooks:
    return RecordingHooks()


@pytest.fixture
def told() -> list[Progress]:
    return []


@pytest.fixture
def lifecycle(tmp_path: Path, hooks: RecordingHooks, told: list[Progress]) -> Lifecycle:
    store = DirectoryStore(tmp_path / "store")
    project: Any = SimpleNamespace(
        ledger=Ledger(store), store=store, config=SimpleNamespace(root=Path())
    )
    return Lifecycle(project, hooks, run="run1", say=told.append)


def replaced(template: Template, **changes: Any) -> Template:
    return msgspec.structs.replace(template, **changes)


def test_an_environment_is_launched_and_destroyed(
    lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks, told: list[Progress]
) -> None:
    """It is recorded while it is up, the hooks hear of it, and nothing is left afterwards."""
    up = lifecycle.bring_up(TEMPLATE)

    assert lifecycle.project.ledger.get(up.environment.id) == up.environment
    assert up.environment.state == "ready"
    assert set(up.seconds) == {"bake", "launch", "ready"}
    assert [event for event, _ in hooks.calls] == ["environment_ready", "publish_url"]
    assert hooks.calls[1][1]["url"] == "http://127.0.0.1:1/"

    lifecycle.destroy(up.environment)

    assert lifecycle.project.ledger.entries() == []
    assert provider.exists == set()
    assert hooks.calls[-1] == (
        "environment_stopped",
        {"environment": up.environment, "outcome": "destroyed", "config": None},
    )
    phases = [one.phase for one in told]
    assert phases == ["bake", "launch", "ready", "up", "destroy", "destroyed"]


def test_the_record_is_created_before_the_launch(lifecycle: Lifecycle, provider: Scripted) -> None:
    """When the provider is asked for something, the ledger knows of it already, labels and all."""
    recorded: list[Environment] = []
    provider.before = lambda call, id: (
        recorded.append(lifecycle.project.ledger.get(id)) if call == "launch" else None
    )

    up = lifecycle.bring_up(TEMPLATE)

    (record,) = recorded
    assert (record.id, record.state) == (up.environment.id, "launching")
    assert record.labels["pytest-ephemeral.id"] == record.id
    assert record.labels["pytest-ephemeral.run"] == "run1"
    assert provider.orders[0].environment == record


def test_the_record_is_removed_after_the_environment(
    lifecycle: Lifecycle, provider: Scripted
) -> None:
    """While the provider is destroying, the record is still there, and says so."""
    up = lifecycle.bring_up(TEMPLATE)
    states: list[str] = []
    provider.before = lambda call, id: (
        states.append(lifecycle.project.ledger.get(id).state) if call == "destroy" else None
    )

    lifecycle.destroy(up.environment)

    assert states == ["destroying"]


@pytest.mark.parametrize("step", ["launch", "status"])
def test_a_failed_launch_is_cleaned_up(
    lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks, step: str
) -> None:
    """Whatever had been made is gone again, and no hook was told of it."""
    provider.fails[step] = LaunchError("out of capacity")

    with pytest.raises(LaunchError, match="out of capacity"):
        lifecycle.bring_up(TEMPLATE)

    assert provider.exists == set()
    assert lifecycle.project.ledger.entries() == []
    assert hooks.calls == []


def test_an_interrupted_launch_is_cleaned_up(lifecycle: Lifecycle, provider: Scripted) -> None:
    """An interrupt is no exception to that."""

    def interrupt(call: str, id: str) -> None:
        if call == "status":
            raise KeyboardInterrupt

    provider.before = interrupt

    with pytest.raises(KeyboardInterrupt):
        lifecycle.bring_up(TEMPLATE)

    assert provider.exists == set()
    assert lifecycle.project.ledger.entries() == []


def test_a_cleanup_failure_is_noted_on_the_launch_error(
    lifecycle: Lifecycle, provider: Scripted
) -> None:
    """Both are in the error, and the record stays for reap."""
    provider.fails = {"launch": LaunchError("no disk"), "destroy": DestroyError("it hangs")}

    with pytest.raises(LaunchError, match="no disk") as caught:
        lifecycle.bring_up(TEMPLATE)

    assert caught.value.__notes__ == ["it hangs"]
    assert len(lifecycle.project.ledger.entries()) == 1


def test_a_failed_destroy_is_reported_as_leaked(
    lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks
) -> None:
    """It raises, the hooks hear that it leaked, and the record stays."""
    up = lifecycle.bring_up(TEMPLATE)
    provider.fails["destroy"] = DestroyError("it hangs")

    with pytest.raises(DestroyError, match="it hangs"):
        lifecycle.destroy(up.environment)

    assert hooks.calls[-1][1]["outcome"] == "leaked"
    assert [one.state for one in lifecycle.project.ledger.entries()] == ["destroying"]


def test_secrets_reach_the_provider_but_no_record(
    lifecycle: Lifecycle, provider: Scripted, tmp_path: Path
) -> None:
    """The value is in the order alone; the ledger holds the reference."""
    lifecycle.bring_up(TEMPLATE)

    (order,) = provider.orders
    assert order.variables == {"KEY": "hunter22"}
    assert order.secrets == ("hunter22",)
    records = b"".join(file.read_bytes() for file in tmp_path.rglob("*") if file.is_file())
    assert b"hunter22" not in records
    assert b"{env:LIFECYCLE_KEY}" in records


def test_an_unset_variable_prevents_the_launch(
    lifecycle: Lifecycle, provider: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message names template, key and variable; nothing was asked for."""
    monkeypatch.delenv("LIFECYCLE_KEY")

    with pytest.raises(
        Exception, match=r"templates\.staging\.env\.KEY.*LIFECYCLE_KEY, which is not set"
    ):
        lifecycle.bring_up(TEMPLATE)

    assert provider.orders == []
    assert lifecycle.project.ledger.entries() == []


def test_a_failing_seed_fails_the_launch(lifecycle: Lifecycle, provider: Scripted) -> None:
    """With its exit status and what it said, secrets masked; the environment is gone."""
    provider.seed_exit = 7

    with pytest.raises(LaunchError, match=r"(?s)exited with status 7: load.*no table; key \*\*\*"):
        lifecycle.bring_up(replaced(TEMPLATE, seed="load"))

    assert provider.exists == set()


@pytest.mark.parametrize("key", ["seed", "reset"])
def test_a_step_stops_at_its_first_failing_command(
    provider: Scripted, key: str, tmp_path: Path
) -> None:
    """What comes after it may hide it: a dump of half a database is a dump."""

    def run(environment: Environment, argv: Sequence[str], **_: Any) -> Any:
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    provider.run = run
    order = make_order(TEMPLATE, None)
    command = f"echo one >{tmp_path}/said\nfalse\necho two >>{tmp_path}/said"
    with pytest.raises(LaunchError, match=f"the {key} of .* exited with status 1"):
        run_step(key, order.environment, provider, command, ())
    assert (tmp_path / "said").read_text() == "one\n"


def test_the_seed_runs_once_after_readiness(lifecycle: Lifecycle, provider: Scripted) -> None:
    """After readiness, before anyone is told."""
    up = lifecycle.bring_up(replaced(TEMPLATE, seed="load"))

    assert provider.calls == ["launch", "status", "run"]
    assert "seed" in up.seconds


def test_a_hook_can_modify_the_template(
    lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks
) -> None:
    """What the hook returns is what is brought up and recorded."""
    hooks.modify = lambda template: replaced(template, env={"KEY": "changed"})

    up = lifecycle.bring_up(TEMPLATE)

    assert provider.orders[0].variables == {"KEY": "changed"}
    assert lifecycle.project.ledger.record(up.environment.id).template["env"]["KEY"] == "changed"


@pytest.mark.parametrize(
    ("modify", "message"),
    [
        (lambda template: "staging", "returned str for 'staging': return a Template, or None"),
        (lambda template: 1 / 0, "failed for 'staging': ZeroDivisionError"),
    ],
)
def test_a_failing_template_hook_prevents_the_launch(
    lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks, modify: Any, message: str
) -> None:
    """A template nobody meant is not brought up."""
    hooks.modify = modify

    with pytest.raises(LaunchError, match=message):
        lifecycle.bring_up(TEMPLATE)

    assert provider.orders == []


def test_failing_notification_hooks_cause_warnings(
    lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks, told: list[Progress]
) -> None:
    """Up and down all the same; what went wrong is told."""
    hooks.broken = True

    lifecycle.destroy(lifecycle.bring_up(TEMPLATE).environment)

    warnings = [one.text for one in told if one.phase == "warning"]
    assert warnings[0] == "pytest_ephemeral_environment_ready failed: ValueError: no route to chat"
    assert len(warnings) == 3


def test_keep_is_recorded(lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks) -> None:
    """Whoever reaps sees that its owner's end is not its own."""
    kept = lifecycle.keep(lifecycle.bring_up(TEMPLATE).environment)

    assert kept.kept
    assert lifecycle.project.ledger.get(kept.id).kept
    assert hooks.calls[-1][1]["outcome"] == "kept"


def test_the_status_of_an_expired_environment_mentions_its_ttl(
    lifecycle: Lifecycle, provider: Scripted
) -> None:
    """Whoever finds it gone is not left to guess."""
    environment = lifecycle.bring_up(TEMPLATE).environment
    provider.exists.clear()
    past = environment.created_at - timedelta(seconds=1)
    expired = msgspec.structs.replace(
        environment, created_at=past - timedelta(hours=2), expires_at=past
    )

    assert "its ttl (2h) ran out" in lifecycle.status(expired).detail


def test_extend_updates_provider_and_record(lifecycle: Lifecycle, provider: Scripted) -> None:
    """Both, in that order: a record must not promise what the thing does not keep."""
    environment = lifecycle.bring_up(TEMPLATE).environment
    later = datetime.now(UTC) + timedelta(days=1)

    lifecycle.extend(environment, later)

    assert provider.calls[-1] == "extend"
    assert lifecycle.project.ledger.get(environment.id).expires_at == later


def test_leaving_a_removal_reports_destroying_once(
    lifecycle: Lifecycle, provider: Scripted
) -> None:
    """That it goes on, and never that it is done; its record stays until then."""
    environment = lifecycle.bring_up(TEMPLATE).environment
    going_on, go_on = threading.Event(), threading.Event()

    def slowly(call: str, id: str) -> None:
        if call == "destroy":
            going_on.set()
            go_on.wait(20)

    provider.before = slowly
    destroying = threading.Thread(target=lifecycle.destroy, args=[environment])
    destroying.start()
    assert going_on.wait(20)

    lifecycle.leave(environment)
    assert lifecycle.project.ledger.get(environment.id).state == "destroying"
    go_on.set()
    destroying.join(20)

    stopped = [said for event, said in lifecycle.hooks.calls if event == "environment_stopped"]
    assert [said["outcome"] for said in stopped] == ["destroying"]
    assert lifecycle.project.ledger.entries() == []


@pytest.mark.parametrize("outcome", ["destroyed", "leaked"])
def test_leaving_a_finished_removal_reports_nothing(
    lifecycle: Lifecycle, provider: Scripted, outcome: str
) -> None:
    """Whoever would have left it comes too late to say so."""
    environment = lifecycle.bring_up(TEMPLATE).environment
    if outcome == "leaked":
        provider.fails["destroy"] = DestroyError("access denied")
    with suppress(DestroyError):
        lifecycle.destroy(environment)

    lifecycle.leave(environment)

    stopped = [said for event, said in lifecycle.hooks.calls if event == "environment_stopped"]
    assert [said["outcome"] for said in stopped] == [outcome]


def test_a_refused_removal_is_recorded(lifecycle: Lifecycle, provider: Scripted) -> None:
    """So that the next run, and `list`, can say why something is left."""
    environment = lifecycle.bring_up(TEMPLATE).environment
    provider.fails["destroy"] = DestroyError("access denied")

    with pytest.raises(DestroyError, match="access denied"):
        lifecycle.destroy(environment)

    assert lifecycle.project.ledger.get(environment.id).problem == "access denied"
    stopped = [said for event, said in lifecycle.hooks.calls if event == "environment_stopped"]
    assert [said["outcome"] for said in stopped] == ["leaked"]


class StagedProvider(Scripted):
    """A provider that says when its platform has accepted a removal."""

    def destroy_in_stages(self, environment: Environment, accepted: Callable[[], None]) -> None:
        self._called("terminate", environment.id)
        accepted()
        self.destroy(environment)


def test_accepted_is_called_once_the_platform_agrees(
    lifecycle: Lifecycle, provider: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not before the platform has agreed, nor when it refuses."""
    staged = StagedProvider()
    monkeypatch.setattr(providers, "load", lambda name: staged)
    environment = lifecycle.bring_up(TEMPLATE).environment
    staged.fails["terminate"] = DestroyError("access denied")
    with pytest.raises(DestroyError):
        lifecycle.destroy(environment, accepted=lambda: staged.calls.append("accepted"))
    assert "accepted" not in staged.calls

    del staged.fails["terminate"]
    lifecycle.destroy(environment, accepted=lambda: staged.calls.append("accepted"))

    assert staged.calls[-3:] == ["terminate", "accepted", "destroy"]
