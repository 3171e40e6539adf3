"""The backends of a broker: launch, inspect and destroy environments."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from pytest_ephemeral import providers
from pytest_ephemeral.broker import plain_url
from pytest_ephemeral.broker.entries import Ending
from pytest_ephemeral.broker.logs import LogFolder
from pytest_ephemeral.broker.protocol import Key, Settings
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.environments import readiness
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.errors import (
    ConfigurationError,
    EphemeralError,
    NothingMatchedError,
    UnverifiedDestroyError,
)
from pytest_ephemeral.models import Environment, Outcome
from pytest_ephemeral.providers.abilities import SupportsLastLogMark
from pytest_ephemeral.tables import Template

#: Seconds before the second and the third attempt to destroy, if the first one fails. The user
#: waits meanwhile.
RETRIES: Final = (0.5, 1.5)


class _Observer:
    """Inspects running environments, for both backends. All is empty without a project."""

    def __init__(self, lifecycle: Lifecycle | None) -> None:
        self._lifecycle = lifecycle

    def exit_reason(self, environment: Environment) -> str:
        """Why an environment stopped, with its last log lines; empty while it runs."""
        if self._lifecycle is None:
            return ""
        try:
            status = self._lifecycle.status(environment)
            if not (reason := status.stop_reason()):
                return ""
            provider = providers.load(environment.provider)
            last = readiness.last_lines(environment, provider) if status.state == "exited" else ""
        except (EphemeralError, OSError) as error:
            return f"{environment.id}: its state is unknown: {error}"
        return f"{environment.id} stopped by itself: {reason}{last}"

    def mark(self, environment: Environment) -> str:
        """The current end of its log; empty if unknown, because that must not fail a test."""
        if self._lifecycle is None:
            return ""
        try:
            provider = providers.load(environment.provider)
            if isinstance(provider, SupportsLastLogMark):
                return provider.last_log_mark(environment)
            return provider.log_mark(environment)
        except (EphemeralError, OSError):
            return ""

    def logs(self, environment: Environment, since: str | None) -> str:
        """Its log since a mark, or why the log can't be read."""
        if self._lifecycle is None:
            return ""
        try:
            return providers.load(environment.provider).logs(environment, since=since)
        except (EphemeralError, OSError) as error:
            return f"(its log can't be read: {error})"


class LifecycleBackend(_Observer):
    """The ``Backend`` that launches environments and destroys them.

    Args:
        lifecycle: Launches and destroys.
        settings: The run's settings; they say which environments to keep.
        folder: Saves the logs and the timeline of each environment.
        pause: Waits for a number of seconds.

    Attributes:
        to_keep: The ids of the environments to keep after an approval or ``up``.
        routine: The ids of the threads that are launching an environment of one test.
    """

    _lifecycle: Lifecycle

    def __init__(
        self,
        lifecycle: Lifecycle,
        settings: Settings,
        folder: LogFolder,
        pause: Callable[[float], object] = time.sleep,
    ) -> None:
        super().__init__(lifecycle)
        self.to_keep: set[str] = set()
        self.routine: set[int] = set()
        self._settings = settings
        self._folder = folder
        self._pause = pause

    def check(self, template: str, *, rolled_back: bool) -> None:
        self._lifecycle.check(template, rolled_back=rolled_back)

    def spares(self, template: str, /) -> int:
        return self._lifecycle.project.config.template(template).spares

    def bring_up(self, key: Key) -> tuple[Environment, dict[str, float]]:
        template = self._lifecycle.project.config.template(key.template)
        thread = threading.get_ident()
        if key.scope == "function":
            self.routine.add(thread)
        try:
            ttl = None if self._settings.ttl is None else Duration(self._settings.ttl)
            timed = self._lifecycle.bring_up(template, ttl=ttl, rolled_back=key.rollback)
        finally:
            self.routine.discard(thread)
        return timed.environment, timed.seconds

    def roll_back(self, environment: Environment) -> tuple[Environment, float]:
        timed = self._lifecycle.roll_back(environment)
        return timed.environment, sum(timed.seconds.values())

    def keeps(self, environment: Environment, *, failed: bool) -> bool:
        keep = self._settings.keep
        return keep == "always" or (failed and keep == "failed") or environment.id in self.to_keep

    def end(
        self, environment: Environment, *, failed: bool, died: bool, accepted: Callable[[], None]
    ) -> Ending:
        self._folder.save(environment)
        try:
            if self.keeps(environment, failed=failed):
                self._lifecycle.keep(environment)
                return Ending("kept")
            if not died and self._lifecycle.keep_machine(environment):
                return Ending("standby")
            outcome: Outcome = "died" if died else "destroyed"
            seconds = self._destroy(environment, outcome, accepted)
        except (EphemeralError, OSError) as error:
            return Ending("leaked", detail=str(error))
        return Ending("destroyed", seconds)

    def _destroy(
        self, environment: Environment, outcome: Outcome, accepted: Callable[[], None]
    ) -> float:
        """Destroy it, with a few attempts; returns how many seconds it took."""
        for seconds in RETRIES:
            try:
                return self._lifecycle.destroy(environment, outcome=outcome, accepted=accepted)
            except UnverifiedDestroyError:
                raise  # a second attempt would not find the environment, and report success
            except (EphemeralError, OSError):
                self._pause(seconds)
        return self._lifecycle.destroy(environment, outcome=outcome, accepted=accepted, last=True)

    def leave(self, environment: Environment) -> None:
        self._lifecycle.leave(environment)

    def cancel(self) -> None:
        self._lifecycle.cancelled.set()


