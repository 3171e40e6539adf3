"""Mask an environment's secrets in its logs; the secrets are read from its containers.

The only copies of a secret are in the variables of containers, which the engine stores; a label
gives their positions. A secret that no container has, such as a header of the readiness probe, is
known only to the process that launched the environment: a digest in a label could be used to guess
it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from pytest_ephemeral.masking import mask, worth_masking

#: The positions of secrets: a variable, and the numbers of characters before and after, such as
#: ``KEY=0-0 URL=16-3``. Labels must not tell a secret's length, as many people can read them.
SPANS: Final = "pytest-ephemeral.secrets"

#: The secrets of the environments that this process has launched, by id.
_launched: Final[dict[str, Sequence[str]]] = {}


def labels_for(variables: Mapping[str, str], secrets: Sequence[str]) -> dict[str, str]:
    """The label with the positions of secrets.

    Args:
        variables: The variables of a container.
        secrets: The secrets to mask.
    """
    spans = [
        f"{name}={start}-{len(value) - start - len(secret)}"
        for secret in worth_masking(secrets)
        for name, value in variables.items()
        for start in _places(value, secret)
    ]
    return {SPANS: " ".join(spans)}


def remember(id: str, secrets: Sequence[str]) -> None:
    """Keep the secrets of an environment that this process launches, to mask its logs."""
    _launched[id] = tuple(secrets)


def forget(id: str) -> None:
    """Drop the secrets of a destroyed environment."""
    _launched.pop(id, None)


class Masking(msgspec.Struct, frozen=True):
    """Masks an environment's secrets in a text."""

    secrets: Sequence[str]

    @classmethod
    def of(cls, configs: Iterable[Mapping[str, Any]], id: str = "") -> Masking:
        """The masking for an environment's logs.

        Args:
            configs: The ``Config`` of each container, as one may print a secret of another.
            id: The environment's id.
        """
        found = [secret for config in configs for secret in _secrets_in(config)]
        return cls(worth_masking([*found, *_launched.get(id, ())]))

    def __call__(self, text: str) -> str:
        """Replace every secret in a text by ``***``."""
        return mask(text, self.secrets)


def _secrets_in(config: Mapping[str, Any]) -> Iterable[str]:
    labels = config.get("Labels") or {}
    variables = dict(one.partition("=")[::2] for one in config.get("Env") or ())
    for span in labels.get(SPANS, "").split():
        name, _, where = span.rpartition("=")
        before, _, after = where.partition("-")
        if before.isdigit() and after.isdigit():  # if not, the label is not ours
            value = variables.get(name, "")
            yield value[int(before) : max(0, len(value) - int(after))]


def _places(value: str, part: str) -> list[int]:
    """All positions of a part in a value."""
    places, at = [], value.find(part)
    while at >= 0:
        places.append(at)
        at = value.find(part, at + len(part))
    return places
