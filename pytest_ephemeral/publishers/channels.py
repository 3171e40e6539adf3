"""The channels of publishers: printed lines, files, and messages over the network.

Every channel receives every event and uses those it needs: live channels those of environments
that are up, hand-over channels those of environments that have ended or been kept.
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
    """One channel. What it raises becomes one warning."""

    def tell(self, event: EnvironmentEvent) -> None:
        """Publish the event if it is for this channel, without waiting."""


class Host(msgspec.Struct, frozen=True):
    """What publishers get from a test run or a command.

    Attributes:
        environ: The CI's variables.
        folder: Where files are written for which the CI server has no path.
        console: Prints text unchanged where the CI server reads it.
        build: The CI server's build; None outside of one.
        outbox: Makes an outbox by the receiver's name.
    """

    environ: Mapping[str, str]
    folder: Path
    console: Callable[[str], None]
    build: Build | None
    outbox: Callable[[str], Outbox]


class PrintChannel(msgspec.Struct):
    """Lines of the output that the CI server interprets.

    Attributes:
        render: The text of an event; empty to print nothing.
        limit: How many at most: the CI server shows no more.
    """

    console: Callable[[str], None]
    render: Callable[[EnvironmentEvent], str]
    limit: int = 10

    def tell(self, event: EnvironmentEvent) -> None:
        """Print it."""
        if self.limit and (text := self.render(event)):
            self.limit -= 1
            self.console(text)


class LimitedChannel(msgspec.Struct):
    """A channel over the network that sends only the first environments.

    A run with an environment for every test would exceed a service's limits.

    Attributes:
        limit: How many are sent; those that are kept or leaked always are.
    """

    channel: Channel
    limit: int = 20
    _told: set[str] = msgspec.field(default_factory=set)
    _untold: set[str] = msgspec.field(default_factory=set)

    def tell(self, event: EnvironmentEvent) -> None:
        """Pass it on, if the environment is one of the first."""
        id = event.environment.id
        if event.outcome == "up" and id not in self._told:
            (self._told if len(self._told) < self.limit else self._untold).add(id)
        if id not in self._untold or event.outcome in {"kept", "leaked"}:
            self.channel.tell(event)


class HandoverChannel(msgspec.Struct):
    """The variables for later steps, written whenever they change.

    Attributes:
        put: Receives all of them.
    """

    put: Callable[[dict[str, str]], None]
    _events: dict[str, EnvironmentEvent | None] = msgspec.field(default_factory=dict)
    _last: dict[str, str] = msgspec.field(default_factory=dict)

    def tell(self, event: EnvironmentEvent) -> None:
        """Hand over what has ended or been kept; what is up may be gone when the step ends."""
        if event.outcome == "up":
            self._events.setdefault(event.environment.id)  # the first to come up stands for all
            return
        self._events[event.environment.id] = event
        values = variables(known for known in self._events.values() if known)
        if values != self._last:
            self._last = values
            self.put(values)


class ListFile(msgspec.Struct):
    """A file with the environments of this run, rewritten at every event.

    Attributes:
        limit: How many of those that are gone are in it, the last ones.
    """

    file: Path
    render: Callable[[Events], str]
    limit: int = 100
    _events: dict[str, EnvironmentEvent] = msgspec.field(default_factory=dict)

    def tell(self, event: EnvironmentEvent) -> None:
        """Write it, whole or not at all."""
        self._events[event.environment.id] = event
        gone = [id for id, known in self._events.items() if not known.is_up]
        for id in gone[: -self.limit]:
            del self._events[id]
        write(self.file, self.render(self._events.values()))


def write(file: Path, text: str) -> None:
    """Write a file whole, or replace it."""
    files.replace(file, [text.encode()])


def append(file: Path, text: str, *, limit: int | None = None) -> None:
    """Append to a file of the CI server, in UTF-8.

    Args:
        file: The file.
        text: What to append.
        limit: Bytes that the CI server accepts; what would exceed them is left out.
    """
    data = text.encode()
    if limit is not None and file.exists() and file.stat().st_size + len(data) > limit:
        return
    with file.open("ab") as stream:
        stream.write(data)


def drop_empty(values: Mapping[str, str]) -> dict[str, str]:
    """The values that are not empty, for receivers that reject empty ones."""
    return {name: value for name, value in values.items() if value}
