"""The unverified resources of bakes: containers and images.

An unverified image has a special name, and is removed by that name. Labels are not enough: an image
that a user builds from ours has the same labels.
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

#: A label of a bake's containers: the image's key.
BAKE: Final = labels.PREFIX + "bake"

#: Labels of a baked image: its key, and the start of the bake.
KEY: Final = labels.PREFIX + "key"
BAKED: Final = labels.PREFIX + "baked-at"

#: How long after its start a bake may be reaped, even if its process can't be checked.
LONGEST: Final = timedelta(hours=6)

#: The start of unverified images' names: ``pytest-ephemeral-baking/NAME:KEY-PROCESS``.
REPOSITORY: Final = "pytest-ephemeral-baking"

#: Such a name in an engine's list: Podman adds a registry.
_OURS: Final = re.compile(rf"(?:(?:docker\.io|localhost)/)?{REPOSITORY}/([^/:]+):(.+)")

_CONFLICT: Final = 409


def build_id(key: str) -> str:
    """The id of this process's build of a key."""
    return f"{short_key(key)}-{resources.this_process()}"


def cancel(engine: Engine, build: str) -> None:
    """Make an engine's BuildKit cancel a build, if it runs.

    BuildKit may not notice that the client is gone before it has read the whole context.

    Args:
        engine: The engine that builds.
        build: The build's id, from ``build_id``.
    """
    with suppress(EngineError):  # Podman has no such call
        engine.call("POST", "/build/cancel", query={"id": build}, timeout=10)


def id_of(job: BakeJob) -> str:
    """The id of a bake, for the labels of its container."""
    return _id(job.recipe.name, build_id(job.key))


def name_of(job: BakeJob) -> str:
    """The name of the bake's image until it is verified."""
    return f"{REPOSITORY}/{job.recipe.name}:{build_id(job.key)}"


def list_owned(engine: Engine) -> Iterator[Owned]:
    """All unverified images, each with an expiry after which no bake can still use it."""
    now = engine.ping()
    for one in _list(engine, KEY):
        found = {labels.ID: one.id, labels.EXPIRES: _expiry(one.baked)}
        gone = machine.is_gone(one.process)
        yield Owned(id=one.id, labels=found, detail="image", abandoned=gone, seen_at=now)


@contextmanager
def lock(key: str) -> Iterator[None]:
    """Hold the lock of a key on this machine; it ends with this process at the latest."""
    folder = machine.state_directory() / "bakes"
    folder.mkdir(parents=True, exist_ok=True)
    with files.hold_lock(folder / f"{short_key(key)}.lock"):
        yield


def discard(engine: Engine, key: str) -> None:
    """Remove the containers and images of a key's bakes, except those of other live processes.

    An image that a container uses is not removed.
    """
    query = {"all": True, "filters": {"label": [f"{BAKE}={key}"]}}
    for found in engine.call("GET", "/containers/json", query=query):
        is_named = resources.is_of(found, found["Labels"].get(labels.ID, ""))
        if is_named and resources.may_clear(found["Labels"].get(resources.PROCESS, "")):
            resources.remove_container(engine, found["Id"])
    for one in _list(engine, f"{KEY}={key}"):
        if not resources.may_clear(one.process):
            continue
        try:
            bases.untag(engine, one.name)
        except EngineError as error:
            if error.status != _CONFLICT:
                raise


def sweep(engine: Engine, id: str) -> None:
    """Remove the unverified images of one bake."""
    for one in _list(engine, KEY):
        if one.id == id:
            bases.untag(engine, one.name)


class _Unverified(NamedTuple):
    """A name of an unverified image; the id, the process and the start of its bake."""

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
    """The first 12 digits of a key, for use in names."""
    return key.removeprefix("sha256:")[:12]


def _id(name: str, version: str) -> str:
    return f"bake-{name}-{version}"


def _expiry(baked: str) -> str:
    try:
        return (datetime.fromisoformat(baked) + LONGEST).isoformat(timespec="seconds")
    except ValueError:  # the label is not ours
        return labels.NEVER
