"""A promoted local environment runs past its expiry and the end of its owner."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support.plugin_project import PluginProject, answers, make_project
from support.waiting import until

PROMOTION = """
[promotion.production]
dns = "hosts"
record = "app.example.test"
file = "hosts"
drain = "100ms"
keep-old = "100ms"
"""


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PluginProject]:
    """A project with a small application and a production name; it must leave no traces."""
    made = make_project(tmp_path, monkeypatch, tmp_path_factory)
    made.configure((tmp_path / "ephemeral.toml").read_text() + PROMOTION)
    yield made
    made.end_production()


def run(project: PluginProject, *arguments: str, status: int = 0) -> str:
    """Run a command, and return its output."""
    return project.command(*arguments, status=status).stdout


def record(project: PluginProject, id: str) -> Path:
    """The path of an environment's record in the ledger."""
    return project.folder / ".ephemeral" / "environments" / f"{id}.json"


def bring_up(project: PluginProject, ttl: str) -> tuple[str, str]:
    """Launch an environment, and return its id and its URL."""
    url = run(project, "up", project.one, "--ttl", ttl).strip()
    known: dict[str, Any] = {
        file.stem: file.read_text()
        for file in (project.folder / ".ephemeral" / "environments").glob("*.json")
    }
    return next(id for id, text in known.items() if url in text), url


def test_production_runs_until_the_next_promotion_retires_it(project: PluginProject) -> None:
    """The guard and ``reap`` do not end production; the next promotion does."""
    first, url = bring_up(project, "10s")  # a loaded machine takes seconds to promote
    over = time.monotonic() + 10
    run(project, "promote", first, "--to", "production")

    until(lambda: time.monotonic() > over + 0.5)
    assert answers(url)
    assert run(project, "reap") == ""
    assert answers(url)
    run(project, "down", first, status=1)

    second, next_url = bring_up(project, "60s")
    run(project, "promote", second, "--to", "production")

    until(lambda: not answers(url))
    until(lambda: not record(project, first).exists())
    assert answers(next_url)
    assert "app.example.test" in (project.folder / "hosts").read_text()


def test_an_unpromoted_environment_expires(project: PluginProject) -> None:
    """A control for the test above: without a promotion, the guard ends the environment."""
    id, url = bring_up(project, "1s")
    until(lambda: not answers(url))
    until(lambda: not record(project, id).exists())
