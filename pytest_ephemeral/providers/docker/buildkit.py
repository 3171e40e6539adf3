"""What an engine's BuildKit tells of a build: protobuf messages, of which five fields matter.

They are ``StatusResponse`` in api/services/control/control.proto of github.com/moby/buildkit;
reading them here takes less than the library that reads them all.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Final

#: In a ``StatusResponse``.
_STEPS, _LOGS = 1, 3
#: In a step (``Vertex``): its digest, name, when it began, and what it failed of.
_DIGEST, _NAME, _STARTED, _ERROR = 1, 3, 5, 7
#: In a piece of log (``VertexLog``): what was printed.
_MESSAGE: Final = 4

#: How a value is encoded, see https://protobuf.dev/programming-guides/encoding/.
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Trace:
    """Reads what a build tells, as text.

    Attributes:
        failed: The name of the step that failed; empty while none has.
    """

    def __init__(self) -> None:
        self.failed = ""
        self._told: set[bytes] = set()

    def read(self, encoded: str) -> Iterator[str]:
        """The text of one message: steps as they begin, and what they print.

        Args:
            encoded: In base64, as the engine has it.
        """
        for number, message in _fields(base64.b64decode(encoded)):
            fields = dict(_fields(message))
            if number == _STEPS:
                yield from self._step(fields)
            elif number == _LOGS:
                yield fields.get(_MESSAGE, b"").decode(errors="replace")

    def _step(self, fields: dict[int, bytes]) -> Iterator[str]:
        name = fields.get(_NAME, b"").decode(errors="replace")
        digest = fields.get(_DIGEST, b"")
        if _STARTED in fields and digest not in self._told:
            self._told.add(digest)
            yield f"{name}\n"
        if fields.get(_ERROR):
            self.failed = self.failed or name


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a message that are text, bytes or messages, by their numbers."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(data, at)
        elif kind == _BYTES:
            size, at = _varint(data, at)
            yield tag >> 3, data[at : at + size]
            at += size
        elif kind in {_FIXED64, _FIXED32}:
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"no message of BuildKit's: it has a value of the kind {kind}")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """A number, and where the next value begins."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
