"""The lifecycle of an environment: recorded first, and cleaned up after every failure."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.environments.seeding import run_step
from pytest_ephemeral.errors import DestroyError, LaunchError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.tables import Template
from pytest_ephemeral.testing.bench import make_order
from support.hooks import RecordingHooks
from support.scripted_provider import TEMPLATE, Scripted, hooks, lifecycle, provider, told

__all__ = ["hooks", "lifecycle", "provider", "told"]


def replaced(template: Template, **changes: Any) -> Template:
    return msgspec.structs.replace(template, **changes)


def test_an_environment_is_launched_and_destroyed(
    lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks, told: list[Progress]
) -> None:
    """It is recorded while it is up, the hooks are called, and nothing is left afterwards."""
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
    """When the provider is called, the ledger already has the record with all labels."""
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
    """While the provider destroys the environment, its record has the state ``destroying``."""
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
    """Its resources and its record are removed, and no hook is called."""
    provider.fails[step] = LaunchError("out of capacity")

    with pytest.raises(LaunchError, match="out of capacity"):
        lifecycle.bring_up(TEMPLATE)

    assert provider.exists == set()
    assert lifecycle.project.ledger.entries() == []
    assert hooks.calls == []


def test_an_interrupted_launch_is_cleaned_up(lifecycle: Lifecycle, provider: Scripted) -> None:
    """After ``KeyboardInterrupt``, resources and record are removed as after an error."""

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
    """The launch error is raised, and the record stays for a later ``reap``."""
    provider.fails = {"launch": LaunchError("no disk"), "destroy": DestroyError("it hangs")}

    with pytest.raises(LaunchError, match="no disk") as caught:
        lifecycle.bring_up(TEMPLATE)

    assert caught.value.__notes__ == ["it hangs"]
    assert len(lifecycle.project.ledger.entries()) == 1


def test_a_failed_destroy_is_reported_as_leaked(
    lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks
) -> None:
    """The error is raised, the hook receives the outcome ``leaked``, and the record stays."""
    up = lifecycle.bring_up(TEMPLATE)
    provider.fails["destroy"] = DestroyError("it hangs")

    with pytest.raises(DestroyError, match="it hangs"):
        lifecycle.destroy(up.environment)

    assert hooks.calls[-1][1]["outcome"] == "leaked"
    assert [one.state for one in lifecycle.project.ledger.entries()] == ["destroying"]


def test_secrets_reach_the_provider_but_no_record(
    lifecycle: Lifecycle, provider: Scripted, tmp_path: Path
) -> None:
    """Only the order has the value; the ledger has the reference."""
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
    """The message names template, key and variable, and the provider is not called."""
    monkeypatch.delenv("LIFECYCLE_KEY")

    with pytest.raises(
        Exception, match=r"templates\.staging\.env\.KEY.*LIFECYCLE_KEY, which is not set"
    ):
        lifecycle.bring_up(TEMPLATE)

    assert provider.orders == []
    assert lifecycle.project.ledger.entries() == []


def test_a_failing_seed_fails_the_launch(lifecycle: Lifecycle, provider: Scripted) -> None:
    """The error has its exit status and masked output, and the environment is destroyed."""
    provider.seed_exit = 7

    with pytest.raises(LaunchError, match=r"(?s)exited with status 7: load.*no table; key \*\*\*"):
        lifecycle.bring_up(replaced(TEMPLATE, seed="load"))

    assert provider.exists == set()


@pytest.mark.parametrize("key", ["seed", "reset"])
def test_a_step_stops_at_its_first_failing_command(
    provider: Scripted, key: str, tmp_path: Path
) -> None:
    """Otherwise, a later command that succeeds would hide the failure."""

    def run(environment: Environment, argv: Sequence[str], **_: Any) -> Any:
        return subprocess.run(argv, capture_output=True, text=True, check=False)

    provider.run = run
    order = make_order(TEMPLATE, None)
    command = f"echo one >{tmp_path}/said\nfalse\necho two >>{tmp_path}/said"
    with pytest.raises(LaunchError, match=f"the {key} of .* exited with status 1"):
        run_step(key, order.environment, provider, command, ())
    assert (tmp_path / "said").read_text() == "one\n"


def test_the_seed_runs_once_after_readiness(lifecycle: Lifecycle, provider: Scripted) -> None:
    """It runs when the environment is ready, and its duration is recorded."""
    up = lifecycle.bring_up(replaced(TEMPLATE, seed="load"))

    assert provider.calls == ["launch", "status", "run"]
    assert "seed" in up.seconds


def test_a_hook_can_modify_the_template(
    lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks
) -> None:
    """The template that the hook returns is launched and recorded."""
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
    """The template is not launched without the changes that the hook should make."""
    hooks.modify = modify

    with pytest.raises(LaunchError, match=message):
        lifecycle.bring_up(TEMPLATE)

    assert provider.orders == []


def test_failing_notification_hooks_cause_warnings(
    lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks, told: list[Progress]
) -> None:
    """Launch and removal succeed, and each failed hook is reported as a warning."""
    hooks.broken = True

    lifecycle.destroy(lifecycle.bring_up(TEMPLATE).environment)

    warnings = [one.text for one in told if one.phase == "warning"]
    assert warnings[0] == "pytest_ephemeral_environment_ready failed: ValueError: no route to chat"
    assert len(warnings) == 3
