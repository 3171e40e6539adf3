"""The resources of an environment on an engine, found by their labels and their names.

Labels are not enough: an image that a user commits from an environment's container has the same
labels, and so have containers of that image.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import msgspec

from pytest_ephemeral import labels, machine
from pytest_ephemeral.errors import DestroyError, EphemeralError, TamperedRecordError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.docker import identity
from pytest_ephemeral.providers.docker.containers import handles_stop_signal
from pytest_ephemeral.providers.docker.engine import Engine, EngineError
from pytest_ephemeral.providers.protocol import Owned

#: The name of the provider: docker and compose use the same engine.
PROVIDER: Final = labels.PREFIX + "provider"

#: In a handle: the container of the docker provider; and the main part, which is set at the end
#: of a launch.
CONTAINER, COMPLETE = "container", "main"

#: A label of an empty volume that records a changed expiry: engines can't change the labels of
#: existing resources.
EXTENDED: Final = labels.PREFIX + "extended-at"

#: A label of a bake's container: the process that bakes.
PROCESS: Final = labels.PREFIX + "process"

#: Seconds after which the removal of resources fails.
PATIENCE: Final = 20.0
PAUSE: Final = 0.02

#: Seconds for which an engine may still carry out a request of a client that was killed.
IN_FLIGHT: Final = 0.5

#: The labels of an environment's resources.
_ENVIRONMENTS: Final = (
    *(labels.ID, labels.TEMPLATE, labels.RUN),
    *(labels.OWNER, labels.EXPIRES, labels.IMAGE),
)

_GONE, _CONFLICT, _IN_USE = 404, 409, 403


class Resources(msgspec.Struct, frozen=True):
    """The ids of containers and networks, and the names of volumes."""

    containers: Sequence[str] = ()
    networks: Sequence[str] = ()
    volumes: Sequence[str] = ()

    def __bool__(self) -> bool:
        return bool(self.containers or self.networks or self.volumes)

    def __str__(self) -> str:
        kinds = {
            "container": [id[:12] for id in self.containers],
            "network": [id[:12] for id in self.networks],
            "volume": self.volumes,
        }
        return ", ".join(f"{kind} {name}" for kind, names in kinds.items() for name in names)


def name_of(id: str) -> str:
    """The name of an environment's container and network."""
    return f"pytest-ephemeral-{id}"


def labels_for(environment: Environment, provider: str) -> dict[str, str]:
    """The labels of all resources of an environment."""
    return {**environment.labels, PROVIDER: provider}


def find(engine: Engine, id: str) -> Resources:
    """All resources of an environment."""
    containers, networks, volumes = _list(engine, f"{labels.ID}={id}")
    return Resources(
        [one["Id"] for one in containers if is_of(one, id)],
        [one["Id"] for one in networks if is_of(one, id)],
        [one["Name"] for one in volumes if is_of(one, id)],
    )


def containers(engine: Engine, id: str) -> list[Any]:
    """An environment's containers, from the engine's list."""
    query = {"all": True, "filters": {"label": [f"{labels.ID}={id}"]}}
    found: list[Any] = engine.call("GET", "/containers/json", query=query, timeout=10)
    return [one for one in found if is_of(one, id)]


def is_of(thing: Mapping[str, Any], id: str) -> bool:
    """Whether a resource with an environment's label has one of our names or of Compose's."""
    name, names = name_of(id), thing.get("Names") or [thing.get("Name", "")]
    return any(
        one == name or one.startswith((f"{name}-", f"{name}_"))
        for one in (str(each).lstrip("/") for each in names)
    )


