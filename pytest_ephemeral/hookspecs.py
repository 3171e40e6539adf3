"""The events anyone can listen to.

They stand in the core and import no pytest: inside pytest its own plugin manager calls them, so
a conftest.py hears them; on the command line one made from the entry-point group
``pytest_ephemeral`` does.

All of them run in pytest's own process, one at a time, in a background thread. With pytest-xdist
that is the controller, but for a conftest.py that only workers load: one worker calls it. All may
also ask for ``config``: pytest's configuration, None on the command line.
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
    """Change a template before it is used: return another one, or None to leave it."""


@hookspec
def pytest_ephemeral_environment_ready(environment: Environment, config: Any) -> None:
    """An environment has answered, and its seed has run; no test has used it yet."""


@hookspec
def pytest_ephemeral_publish_url(environment: Environment, url: str, config: Any) -> None:
    """Tell anyone who should know where the environment is, now that it is up."""


@hookspec
def pytest_ephemeral_environment_stopped(
    environment: Environment, outcome: Outcome, config: Any
) -> None:
    """An environment's life with this owner is over.

    Args:
        environment: As it last was.
        outcome: ``destroyed``; ``destroying`` (cleanup continues in the background);
            ``kept`` (it is still up); ``died`` (it stopped by itself, and is destroyed);
            ``leaked`` (destroying it failed).
        config: pytest's configuration, or None.
    """
