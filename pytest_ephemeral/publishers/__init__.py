"""Publishers: send an environment's URL to people, CI servers and later steps.

Publishers implement the hooks. Test runs and the command line register them with their plugin
manager. Each module is for one CI server, and mostly has pure functions from an event to text.
"""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

import msgspec
import pluggy

from pytest_ephemeral import ci, interpolation
from pytest_ephemeral.config import Config
from pytest_ephemeral.masking import mask
from pytest_ephemeral.models import Announcement, Environment, Outcome
from pytest_ephemeral.publishers.channels import Channel, Host, LimitedChannel
from pytest_ephemeral.publishers.events import EnvironmentEvent, clean
from pytest_ephemeral.publishers.outbox import Outbox
from pytest_ephemeral.publishers.webhook import WebhookChannel

hookimpl = pluggy.HookimplMarker("pytest")

#: Seconds that the end of a run waits for messages that are still being sent.
LAST_WAIT: Final = 3.0

#: The folder, in the configuration's folder, of files for which the CI server sets no path.
FOLDER: Final = ".ephemeral"

#: The module of each name in ``publish``.
MODULES: Final[Mapping[str, str]] = {
    "github": "github",
    "gitlab": "gitlab",
    "jenkins": "jenkins",
    "buildkite": "buildkite",
    "azure": "azure",
    "teamcity": "teamcity",
    "circleci": "circleci",
    "bitbucket": "bitbucket",
    "woodpecker": "shell_file",
    "drone": "shell_file",
    "travis": "shell_file",
    "tekton": "tekton",
    "json": "json_file",
}
#: Publishers that are used on every machine if the configuration names them: Tekton sets no
#: environment variable to detect it by, and ``json`` is for any CI server.
ALWAYS: Final = frozenset({"tekton", "json"})


class Publishing(msgspec.Struct):
    """The registered publishers, to be closed at the end of the run."""

    outboxes: list[Outbox] = msgspec.field(default_factory=list)

    def close(self) -> None:
        """Wait for pending messages, at most ``LAST_WAIT`` seconds for all together."""
        deadline = time.monotonic() + LAST_WAIT
        for outbox in self.outboxes:
            outbox.close(deadline)


class Publisher(msgspec.Struct, eq=False):  # eq=False: pytest puts plugins into sets
    """A plugin that passes events of the hooks to one channel. The first error is a warning.

    Attributes:
        name: The names of the publisher and its channel, for warnings.
        channel: The channel.
        warn: Called with a warning.
        secrets: Values that are masked in URLs and warnings.
    """

    name: str
    channel: Channel
    warn: Callable[[str], None]
    secrets: tuple[str, ...]
    _warned: bool = False

    @hookimpl
    def pytest_ephemeral_publish_url(self, environment: Environment, url: str) -> None:
        """Publish that the environment is up."""
        self._tell(environment, url, "up")

    @hookimpl
    def pytest_ephemeral_environment_stopped(
        self, environment: Environment, outcome: Outcome
    ) -> None:
        """Publish that the run no longer uses the environment."""
        if environment.url:
            self._tell(environment, environment.url, outcome)

    def _tell(self, environment: Environment, url: str, outcome: Announcement) -> None:
        try:
            self.channel.tell(EnvironmentEvent(environment, clean(url, self.secrets), outcome))
        except Exception as error:  # noqa: BLE001 - other channels must get the event
            if not self._warned:
                self._warned = True
                reason = mask(f"{type(error).__name__}: {error}", self.secrets)
                self.warn(f"publishing to {self.name} failed: {reason}")


def register(
    manager: pluggy.PluginManager,
    config: Config,
    environ: Mapping[str, str],
    *,
    console: Callable[[str], None],
    warn: Callable[[str], None],
) -> Publishing:
    """Register the publishers that the configuration names.

    Args:
        manager: The plugin manager that calls the hooks: pytest's, or the command line's.
        config: The configuration; its ``publish`` and ``[[webhook]]`` are used.
        environ: The environment variables.
        console: Prints lines unchanged and uncaptured, for a CI server that reads them.
        warn: Called with a warning, from any thread.

    Returns:
        The publishers. The caller closes them when all environments have ended or are kept.

    Raises:
        ConfigurationError: A webhook refers to an environment variable that is not set.
    """
    publishing = Publishing()
    secrets = _secrets(config, environ)

    def outbox(name: str) -> Outbox:
        made = Outbox(name, lambda text: warn(mask(f"publishing to {text}", secrets)))
        publishing.outboxes.append(made)
        return made

    host = Host(environ, config.root / FOLDER, console, ci.detect(environ), outbox)
    found = [*_channels(config, host), *_webhooks(config, host)]
    for name, channel in reversed(found):  # pluggy calls the last one first
        manager.register(Publisher(name, channel, warn, secrets), f"ephemeral publisher: {name}")
    return publishing


def _channels(config: Config, host: Host) -> Iterator[tuple[str, Channel]]:
    here = host.build.ci if host.build else ""
    named = {(here or _fallback(host)) if name == "auto" else name for name in config.publish}
    for name, module in MODULES.items():
        if name in named and (name == here or name in ALWAYS):
            implementation: Any = importlib.import_module(f"{__name__}.{module}")
            for channel_name, channel in implementation.channels(host):
                yield f"{name} {channel_name}", channel


def _fallback(host: Host) -> str:
    """The publisher that ``auto`` selects on an unknown CI server; empty outside of CI."""
    return "json" if ci.is_ci(host.environ) else ""


def _webhooks(config: Config, host: Host) -> Iterator[tuple[str, Channel]]:
    for at, table in enumerate(config.webhooks):
        where = f"webhook[{at}]"
        filled = interpolation.fill(
            {"url": table.url, **table.headers}, environ=host.environ, images={}, where=where
        ).variables
        url = filled.pop("url")
        wanted = frozenset(table.events)
        yield (
            where,
            LimitedChannel(WebhookChannel(host.outbox(where), url, filled, wanted, host.build)),
        )


def _secrets(config: Config, environ: Mapping[str, str]) -> tuple[str, ...]:
    """The values of all environment variables that the configuration refers to."""
    tables = [
        *(template.env for template in config.templates.values()),
        *(each.ready.headers for each in config.templates.values() if each.ready),
        *(webhook.headers for webhook in config.webhooks),
        {"urls": " ".join(webhook.url for webhook in config.webhooks)},
    ]
    names = {
        name
        for table in tables
        for value in table.values()
        for name in interpolation.references(value, "env")
    }
    return tuple(environ[name] for name in sorted(names) if environ.get(name))