def check_record(engine: Engine, environment: Environment) -> None:
    """Check an environment's record against the labels of its resources.

    Raises:
        TamperedRecordError: The record names a container that is not the environment's, or
            another run than the labels.
    """
    found = containers(engine, environment.id)
    for one in found:
        run = (one.get("Labels") or {}).get(labels.RUN)
        if run != environment.labels.get(labels.RUN, run):
            raise TamperedRecordError(
                f"{environment.id}: its record is of the run {environment.labels[labels.RUN]}, "
                f"but its container {one['Id'][:12]} is of {run}: nothing was removed"
            )
    recorded = environment.handle.get(CONTAINER)
    if recorded and recorded not in {one["Id"] for one in found} and _is_there(engine, recorded):
        raise TamperedRecordError(
            f"{environment.id}: its record names the container {recorded[:12]}, whose labels or "
            "name say that it is not this environment's: nothing was removed"
        )


def _is_there(engine: Engine, container: str) -> bool:
    try:
        engine.call("GET", f"/containers/{quote(container, safe='')}/json", timeout=10)
    except EngineError as error:
        if error.status == _GONE:
            return False
        raise
    return True


def destroy(
    engine: Engine,
    environment: Environment,
    accepted: Callable[[], None] = lambda: None,
    *,
    grace: float = 0.0,
) -> None:
    """Remove all resources of an environment.

    Args:
        engine: The environment's engine.
        environment: The environment.
        accepted: Called once its containers are gone; networks and volumes take longer.
        grace: Seconds that containers get to stop; 0 to kill them at once.

    Raises:
        DestroyError: Something remains, or the engine does not answer.
        TamperedRecordError: The record does not match the resources. Nothing was removed.
    """
    try:
        check_record(engine, environment)
        if grace:
            stop(engine, environment.id, grace)
        remove(engine, environment.id, accepted)
        if COMPLETE not in environment.handle and identity.ENGINE in environment.handle:
            # The launch was interrupted: the engine may still carry out its last request.
            time.sleep(IN_FLIGHT)
            while remove(engine, environment.id):
                time.sleep(IN_FLIGHT)
    except DestroyError:
        raise
    except (EphemeralError, TimeoutError) as error:
        raise DestroyError(
            f"{environment.id} could not be removed: {error}. Its record stays: "
            "`pytest-ephemeral reap` removes it once that is fixed"
        ) from error


def stop(engine: Engine, id: str, grace: float) -> None:
    """Send each running container its stop signal, and wait until all have stopped or are killed.

    A container that does not handle the signal is killed at once. Errors are ignored: a container
    may be gone.

    Args:
        engine: The environment's engine.
        id: The environment's id.
        grace: Seconds that containers get to stop.
    """
    from concurrent.futures import ThreadPoolExecutor

    running = [one["Id"] for one in containers(engine, id) if one["State"] == "running"]

    def stop(container: str) -> None:
        with suppress(EphemeralError, TimeoutError):
            handles_it = handles_stop_signal(engine, container)
            query = {"t": max(1, round(grace)) if handles_it else 0}  # in whole seconds
            engine.call("POST", f"/containers/{container}/stop", query=query, timeout=grace + 30)

    if running:
        with ThreadPoolExecutor(len(running)) as pool:
            list(pool.map(stop, running))


def remove(engine: Engine, id: str, accepted: Callable[[], None] = lambda: None) -> bool:
    """Remove all resources with an environment's label.

    Args:
        engine: The environment's engine.
        id: The environment's id.
        accepted: Called once its containers are gone.

    Returns:
        Whether there were any.

    Raises:
        DestroyError: Something remains; the message names it.
        NoEngineError: The engine does not answer.
    """
    deadline, found = time.monotonic() + PATIENCE, False
    while remaining := find(engine, id):
        found = True
        refused = _remove_containers(engine, remaining)
        if not refused:
            accepted()
        refused += _remove_rest(engine, remaining)
        if time.monotonic() > deadline:
            raise DestroyError(f"{id} still has {remaining}: {'; '.join(refused)}")
        if refused:
            time.sleep(PAUSE)
    return found


def remove_container(engine: Engine, id: str) -> None:
    """Remove a container, unless it is gone or being removed."""
    try:
        _delete_container(engine, f"/containers/{id}")
    except EngineError as error:
        if error.status not in {_GONE, _CONFLICT}:
            raise


