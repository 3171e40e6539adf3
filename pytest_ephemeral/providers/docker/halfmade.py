"""What a bake has made and not verified: it has a name that says so, and is removed by that alone.

Labels would not do. Images that people build from ours have them too, and those are not ours.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any, Final

from pytest_ephemeral import labels
from pytest_ephemeral.providers import BakeJob, Owned
from pytest_ephemeral.providers.docker import bases
from pytest_ephemeral.providers.docker.engine import Engine, EngineError

#: Labels of what is baked: its key, and when that began.
KEY: Final = labels.PREFIX + "key"
BAKED: Final = labels.PREFIX + "baked-at"

#: How long after that a bake may be reaped even if it can't be told whose it is.
LONGEST: Final = timedelta(hours=6)

#: What half-made images are called: ``pytest-ephemeral-baking/NAME:KEY-PROCESS``.
REPOSITORY: Final = "pytest-ephemeral-baking"

#: That, as engines list it: Podman says where it would be pulled from.
_OURS: Final = re.compile(rf"(?:(?:docker\.io|localhost)/)?{REPOSITORY}/([^/:]+):(.+)")

#: This process's, so that what another one left is not taken for what this one is at.
_PROCESS: Final = secrets.token_hex(3)

_CONFLICT: Final = 409


def id_of(job: BakeJob) -> str:
    """The id of a bake, which its container has as a label."""
    return _id(job.recipe.name, _version(job))


def name_of(job: BakeJob) -> str:
    """The name of what it makes, until that is verified."""
    return f"{REPOSITORY}/{job.recipe.name}:{_version(job)}"


def owned(engine: Engine) -> Iterator[Owned]:
    """All that is half-made, and when nobody can be at it any more."""
    for id, _, found in _listed(engine, KEY):
        marks = {labels.ID: id, labels.EXPIRES: _expiry(found["Labels"].get(BAKED, ""))}
        yield Owned(id=id, labels=marks, detail="image")


def discard(engine: Engine, key: str) -> None:
    """Remove what bakes of a key have left, as far as no container is of it."""
    for _, name, _ in _listed(engine, f"{KEY}={key}"):
        try:
            bases.forget(engine, name)
        except EngineError as error:
            if error.status != _CONFLICT:
                raise


def sweep(engine: Engine, id: str) -> None:
    """Remove what one bake has left."""
    for other, name, _ in _listed(engine, KEY):
        if other == id:
            bases.forget(engine, name)


def _listed(engine: Engine, label: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """The bake's id, the name, and the image as the engine lists it."""
    for found in engine.call("GET", "/images/json", query={"filters": {"label": [label]}}):
        for name in found.get("RepoTags") or ():
            if match := _OURS.fullmatch(name):
                yield _id(match[1], match[2]), name, found


def _id(name: str, version: str) -> str:
    return f"bake-{name}-{version}"


def _version(job: BakeJob) -> str:
    return f"{job.key.removeprefix('sha256:')[:12]}-{_PROCESS}"


def _expiry(baked: str) -> str:
    try:
        return (datetime.fromisoformat(baked) + LONGEST).isoformat(timespec="seconds")
    except ValueError:  # someone else's label
        return labels.NEVER
