"""The ways to someone: what is printed, what is left in a file, what is sent.

Every channel is told of every event, and decides what of it is its own: live ones care for what
is up, those that hand over for what has become of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from pytest_ephemeral import files
from pytest_ephemeral.publishers.events import Event, variables

if TYPE_CHECKING:
    from pytest_ephemeral.ci import Build
    from pytest_ephemeral.publishers.outbox import Outbox

Events = Iterable[Event]


class Channel(Protocol):
    """One way to someone. Whatever it raises becomes a warning, once."""

    def tell(self, event: Event) -> None:
        """Pass on what is this channel's, without waiting for anybody."""


class Host(msgspec.Struct, frozen=True):
    """Where publishers are at home: a test run, or a command.

    Attributes:
        environ: The CI's variables.
        folder: Where files are left that no CI says a place for.
        console: Prints text as it is, where the CI reads what is printed.
        build: What the CI says of this build; None outside of any.
        outbox: Makes one for something that is sent, by its name.
    """

    environ: Mapping[str, str]
    folder: Path
    console: Callable[[str], None]
    build: Build | None
    outbox: Callable[[str], Outbox]


class PrintChannel(msgspec.Struct):
    """What the CI reads off the output, at once.

    Attributes:
        render: The text; empty where there is nothing to say.
        limit: How many times at most: the CI shows no more of them.
    """

    console: Callable[[str], None]
    render: Callable[[Event], str]
    limit: int = 10

    def tell(self, event: Event) -> None:
        """Print it."""
        if self.limit and (text := self.render(event)):
            self.limit -= 1
            self.console(text)


class LimitedChannel(msgspec.Struct):
    """A channel over the network, which is not told of hundreds of environments.

    A run with one for every test would exceed any service's limits, and any person's patience.

    Attributes:
        limit: Of how many it is told; of what is kept, or leaked, in any case.
    """

    channel: Channel
    limit: int = 20
    _told: set[str] = msgspec.field(default_factory=set)
    _untold: set[str] = msgspec.field(default_factory=set)

    def tell(self, event: Event) -> None:
        """Pass it on, if the environment is one of the first."""
        id = event.environment.id
        if event.outcome == "up" and id not in self._told:
            (self._told if len(self._told) < self.limit else self._untold).add(id)
        if id not in self._untold or event.outcome in {"kept", "leaked"}:
            self.channel.tell(event)


class HandoverChannel(msgspec.Struct):
    """The variables that later steps get, each time that what is true of them has changed.

    Attributes:
        put: Given all of them.
    """

    put: Callable[[dict[str, str]], None]
    _events: dict[str, Event | None] = msgspec.field(default_factory=dict)
    _last: dict[str, str] = msgspec.field(default_factory=dict)

    def tell(self, event: Event) -> None:
        """Hand over what is over or kept; what merely runs may be gone when the step has ended."""
        if event.outcome == "up":
            self._events.setdefault(event.environment.id)  # the first to come up stands for all
            return
        self._events[event.environment.id] = event
        values = variables(known for known in self._events.values() if known)
        if values != self._last:
            self._last = values
            self.put(values)


class ListFile(msgspec.Struct):
    """A file with the environments of this run, written anew at every event.

    Attributes:
        limit: How many it holds of those that are gone, the last ones.
    """

    file: Path
    render: Callable[[Events], str]
    limit: int = 100
    _events: dict[str, Event] = msgspec.field(default_factory=dict)

    def tell(self, event: Event) -> None:
        """Write it, whole or not at all."""
        self._events[event.environment.id] = event
        gone = [id for id, known in self._events.items() if not known.is_up]
        for id in gone[: -self.limit]:
            del self._events[id]
        write(self.file, self.render(self._events.values()))


def write(file: Path, text: str) -> None:
    """Put a file there, or another in its place."""
    files.replace(file, [text.encode()])


def append(file: Path, text: str, *, limit: int | None = None) -> None:
    """Add to a file of the CI's, in UTF-8.

    Args:
        file: The file.
        text: What to add.
        limit: Bytes that the CI accepts of it; what would exceed them is left out.
    """
    data = text.encode()
    if limit is not None and file.exists() and file.stat().st_size + len(data) > limit:
        return
    with file.open("ab") as stream:
        stream.write(data)


def drop_empty(values: Mapping[str, str]) -> dict[str, str]:
    """The values that are not empty, for where nothing is there before and empty means trouble."""
    return {name: value for name, value in values.items() if value}
