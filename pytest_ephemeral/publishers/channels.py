"""The channels of publishers: printed lines, files, and messages over the network.

Every channel receives every event, and uses those it needs. Most use all events, or those of
environments that are up. A hand-over channel uses those of environments that ended or are kept.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from pytest_ephemeral import files
from pytest_ephemeral.publishers.events import EnvironmentEvent, variables

if TYPE_CHECKING:
    from pytest_ephemeral.ci import Build
    from pytest_ephemeral.publishers.outbox import Outbox

Events = Iterable[EnvironmentEvent]


class Channel(Protocol):
    """A destination of events. An exception that it raises becomes a warning."""

    def tell(self, event: EnvironmentEvent) -> None:
        """Publish an event if this channel uses it. Must not block."""


class Host(msgspec.Struct, frozen=True):
    """The context of publishers in a test run or a command.

    Attributes:
        environ: The environment variables, with those of the CI server.
        folder: The folder of files for which the CI server sets no path.
        console: Prints text unchanged and uncaptured, for the CI server.
        build: The CI server's build; None outside of CI.
        outbox: Makes an outbox, from the receiver's name.
    """

    environ: Mapping[str, str]
    folder: Path
    console: Callable[[str], None]
    build: Build | None
    outbox: Callable[[str], Outbox]


class PrintChannel(msgspec.Struct):
    """Prints lines that the CI server interprets.

    Attributes:
        console: Prints text unchanged and uncaptured.
        render: Returns the text for an event; empty to print nothing.
        limit: The number of events to print: CI servers do not show more.
    """

    console: Callable[[str], None]
    render: Callable[[EnvironmentEvent], str]
    limit: int = 10

    def tell(self, event: EnvironmentEvent) -> None:
        """Print the event's text."""
        if self.limit and (text := self.render(event)):
            self.limit -= 1
            self.console(text)


class LimitedChannel(msgspec.Struct):
    """A channel over the network that sends only the first environments.

    A run with an environment for every test would exceed a service's limits.

    Attributes:
        channel: The channel to pass events on to.
        limit: The number of environments. Events ``kept`` and ``leaked`` are always sent.
    """

    channel: Channel
    limit: int = 20
    _sent: set[str] = msgspec.field(default_factory=set)
    _skipped: set[str] = msgspec.field(default_factory=set)

    def tell(self, event: EnvironmentEvent) -> None:
        """Pass an event on, if its environment is one of the first."""
        id = event.environment.id
        if event.outcome == "up" and id not in self._sent:
            (self._sent if len(self._sent) < self.limit else self._skipped).add(id)
        if id not in self._skipped or event.outcome in {"kept", "leaked"}:
            self.channel.tell(event)


class HandoverChannel(msgspec.Struct):
    """Writes the variables for later steps whenever they change.

    Attributes:
        put: Called with all variables.
    """

    put: Callable[[dict[str, str]], None]
    _events: dict[str, EnvironmentEvent | None] = msgspec.field(default_factory=dict)
    _last: dict[str, str] = msgspec.field(default_factory=dict)

    def tell(self, event: EnvironmentEvent) -> None:
        """Hand over environments that ended or are kept; others may be gone after this step."""
        if event.outcome == "up":
            self._events.setdefault(event.environment.id)  # keep the order in which they came up
            return
        self._events[event.environment.id] = event
        values = variables(known for known in self._events.values() if known)
        if values != self._last:
            self._last = values
            self.put(values)


class ListFile(msgspec.Struct):
    """A file with the environments of this run, rewritten at each event.

    Attributes:
        file: The file.
        render: The text of the file, from the last event of each environment.
        limit: The number of environments that are gone; earlier ones are dropped.
    """

    file: Path
    render: Callable[[Events], str]
    limit: int = 100
    _events: dict[str, EnvironmentEvent] = msgspec.field(default_factory=dict)

    def tell(self, event: EnvironmentEvent) -> None:
        """Rewrite the file atomically."""
        self._events[event.environment.id] = event
        gone = [id for id, known in self._events.items() if not known.is_up]
        for id in gone[: -self.limit]:
            del self._events[id]
        write(self.file, self.render(self._events.values()))


def write(file: Path, text: str) -> None:
    """Write or replace a file atomically, in UTF-8."""
    files.replace(file, [text.encode()])


def append(file: Path, text: str, *, limit: int | None = None) -> None:
    """Append to a file of the CI server, in UTF-8.

    Args:
        file: The file.
        text: What to append.
        limit: The file's largest size in bytes; text that would exceed it is not appended.
    """
    data = text.encode()
    if limit is not None and file.exists() and file.stat().st_size + len(data) > limit:
        return
    with file.open("ab") as stream:
        stream.write(data)


def drop_empty(values: Mapping[str, str]) -> dict[str, str]:
    """The values that are not empty, for receivers that reject empty ones."""
    return {name: value for name, value in values.items() if value}
