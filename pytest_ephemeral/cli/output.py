"""Printing: data on stdout, progress and messages on stderr, colours on terminals."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec

from pytest_ephemeral.durations import span
from pytest_ephemeral.models import to_builtins
from pytest_ephemeral.text import one_line, printable

if TYPE_CHECKING:
    from rich.console import Console

#: The version of every object that ``--json`` prints; raised by incompatible changes.
JSON_VERSION: Final = 1

#: The width of a table that is not printed on a terminal: a program reads it, so a row is a line.
_UNLIMITED: Final = 100_000

#: The colour of a cell with one of these words.
_COLOURS: Final = {
    **dict.fromkeys(("ready", "kept", "production"), "green"),
    **dict.fromkeys(("launching", "destroying", "standby"), "yellow"),
    **dict.fromkeys(("exited", "gone", "expired", "owner gone", "unknown"), "red"),
}


class Printer(msgspec.Struct):
    """Prints what a command has to say.

    Attributes:
        as_json: Whether data is printed as one JSON object.
    """

    as_json: bool
    _has_data: bool = False

    def data(self, **values: Any) -> None:
        """Print one JSON object."""
        self._has_data = True
        document = to_builtins({"version": JSON_VERSION, **values})
        print(json.dumps(document, indent=2, ensure_ascii=False))

    def fail(self, kind: str, message: str, hint: str, exit_status: int) -> None:
        """With ``--json``, print the error as the one object, unless there is one already."""
        if self.as_json and not self._has_data:
            error = {"type": kind, "message": message, "hint": hint, "exit_status": exit_status}
            self.data(error=error)

    def line(self, text: str) -> None:
        """Print a line of data, or several."""
        print(printable(text))

    def say(self, text: str) -> None:
        """Print a message on stderr."""
        print(printable(text), file=sys.stderr, flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows under headings: fitted to a terminal's width, elsewhere a line each.

        In a terminal that is too narrow, cells are folded, never cut; the first column is not
        even folded, because it holds what people copy into the next command.
        """
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        for at, column in enumerate(columns):
            table.add_column(column, overflow="fold", no_wrap=at == 0)
        for row in rows:
            table.add_row(*(Text(one_line(cell), style=_COLOURS.get(cell, "")) for cell in row))
        console(sys.stdout, width=None if is_terminal(sys.stdout) else _UNLIMITED).print(table)

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Print one thing's properties, a line each; empty ones are left out."""
        known = [(name, value) for name, value in facts if value]
        width = max(len(name) for name, _ in known)
        for name, value in known:
            print(f"{one_line(name):<{width}}  {one_line(value)}")


def find_hint(message: str) -> str:
    """The part of an error's message that says what to do: a command, or a name that was meant."""
    found = re.search(r"`[a-z][^`]* [^`]*`|Did you mean .*\?|pip install '[^']+'", message)
    return found[0].strip("`") if found else ""


def uses_colour(stream: IO[str]) -> bool:
    """Whether a stream gets colours (https://no-color.org, https://force-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def is_terminal(stream: IO[str]) -> bool:
    """Whether a stream is a terminal on which lines can be updated."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def console(stream: IO[str], *, width: int | None = None) -> Console:
    """A rich console with what this stream can show.

    Args:
        stream: Where it prints to.
        width: Columns, instead of the terminal's.
    """
    from rich.console import Console

    return Console(
        file=stream,
        force_terminal=uses_colour(stream),
        no_color=not uses_colour(stream),
        width=width,
        highlight=False,
        markup=False,
    )


def size(count: int) -> str:
    """A number of bytes for people."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def since(moment: datetime) -> str:
    """How long ago something was."""
    return span((datetime.now(UTC) - moment).total_seconds())


def until(moment: datetime | None) -> str:
    """The time until an expiry."""
    if moment is None:
        return "never"
    left = (moment - datetime.now(UTC)).total_seconds()
    return f"in {span(left)}" if left > 0 else f"{span(-left)} ago"


def short(digest: str) -> str:
    """The start of a digest or key: enough to recognise it, and to name it by."""
    kind, _, digits = digest.partition(":")
    return f"{kind}:{digits[:12]}" if digits else digest


def plural(count: int, noun: str) -> str:
    """Such as ``1 image`` and ``2 images``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