def list_owned(engine: Engine, provider: str) -> Iterator[Owned]:
    """All resources of a provider, by environment."""
    now = engine.ping()
    things: dict[str, list[tuple[str, Mapping[str, str]]]] = {}
    kinds = ("container", "network", "volume")
    for kind, found in zip(kinds, _list(engine, f"{PROVIDER}={provider}"), strict=True):
        for thing in found:
            found_labels = thing.get("Labels") or {}
            if (id := found_labels.get(labels.ID)) and is_of(thing, id):
                things.setdefault(id, []).append((kind, found_labels))
    for id, parts in things.items():
        newest = max((one for _, one in parts), key=lambda one: one.get(EXTENDED, ""))
        detail = ", ".join(sorted({kind for kind, _ in parts}))
        ours = {name: newest[name] for name in _ENVIRONMENTS if name in newest}
        yield Owned(
            id=id,
            labels=ours,
            detail=detail,
            abandoned=machine.is_gone(newest.get(PROCESS, "")),
            seen_at=now,
        )


def extend(engine: Engine, environment: Environment, provider: str, expires: str) -> None:
    """Change the expiry that ``list_owned`` reads, by a new volume with the label.

    Args:
        engine: The environment's engine.
        environment: The environment.
        provider: The name of its provider.
        expires: The value of the expiry label.
    """
    before = [name for name in find(engine, environment.id).volumes if "-until-" in name]
    now = datetime.now(UTC).isoformat()
    new_labels = {**labels_for(environment, provider), labels.EXPIRES: expires, EXTENDED: now}
    name = f"{name_of(environment.id)}-until-{time.time_ns()}"
    engine.call("POST", "/volumes/create", body={"Name": name, "Labels": new_labels})
    for old in before:
        engine.call("DELETE", f"/volumes/{old}")


def may_clear(process: str) -> bool:
    """Whether this process may remove a process's bakes: its own, and those of dead processes.

    Other machines may bake the same key on a shared engine.
    """
    return process == this_process() or machine.is_gone(process)


def this_process() -> str:
    """The value of this process's ``PROCESS`` label."""
    return machine.process_of(machine.this_owner("bake"))


def _list(engine: Engine, label: str) -> tuple[list[Any], list[Any], list[Any]]:
    filters = {"label": [label]}
    containers = engine.call("GET", "/containers/json", query={"all": True, "filters": filters})
    networks = engine.call("GET", "/networks", query={"filters": filters})
    volumes = engine.call("GET", "/volumes", query={"filters": filters})
    return containers, networks, volumes["Volumes"] or []


def _remove_containers(engine: Engine, remaining: Resources) -> list[str]:
    """Remove containers; return the engine's refusals."""
    containers = [f"/containers/{id}" for id in remaining.containers]
    return _each(containers, lambda path: _delete_container(engine, path))


def _delete_container(engine: Engine, path: str) -> None:
    """Kill and remove a container, with its anonymous volumes.

    Podman 5 and newer would stop it first, which may take 10 s; a killed container needs no stop.
    """
    if identity.is_podman(engine):
        with suppress(EngineError):  # the container does not run
            engine.call("POST", f"{path}/kill")
    engine.call("DELETE", path, query={"force": True, "v": True})


def _remove_rest(engine: Engine, remaining: Resources) -> list[str]:
    """Remove networks and volumes; return the engine's refusals."""
    rest = [f"/networks/{id}" for id in remaining.networks]
    rest += [f"/volumes/{name}" for name in remaining.volumes]
    return _each(rest, lambda path: engine.call("DELETE", path))


def _each(paths: Sequence[str], delete: Callable[[str], Any]) -> list[str]:
    def refusal(path: str) -> str:
        try:
            delete(path)
        except EngineError as error:
            if error.status == _GONE:
                return ""
            if error.status in {_CONFLICT, _IN_USE}:
                return str(error)  # being removed, or still in use
            raise
        return ""

    if len(paths) < 2:
        return [text for path in paths if (text := refusal(path))]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(paths)) as pool:
        return [text for text in pool.map(refusal, paths) if text]
