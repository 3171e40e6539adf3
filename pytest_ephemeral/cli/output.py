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

#: The version of every JSON object that ``--json`` prints; an incompatible change increases it.
JSON_VERSION: Final = 1

#: The width of a table that is not printed on a terminal: a program reads it, one row a line.
_UNLIMITED: Final = 100_000

#: The colours of table cells, by their text.
_COLOURS: Final = {
    **dict.fromkeys(("ready", "kept", "production"), "green"),
    **dict.fromkeys(("launching", "destroying", "standby"), "yellow"),
    **dict.fromkeys(("exited", "gone", "expired", "owner gone", "unknown"), "red"),
}


class Printer(msgspec.Struct):
    """Prints the results and messages of a command.

    Attributes:
        as_json: Whether the command prints its data as one JSON object.
    """

    as_json: bool
    _has_data: bool = False

    def data(self, **values: Any) -> None:
        """Print the values as one JSON object."""
        self._has_data = True
        document = to_builtins({"version": JSON_VERSION, **values})
        print(json.dumps(document, indent=2, ensure_ascii=False))

    def fail(self, kind: str, message: str, hint: str, exit_status: int) -> None:
        """With ``--json``, print the error as a JSON object, unless data was printed before."""
        if self.as_json and not self._has_data:
            error = {"type": kind, "message": message, "hint": hint, "exit_status": exit_status}
            self.data(error=error)

    def line(self, text: str) -> None:
        """Print data: one or several lines on stdout."""
        print(printable(text))

    def result(self, text: str, **values: Any) -> None:
        """Print the values with ``--json``, else the text."""
        if self.as_json:
            self.data(**values)
        else:
            self.line(text)

    def say(self, text: str) -> None:
        """Print a message on stderr."""
        print(printable(text), file=sys.stderr, flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows under headings: fitted to a terminal's width, elsewhere one line for each.

        On a terminal that is too narrow, cells are wrapped, never cut. The first column is not
        wrapped, because people copy its text into the next command.
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
        """Print names and values, one pair a line; pairs with an empty value are left out."""
        known = [(name, value) for name, value in facts if value]
        width = max(len(name) for name, _ in known)
        for name, value in known:
            print(f"{one_line(name):<{width}}  {one_line(value)}")


def find_hint(message: str) -> str:
    """The hint in an error's message: a command to run, or the closest name; else empty."""
    found = re.search(r"`[a-z][^`]* [^`]*`|Did you mean .*\?|pip install '[^']+'", message)
    return found[0].strip("`") if found else ""


def uses_colour(stream: IO[str]) -> bool:
    """Whether to print colours on a stream (https://no-color.org, https://force-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def is_terminal(stream: IO[str]) -> bool:
    """Whether a stream is a terminal on which lines can be updated."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def console(stream: IO[str], *, width: int | None = None) -> Console:
    """Make a rich console with the abilities of a stream.

    Args:
        stream: The stream to print to.
        width: The width in columns; by default the terminal's.
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
    """Format a number of bytes for people: ``3 MiB``."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB"):
        if amount < 1024:
            return f"{amount:.0f} {unit}"
        amount /= 1024
    return f"{amount:.1f} GiB"


def since(moment: datetime) -> str:
    """Format the time from a moment until now."""
    return span((datetime.now(UTC) - moment).total_seconds())


def until(moment: datetime | None) -> str:
    """Format the time until an expiry: ``in 5m``, ``5m ago``, or ``never``."""
    if moment is None:
        return "never"
    left = (moment - datetime.now(UTC)).total_seconds()
    return f"in {span(left)}" if left > 0 else f"{span(-left)} ago"


def short(digest: str) -> str:
    """The first twelve digits of a digest or key, which commands accept, too."""
    kind, _, digits = digest.partition(":")
    return f"{kind}:{digits[:12]}" if digits else digest


def plural(count: int, noun: str) -> str:
    """Format a number with its noun: ``1 image``, ``2 images``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
