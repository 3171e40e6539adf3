"""What a verb prints: data on stdout, talk on stderr, colours where someone sees them."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Any, Final

import msgspec

from pytest_ephemeral.durations import span
from pytest_ephemeral.models import to_builtins

if TYPE_CHECKING:
    from rich.console import Console

#: Of every object that ``--json`` prints; raised when a reader of the old one would go wrong.
JSON_VERSION: Final = 1

#: Columns enough that nothing is cut or folded.
_UNLIMITED: Final = 100_000


class Output(msgspec.Struct, frozen=True):
    """Where a verb puts what it has to say.

    Attributes:
        as_json: Whether the data is for a program.
    """

    as_json: bool

    def data(self, **values: Any) -> None:
        """Print one JSON object."""
        document = to_builtins({"version": JSON_VERSION, **values})
        print(json.dumps(document, indent=2, ensure_ascii=False))

    def line(self, text: str) -> None:
        """Print one line of data."""
        print(text)

    def say(self, text: str) -> None:
        """Tell whoever is watching."""
        print(text, file=sys.stderr, flush=True)

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows under headings, a line each.

        A narrow terminal wraps them by itself, and what is copied from it is still whole.
        """
        from rich.table import Table
        from rich.text import Text

        table = Table(*columns, box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        console(sys.stdout, width=_UNLIMITED).print(table)

    def facts(self, facts: Iterable[tuple[str, str]]) -> None:
        """Print what is known of one thing, a line each; what is empty is left out."""
        known = [(name, value) for name, value in facts if value]
        width = max(len(name) for name, _ in known)
        for name, value in known:
            print(f"{name:<{width}}  {value}")


def paints(stream: IO[str]) -> bool:
    """Whether colours may go to a stream (https://no-color.org, https://force-color.org)."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR"):
        return True
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def moves(stream: IO[str]) -> bool:
    """Whether a line on a stream can be written again."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def console(stream: IO[str], *, width: int | None = None) -> Console:
    """rich, as this stream can take it.

    Args:
        stream: Where it prints.
        width: Columns, instead of the terminal's.
    """
    from rich.console import Console

    return Console(
        file=stream,
        force_terminal=paints(stream),
        no_color=not paints(stream),
        width=width,
        highlight=False,
        markup=False,
    )


def size(count: int) -> str:
    """Bytes, as people read them."""
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
    """How far off an expiry is."""
    if moment is None:
        return "never"
    left = (moment - datetime.now(UTC)).total_seconds()
    return f"in {span(left)}" if left > 0 else f"{span(-left)} ago"


def short(digest: str) -> str:
    """The first digits of a digest: enough to tell it, and to name it with."""
    kind, _, digits = digest.partition(":")
    return f"{kind}:{digits[:12]}" if digits else digest


def plural(count: int, noun: str) -> str:
    """Such as ``1 image`` and ``2 images``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
