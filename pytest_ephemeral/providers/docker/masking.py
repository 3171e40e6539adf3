"""What a container's logs must not show, known from the container itself and by whoever reads them.

No value of a secret is written anywhere: two labels say how to know one. Where it stands in the
container's variables, in which the engine keeps it; or, of one that is in none of them (another
service has it, or only the readiness probe), its length, its first character and a salted digest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from pytest_ephemeral.interpolation import MASK, mask, worth_masking

#: Which parts of which variables are secret: ``KEY=0+24 URL=16+8``.
SPANS: Final = "pytest-ephemeral.secrets"

#: What secrets stand in no variable: ``24.61.salt.digest``, the second the first character's code.
SEALED: Final = "pytest-ephemeral.sealed-secrets"

_SALT, _DIGEST = 8, 16


def labels_for(variables: Mapping[str, str], secrets: Sequence[str]) -> dict[str, str]:
    """The labels by which a container's logs are masked.

    Args:
        variables: The container's.
        secrets: What its logs must not show.
    """
    spans, elsewhere = [], []
    for secret in worth_masking(secrets):
        found = [
            f"{name}={start}+{len(secret)}"
            for name, value in variables.items()
            for start in _all(value, secret)
        ]
        spans += found
        elsewhere += [] if found else [_sealed(secret)]
    return {SPANS: " ".join(spans), SEALED: " ".join(elsewhere)}


class Masking(msgspec.Struct, frozen=True):
    """Shows text without a container's secrets."""

    known: Sequence[str]
    sealed: Sequence[_Seal]

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Masking:
        """For the logs of a container, from its ``Config``."""
        labels = config.get("Labels") or {}
        variables = dict(one.partition("=")[::2] for one in config.get("Env") or ())
        known = []
        for span in labels.get(SPANS, "").split():
            name, _, where = span.partition("=")
            start, length = map(int, where.split("+"))
            known.append(variables.get(name, "")[start : start + length])
        return cls(known, [_Seal.read(one) for one in labels.get(SEALED, "").split()])

    def __call__(self, text: str) -> str:
        """The text with every secret in it shown as ``***``."""
        for seal in self.sealed:
            text = seal.masked(text)
        return mask(text, self.known)


class _Seal(msgspec.Struct, frozen=True):
    """A secret that can be recognised, and not be told."""

    length: int
    first: str
    salt: bytes
    digest: bytes

    @classmethod
    def read(cls, text: str) -> _Seal:
        length, first, salt, digest = text.split(".")
        return cls(int(length), chr(int(first)), bytes.fromhex(salt), bytes.fromhex(digest))

    def masked(self, text: str) -> str:
        begun, at = 0, text.find(self.first)
        shown = ""
        while 0 <= at <= len(text) - self.length:
            if _digest(text[at : at + self.length], self.salt) == self.digest:
                shown += text[begun:at] + MASK
                begun = at + self.length
                at = text.find(self.first, begun)
            else:
                at = text.find(self.first, at + 1)
        return shown + text[begun:]


def _sealed(secret: str) -> str:
    salt = os.urandom(_SALT)
    return f"{len(secret)}.{ord(secret[0])}.{salt.hex()}.{_digest(secret, salt).hex()}"


def _digest(text: str, salt: bytes) -> bytes:
    data = text.encode(errors="surrogateescape")
    return hashlib.blake2b(data, salt=salt, digest_size=_DIGEST).digest()


def _all(value: str, part: str) -> list[int]:
    """Every place where a value has the part."""
    places, at = [], value.find(part)
    while at >= 0:
        places.append(at)
        at = value.find(part, at + len(part))
    return places
