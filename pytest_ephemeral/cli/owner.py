"""Bring up an environment for one command, through an owner process.

However this process ends, the owner process continues until it has cleaned up.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pytest_ephemeral.broker.process import OwnerProcess
from pytest_ephemeral.broker.protocol import (
    ClientProcess,
    Finished,
    Key,
    Opened,
    ProgressEvent,
    Settings,
)
from pytest_ephemeral.cli.session import plugin_manager
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.errors import (
    ConfigurationError,
    DestroyError,
    EnvironmentDiedError,
    EphemeralError,
    OwnerLostError,
)
from pytest_ephemeral.hookspecs import NAMES

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment


#: Seconds to wait for the cleanup after an owner process that was killed.
_CLEANUP_TIME: Final = 30.0


class Lease:
    """An environment that is up while a command uses it.

    Attributes:
        environment: The environment.
        seconds: How many seconds each phase took, by phase; empty until ``lease`` has ended it.
    """

    def __init__(self, environment: Environment, owner: OwnerProcess) -> None:
        self.environment = environment
        self.seconds: dict[str, float] = {}
        self._owner = owner

    def keep(self) -> None:
        """Keep the environment up after this process has ended."""
        self._owner.client.keep(self.environment)


@contextmanager
def lease(
    template: str | None,
    config: Path | None,
    say: Callable[[Progress], None],
    *,
    ttl: float | None = None,
) -> Iterator[Lease]:
    """Bring up an environment, and destroy it after the block, unless it is kept.

    Args:
        template: A template's name; None for the default one.
        config: The configuration file; None for the nearest one.
        say: Called with each step of progress.
        ttl: The seconds after which it expires; None for its template's ``ttl``.

    Raises:
        EphemeralError: It could not be brought up, stopped by itself, or was not fully destroyed.
    """
    owner, listener, opened, finished = OwnerProcess(), _Console(say), None, Finished()
    try:
        opened = _open(owner, listener, Settings(template, config=config, ttl=ttl))
        name = template or opened.default or _the_default(opened.templates)
        held = Lease(owner.client.lease(Key(name, "session", ""), lambda: None), owner)
        try:
            yield held
        finally:
            finished = owner.client.finish(lambda: None)
            for one in finished.environments:
                held.seconds.update(one.seconds)
    except OwnerLostError:
        _clean_up(owner, opened)
        raise
    except BaseException:
        owner.interrupt()
        finished = _finish(owner)
        raise
    finally:
        owner.leave()
        _check_leaks(finished)
    _check_crashes(finished)


def _finish(owner: OwnerProcess) -> Finished:
    """After an error, end the run's environments, if the owner process still responds."""
    with suppress(EphemeralError):
        return owner.client.finish(lambda: None)
    return Finished()


def _check_leaks(finished: Finished) -> None:
    if leaked := [one.detail for one in finished.environments if one.state == "leaked"]:
        raise DestroyError("\n".join(leaked))


def _check_crashes(finished: Finished) -> None:
    if crashes := [one.problem for one in finished.environments if one.crashed]:
        raise EnvironmentDiedError("\n".join(crashes))


def _open(owner: OwnerProcess, listener: _Console, settings: Settings) -> Opened:
    owner.listen(listener, listener.hooks)
    taken = ClientProcess(dict(os.environ), tuple(sys.path), listener.hooks)
    return owner.open(settings._replace(start=Path.cwd()), taken)()


def _clean_up(owner: OwnerProcess, opened: Opened | None) -> None:
    """Have a new owner process clean up after one that was killed, and wait for it."""
    if opened is None:
        return
    with suppress(subprocess.TimeoutExpired):
        owner.replace(opened.store, opened.run).wait(_CLEANUP_TIME)


def _the_default(templates: Sequence[str]) -> str:
    if not templates:
        raise ConfigurationError("there are no templates: add a [templates.NAME] table")
    raise ConfigurationError(
        f"name one of the templates {', '.join(sorted(templates))}, or set default-template"
    )


class _Console:
    """The ``RunListener`` that reports progress and calls the hooks of installed plugins."""

    def __init__(self, say: Callable[[Progress], None]) -> None:
        self._say = say
        self._manager = plugin_manager()
        self.hooks: Mapping[str, Sequence[str]] = {
            "installed plugins": [
                name for name in NAMES if getattr(self._manager.hook, name).get_hookimpls()
            ]
        }

    def on_progress(self, event: ProgressEvent) -> None:
        phase: Any = event.phase
        self._say(Progress(event.subject, phase, event.text, event.seconds, event.live))

    def print(self, text: str) -> None:
        """See ``RunListener``. Prints on stderr, as stdout is for data."""
        print(text, file=sys.stderr, flush=True)

    def warn(self, text: str) -> None:
        self._say(Progress("pytest-ephemeral", "warning", text))

    def has_hook(self, name: str) -> bool:
        return name in self.hooks["installed plugins"]

    def call_hook(self, name: str, plugins: Sequence[str], arguments: Mapping[str, Any]) -> Any:  # noqa: ARG002
        return getattr(self._manager.hook, name)(**arguments, config=None)

    def on_owner_lost(self) -> None:
        """See ``RunListener``. The next request to the owner raises ``OwnerLostError``."""
        self.warn("the process that owns the environment was killed")
