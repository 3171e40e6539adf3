"""What a bake has made and not verified yet: its containers, and the image.

The image has a name that says so, and is removed by that name alone. Labels would not do: images
that people build from ours have them too, and those are not ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from typing import Final, NamedTuple

from pytest_ephemeral import files, labels, machine
from pytest_ephemeral.providers.docker import bases, resources
from pytest_ephemeral.providers.docker.engine import Engine, EngineError
from pytest_ephemeral.providers.protocol import BakeJob, Owned

#: On a bake's containers: the key of what is baked.
BAKE: Final = labels.PREFIX + "bake"

#: Labels of what is baked: its key, and when that began.
KEY: Final = labels.PREFIX + "key"
BAKED: Final = labels.PREFIX + "baked-at"

#: How long after that a bake may be reaped even if it can't be told whose it is.
LONGEST: Final = timedelta(hours=6)

#: What unverified images are called: ``pytest-ephemeral-baking/NAME:KEY-PROCESS``.
REPOSITORY: Final = "pytest-ephemeral-baking"

#: That, as engines list it: Podman says where it would be pulled from.
_OURS: Final = re.compile(rf"(?:(?:docker\.io|localhost)/)?{REPOSITORY}/([^/:]+):(.+)")

_CONFLICT: Final = 409


def build_id(key: str) -> str:
    """What this process's build of a key is called."""
    return f"{short_key(key)}-{resources.this_process()}"


def cancel(engine: Engine, build: str) -> None:
    """Have an engine's BuildKit stop a build, if it is at it.

    It need not notice that whoever asked for the build has gone away: not before it has read all
    of the context, whose end it may not look at.

    Args:
        engine: Where.
        build: What ``build_id`` calls it.
    """
    with suppress(EngineError):  # Podman has no such call
        engine.call("POST", "/build/cancel", query={"id": build}, timeout=10)


def id_of(job: BakeJob) -> str:
    """The id of a bake, which its container has as a label."""
    return _id(job.recipe.name, build_id(job.key))


def name_of(job: BakeJob) -> str:
    """The name of what it makes, until that is verified."""
    return f"{REPOSITORY}/{job.recipe.name}:{build_id(job.key)}"


def list_owned(engine: Engine) -> Iterator[Owned]:
    """All that is unverified, and when nobody can be at it any more."""
    now = engine.ping()
    for one in _list(engine, KEY):
        found = {labels.ID: one.id, labels.EXPIRES: _expiry(one.baked)}
        gone = machine.is_gone(one.process)
        yield Owned(id=one.id, labels=found, detail="image", abandoned=gone, seen_at=now)


@contextmanager
def lock(key: str) -> Iterator[None]:
    """Hold the image of that key alone on this machine, until this process ends at the latest."""
    folder = machine.state_directory() / "bakes"
    folder.mkdir(parents=True, exist_ok=True)
    with files.hold_lock(folder / f"{short_key(key)}.lock"):
        yield


def discard(engine: Engine, key: str) -> None:
    """Remove what bakes of a key have left, except those of other living processes.

    An image that a container still runs from stays.
    """
    query = {"all": True, "filters": {"label": [f"{BAKE}={key}"]}}
    for found in engine.call("GET", "/containers/json", query=query):
        is_named = resources.is_of(found, found["Labels"].get(labels.ID, ""))
        if is_named and resources.is_ours_to_clear(found["Labels"].get(resources.PROCESS, "")):
            resources.remove_container(engine, found["Id"])
    for one in _list(engine, f"{KEY}={key}"):
        if not resources.is_ours_to_clear(one.process):
            continue
        try:
            bases.untag(engine, one.name)
        except EngineError as error:
            if error.status != _CONFLICT:
                raise


def sweep(engine: Engine, id: str) -> None:
    """Remove what one bake has left."""
    for one in _list(engine, KEY):
        if one.id == id:
            bases.untag(engine, one.name)


class _Unverified(NamedTuple):
    """One name of one image: the bake's id, its process, and when it began."""

    name: str
    id: str
    process: str
    baked: str


def _list(engine: Engine, label: str) -> Iterator[_Unverified]:
    for found in engine.call("GET", "/images/json", query={"filters": {"label": [label]}}):
        for name in found.get("RepoTags") or ():
            if match := _OURS.fullmatch(name):
                process = match[2].partition("-")[2]
                baked = found["Labels"].get(BAKED, "")
                yield _Unverified(name, _id(match[1], match[2]), process, baked)


def short_key(key: str) -> str:
    """As much of a key as names need."""
    return key.removeprefix("sha256:")[:12]


def _id(name: str, version: str) -> str:
    return f"bake-{name}-{version}"


def _expiry(baked: str) -> str:
    try:
        return (datetime.fromisoformat(baked) + LONGEST).isoformat(timespec="seconds")
    except ValueError:  # someone else's label
        return labels.NEVER
