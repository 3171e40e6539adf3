"""What an environment's logs must not show, known from its containers by whoever reads them.

No value of a secret is written anywhere but into the variables of the containers that get it, in
which the engine keeps it; a label says where it stands in them. A secret that no container gets,
such as a header of the readiness probe, is known only to the process that launched the environment:
a digest of it in a label would help whoever guesses.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from pytest_ephemeral.interpolation import mask, worth_masking

#: Which parts of which variables are secret, by how much stands before and after them, such as
#: ``KEY=0-0 URL=16-3``. Not by their lengths: more people see labels than variables.
SPANS: Final = "pytest-ephemeral.secrets"

#: By environment: the secrets of what this process has launched.
_launched: Final[dict[str, Sequence[str]]] = {}


def labels_for(variables: Mapping[str, str], secrets: Sequence[str]) -> dict[str, str]:
    """The label by which an environment's logs are masked.

    Args:
        variables: A container's.
        secrets: What the logs must not show.
    """
    spans = [
        f"{name}={start}-{len(value) - start - len(secret)}"
        for secret in worth_masking(secrets)
        for name, value in variables.items()
        for start in _places(value, secret)
    ]
    return {SPANS: " ".join(spans)}


def remember(id: str, secrets: Sequence[str]) -> None:
    """Keep the secrets of an environment that this process launches, for its logs."""
    _launched[id] = tuple(secrets)


def forget(id: str) -> None:
    """Drop the secrets of an environment that is gone."""
    _launched.pop(id, None)


class Masking(msgspec.Struct, frozen=True):
    """Shows text without an environment's secrets."""

    secrets: Sequence[str]

    @classmethod
    def of(cls, configs: Iterable[Mapping[str, Any]], id: str = "") -> Masking:
        """For the logs of an environment.

        Args:
            configs: The ``Config`` of each of its containers: one may print what another got.
            id: The environment's.
        """
        found = [secret for config in configs for secret in _secrets_in(config)]
        return cls(worth_masking([*found, *_launched.get(id, ())]))

    def __call__(self, text: str) -> str:
        """The text with every secret in it shown as ``***``."""
        return mask(text, self.secrets)


def _secrets_in(config: Mapping[str, Any]) -> Iterable[str]:
    labels = config.get("Labels") or {}
    variables = dict(one.partition("=")[::2] for one in config.get("Env") or ())
    for span in labels.get(SPANS, "").split():
        name, _, where = span.rpartition("=")
        before, _, after = where.partition("-")
        if before.isdigit() and after.isdigit():  # else it is someone else's label
            value = variables.get(name, "")
            yield value[int(before) : max(0, len(value) - int(after))]


def _places(value: str, part: str) -> list[int]:
    """Every place where a value has the part."""
    places, at = [], value.find(part)
    while at >= 0:
        places.append(at)
        at = value.find(part, at + len(part))
    return places
