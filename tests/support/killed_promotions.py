"""Promotions that are killed at some point, and what must hold afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pytest_ephemeral import labels
from pytest_ephemeral.promotion.journal import Journal
from support.promotion import V1, V2, Stage, install
from support.victims import exit_status_of


def die_at(folder: str, port: str, what: str, point: str) -> None:
    """Promote or roll back, and exit this process at a point."""

    def die(here: str) -> None:
        if here == point:
            os._exit(9)

    install(pytest.MonkeyPatch())
    promoter = Stage(Path(folder), int(port)).promoter(checkpoint=die)
    promoter.rollback() if what == "rollback" else promoter.promote(what)


def kill_at(stage: Stage, what: str, point: str) -> None:
    """Promote or roll back in another process, which exits at a point."""
    assert exit_status_of(die_at, str(stage.folder), str(stage.port), what, point) == 9


def check_promises(stage: Stage) -> str:
    """Check what must always hold; returns the environment that has the name."""
    [address] = stage.addresses()
    holder = {V1: "v1", V2: "v2"}[address]
    assert stage.provider_state(holder)["expires"] == labels.NEVER, "production would end itself"
    assert stage.get(holder).expires_at is None
    assert not stage.provider_state(holder)["ended"]
    assert len(stage.find_production()) <= 1, "two are believed to be production"
    current = Journal(stage.project.store, "production").head.current
    assert current is not None
    assert stage.provider_state(current.environment)["expires"] == labels.NEVER
    return holder
