"""The lifecycle of an environment: kept, expired, extended and removed."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from pytest_ephemeral import providers
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.errors import DestroyError
from pytest_ephemeral.models import Environment
from support.hooks import RecordingHooks
from support.scripted_provider import TEMPLATE, Scripted, hooks, lifecycle, provider, told

__all__ = ["hooks", "lifecycle", "provider", "told"]


def test_keep_is_recorded(lifecycle: Lifecycle, provider: Scripted, hooks: RecordingHooks) -> None:
    """So ``reap`` knows that the environment outlives its owner."""
    kept = lifecycle.keep(lifecycle.bring_up(TEMPLATE).environment)

    assert kept.kept
    assert lifecycle.project.ledger.get(kept.id).kept
    assert hooks.calls[-1][1]["outcome"] == "kept"


def test_the_status_of_an_expired_environment_mentions_its_ttl(
    lifecycle: Lifecycle, provider: Scripted
) -> None:
    """So the user learns why the environment is gone."""
    environment = lifecycle.bring_up(TEMPLATE).environment
    provider.exists.clear()
    past = environment.created_at - timedelta(seconds=1)
    expired = msgspec.structs.replace(
        environment, created_at=past - timedelta(hours=2), expires_at=past
    )

    assert "its ttl (2h) ran out" in lifecycle.status(expired).detail


def test_extend_updates_provider_and_record(lifecycle: Lifecycle, provider: Scripted) -> None:
    """The record must not have a later expiry than the environment itself."""
    environment = lifecycle.bring_up(TEMPLATE).environment
    later = datetime.now(UTC) + timedelta(days=1)

    lifecycle.extend(environment, later)

    assert provider.calls[-1] == "extend"
    assert lifecycle.project.ledger.get(environment.id).expires_at == later


def test_leaving_a_removal_reports_destroying_once(
    lifecycle: Lifecycle, provider: Scripted
) -> None:
    """The hooks are not called again at its end, and the record stays until then."""
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
    """The hooks have received the final outcome already."""
    environment = lifecycle.bring_up(TEMPLATE).environment
    if outcome == "leaked":
        provider.fails["destroy"] = DestroyError("access denied")
    with suppress(DestroyError):
        lifecycle.destroy(environment)

    lifecycle.leave(environment)

    stopped = [said for event, said in lifecycle.hooks.calls if event == "environment_stopped"]
    assert [said["outcome"] for said in stopped] == [outcome]


def test_a_refused_removal_is_recorded(lifecycle: Lifecycle, provider: Scripted) -> None:
    """So the next run and ``list`` can report why the environment is left."""
    environment = lifecycle.bring_up(TEMPLATE).environment
    provider.fails["destroy"] = DestroyError("access denied")

    with pytest.raises(DestroyError, match="access denied"):
        lifecycle.destroy(environment)

    assert lifecycle.project.ledger.get(environment.id).problem == "access denied"
    stopped = [said for event, said in lifecycle.hooks.calls if event == "environment_stopped"]
    assert [said["outcome"] for said in stopped] == ["leaked"]


class StagedProvider(Scripted):
    """A provider that reports when its platform has accepted a removal."""

    def destroy_in_stages(self, environment: Environment, accepted: Callable[[], None]) -> None:
        self._called("terminate", environment.id)
        accepted()
        self.destroy(environment)


def test_accepted_is_called_once_the_platform_agrees(
    lifecycle: Lifecycle, provider: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is called neither before that nor if the platform refuses the removal."""
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
