"""What bringing up, looking at and ending an environment mean to the broker."""

from __future__ import annotations

import socket
from datetime import UTC, datetime
from urllib.parse import urlsplit

from pytest_ephemeral import machine, providers
from pytest_ephemeral.environments import readiness
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.errors import ConfigurationError, EphemeralError
from pytest_ephemeral.models import Endpoint, Environment
from pytest_ephemeral.pytest_plugin.dossier import Dossier
from pytest_ephemeral.pytest_plugin.entries import Fate
from pytest_ephemeral.pytest_plugin.needs import Key
from pytest_ephemeral.pytest_plugin.progress import Reporter
from pytest_ephemeral.pytest_plugin.settings import Settings

#: The provider's name of what was given as a plain URL.
PLAIN_URL = "url"


class RunKeeper:
    """Brings up environments of its own, and ends them.

    Args:
        lifecycle: Does it.
        settings: Say what is kept.
        reporter: Shows how it goes.
        dossier: Keeps what each has to show.
    """

    def __init__(
        self, lifecycle: Lifecycle, settings: Settings, reporter: Reporter, dossier: Dossier
    ) -> None:
        self._lifecycle = lifecycle
        self._settings = settings
        self._reporter = reporter
        self._dossier = dossier
        #: The ids of those that somebody said yes to: they stay up, to be promoted.
        self.approved: set[str] = set()

    def check(self, template: str) -> None:
        """See ``Keeper``."""
        self._lifecycle.check(template)

    def bring_up(self, key: Key) -> tuple[Environment, dict[str, float]]:
        """See ``Keeper``."""
        template = self._lifecycle.project.config.template(key.template)
        with self._reporter.following(routine=key.scope == "function"):
            timed = self._lifecycle.bring_up(template)
        return timed.environment, timed.seconds

    def died(self, environment: Environment) -> str:
        """See ``Keeper``."""
        return _died(self._lifecycle, environment)

    def mark(self, environment: Environment) -> str:
        """See ``Keeper``."""
        return providers.load(environment.provider).log_mark(environment)

    def logs(self, environment: Environment, since: str | None) -> str:
        """See ``Keeper``."""
        return _logs(environment, since)

    def keeps(self, *, failed: bool) -> bool:
        """See ``Keeper``."""
        return self._settings.keep == "always" or (failed and self._settings.keep == "failed")

    def end(self, environment: Environment, *, failed: bool) -> Fate:
        """See ``Keeper``."""
        died = self.died(environment)
        self._dossier.save(environment)
        try:
            if self.keeps(failed=failed) or environment.id in self.approved:
                self._lifecycle.keep(environment)
                return Fate("kept", died=died)
            outcome = "died" if died else "destroyed"
            seconds = self._lifecycle.destroy(environment, outcome=outcome)
        except (EphemeralError, OSError) as error:
            return Fate("leaked", detail=str(error), died=died)
        return Fate("destroyed", seconds, died=died)

    def leaves(self, environment: Environment) -> bool:
        """See ``Keeper``. What may have to stay is waited for."""
        if self._settings.keep != "never" or environment.id in self.approved:
            return False
        return self._lifecycle.leave(environment)

    def cancel(self) -> None:
        """See ``Keeper``."""
        self._lifecycle.cancelled.set()


class AttachedKeeper:
    """Lends one environment that someone else keeps, in the place of any."""

    def __init__(self, environment: Environment, lifecycle: Lifecycle | None) -> None:
        self._environment = environment
        self._lifecycle = lifecycle

    def check(self, template: str) -> None:
        """See ``Keeper``."""

    def bring_up(self, key: Key) -> tuple[Environment, dict[str, float]]:  # noqa: ARG002
        """See ``Keeper``."""
        return self._environment, {}

    def died(self, environment: Environment) -> str:
        """See ``Keeper``."""
        return "" if self._lifecycle is None else _died(self._lifecycle, environment)

    def mark(self, environment: Environment) -> str:
        """See ``Keeper``."""
        if self._lifecycle is None:
            return ""
        return providers.load(environment.provider).log_mark(environment)

    def logs(self, environment: Environment, since: str | None) -> str:
        """See ``Keeper``."""
        return "" if self._lifecycle is None else _logs(environment, since)

    def keeps(self, *, failed: bool) -> bool:  # noqa: ARG002
        """See ``Keeper``."""
        return True

    def end(self, environment: Environment, *, failed: bool) -> Fate:  # noqa: ARG002
        """See ``Keeper``."""
        return Fate("attached", died=self.died(environment))

    def leaves(self, environment: Environment) -> bool:  # noqa: ARG002
        """See ``Keeper``."""
        return False

    def cancel(self) -> None:
        """See ``Keeper``."""


def attach(reference: str, lifecycle: Lifecycle | None, run: str) -> AttachedKeeper:
    """The keeper of a running environment.

    Args:
        reference: An environment's id, or a plain URL.
        lifecycle: Of the project whose ledger has the id; None when there is no project.
        run: This run's id.

    Raises:
        EphemeralError: There is no such environment, or it does not run any more.
    """
    if "://" in reference:
        return AttachedKeeper(_answering(reference, run), None)
    if lifecycle is None:
        raise ConfigurationError(
            f"--ephemeral-attach {reference}: expected a URL, as there is no ephemeral.toml here "
            "whose environments could be meant"
        )
    environment = lifecycle.project.ledger.get(reference)
    if died := _died(lifecycle, environment):
        raise ConfigurationError(f"--ephemeral-attach {reference}: {died}")
    return AttachedKeeper(environment, lifecycle)


def _answering(url: str, run: str) -> Environment:
    """A static server as an environment; something must accept its connections."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or {"https": 443}.get(parts.scheme, 80)
        socket.create_connection((host, port), timeout=10).close()
    except ValueError as error:
        raise ConfigurationError(f"--ephemeral-attach {url}: not a URL: {error}") from None
    except OSError as error:
        raise ConfigurationError(
            f"--ephemeral-attach {url}: nothing answers there: {error.strerror or error}"
        ) from None
    return Environment(
        id=parts.netloc,
        template=PLAIN_URL,
        provider=PLAIN_URL,
        url=url,
        endpoints={"http": Endpoint(host=host, port=port, scheme=parts.scheme)},
        created_at=datetime.now(UTC),
        expires_at=None,
        owner=machine.this_owner(run),
        state="ready",
        kept=True,
    )


def _died(lifecycle: Lifecycle, environment: Environment) -> str:
    """How an environment has stopped, with the last it said; empty while it runs."""
    try:
        status = lifecycle.status(environment)
        if status.state == "running":
            return ""
        provider = providers.load(environment.provider)
        detail = status.detail or "nothing of it is there any more"
        last = readiness.last_lines(environment, provider) if status.state == "exited" else ""
    except (EphemeralError, OSError) as error:
        return f"{environment.id}: how it is can't be told: {error}"
    return f"{environment.id} has stopped by itself: {detail}{last}"


def _logs(environment: Environment, since: str | None) -> str:
    try:
        return providers.load(environment.provider).logs(environment, since=since)
    except (EphemeralError, OSError) as error:
        return f"(its log can't be read: {error})"
