"""The entry point of a guard: read its orders from standard input."""

from __future__ import annotations

import marshal
import os
import sys

from .loop import Supervisor
from .orders import Orders

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence


def main() -> int:
    """Read the orders from standard input, and carry them out."""
    size = int.from_bytes(_read_exactly(8))
    orders = marshal.loads(_read_exactly(size))  # noqa: S302 - from the same interpreter
    Supervisor(Orders(**orders)).guard()
    return 0


def _read_exactly(size: int) -> bytes:
    data = b""
    while len(data) < size:
        if not (part := os.read(0, size - len(data))):
            _tidy_up(sys.argv[2:])  # the owner died before it had sent all orders
            sys.exit(1)
        data += part
    return data


def _tidy_up(folders: Sequence[str]) -> None:
    """Remove the folders of an environment that was never started."""
    from .files import remove_tree

    for folder in folders:
        remove_tree(folder)
