"""Read BuildKit's progress messages: protobuf messages, of which five fields are needed.

They are ``StatusResponse`` in api/services/control/control.proto of github.com/moby/buildkit.
Reading these few fields needs no protobuf library.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from typing import Final

#: The fields of a ``StatusResponse``.
_STEPS, _LOGS = 1, 3
#: The fields of a step (``Vertex``): its digest, its name, its start and its error.
_DIGEST, _NAME, _STARTED, _ERROR = 1, 3, 5, 7
#: The field of a log message (``VertexLog``) with the output.
_MESSAGE: Final = 4

#: The wire types of values: https://protobuf.dev/programming-guides/encoding/
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


class Trace:
    """Turns the progress messages of a build into text.

    Attributes:
        failed: The name of the first step that failed; empty if none has.
    """

    def __init__(self) -> None:
        self.failed = ""
        self._shown: set[bytes] = set()

    def read(self, encoded: str) -> Iterator[str]:
        """The text of one message: the names of steps that begin, and their output.

        Args:
            encoded: The message in base64, as the engine sends it.
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
        if _STARTED in fields and digest not in self._shown:
            self._shown.add(digest)
            yield f"{name}\n"
        if fields.get(_ERROR):
            self.failed = self.failed or name


def _fields(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The numbers and values of a message's fields that are text, bytes or messages."""
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
    """Decode a number; return it, and the index of the next value."""
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