class AttachedBackend(_Observer):
    """The ``Backend`` for ``--ephemeral-attach``: all tests use one running environment.

    Attributes:
        environment: The running environment.
    """

    def __init__(self, environment: Environment, lifecycle: Lifecycle | None) -> None:
        super().__init__(lifecycle)
        self.environment = environment

    def check(self, template: str, *, rolled_back: bool) -> None:
        if rolled_back:
            raise ConfigurationError(
                f"--ephemeral-attach: tests on the template {template!r} ask for a rollback, and "
                f"{self.environment.id} has no baseline that it could be put back to: leave out "
                "--ephemeral-attach, or the rollback"
            )

    def spares(self, _: str, /) -> int:
        return 0

    def roll_back(self, environment: Environment) -> tuple[Environment, float]:
        raise ConfigurationError(f"{environment.id} has no baseline: this run only attached to it")

    def bring_up(self, key: Key) -> tuple[Environment, dict[str, float]]:  # noqa: ARG002
        return self.environment, {}

    def keeps(self, environment: Environment, *, failed: bool) -> bool:  # noqa: ARG002
        return True

    def end(self, environment: Environment, **_: object) -> Ending:  # noqa: ARG002
        return Ending("attached")

    def leave(self, environment: Environment) -> None:
        """See ``Backend``."""

    def cancel(self) -> None:
        """See ``Backend``."""


def attach(
    reference: str, lifecycle: Lifecycle | None, template: Template | None, run: str
) -> AttachedBackend:
    """The backend for ``--ephemeral-attach``.

    Args:
        reference: An environment's id, or a URL, or several as ``NAME=URL,NAME=URL``.
        lifecycle: The lifecycle of the project whose ledger has the id; None without a project.
        template: The default template, for the names of its ports; None if there is none.
        run: This run's id.

    Raises:
        EphemeralError: There is no such environment, or it has stopped.
    """
    if "://" in reference:
        return AttachedBackend(plain_url.connect(reference, template, run), None)
    if lifecycle is None:
        raise ConfigurationError(
            f"--ephemeral-attach {reference}: expected a URL: there is no ephemeral.toml here "
            "that could name environments"
        )
    try:
        environment = lifecycle.project.ledger.get(reference)
    except NothingMatchedError as error:
        raise ConfigurationError(
            f"--ephemeral-attach {reference}: {error} `pytest-ephemeral list` lists the ids; a URL "
            "begins with its scheme, such as http://"
        ) from None
    backend = AttachedBackend(environment, lifecycle)
    if died := backend.exit_reason(backend.environment):
        raise ConfigurationError(f"--ephemeral-attach {reference}: {died}")
    return backend
