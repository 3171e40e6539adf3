"""The hooks: events of environments, and a way to change templates.

This module does not import pytest. In a test run, pytest's plugin manager calls the hooks, so a
conftest.py can implement them. On the command line, a plugin manager with the plugins of the
entry-point group ``pytest_ephemeral`` calls them.

All hooks run in pytest's own process, one at a time, in a background thread. With pytest-xdist,
that process is the controller. A hook in a conftest.py that only workers load is called in one
worker. Every hook may also ask for ``config``: pytest's configuration, or None on the command line.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import pluggy

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment, Outcome
    from pytest_ephemeral.tables import Template

hookspec = pluggy.HookspecMarker("pytest")

#: The names of all hooks below.
NAMES: Final = (
    "pytest_ephemeral_modify_template",
    "pytest_ephemeral_environment_ready",
    "pytest_ephemeral_publish_url",
    "pytest_ephemeral_environment_stopped",
)


@hookspec(firstresult=True)
def pytest_ephemeral_modify_template(template: Template, config: Any) -> Template | None:
    """Change a template before it is used: return the new one, or None to keep it."""


@hookspec
def pytest_ephemeral_environment_ready(environment: Environment, config: Any) -> None:
    """Called when an environment is ready and seeded, before a test uses it."""


@hookspec
def pytest_ephemeral_publish_url(environment: Environment, url: str, config: Any) -> None:
    """Called when an environment is up, to publish its URL."""


@hookspec
def pytest_ephemeral_environment_stopped(
    environment: Environment, outcome: Outcome, config: Any
) -> None:
    """Called when this run no longer uses an environment.

    Args:
        environment: Its last known state.
        outcome: ``destroyed``; ``destroying`` (cleanup continues in the background);
            ``kept`` (it is still up); ``died`` (it stopped by itself, and is destroyed);
            ``leaked`` (destroying it failed).
        config: pytest's configuration, or None.
    """
