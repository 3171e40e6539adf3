"""All that an environment has on an engine: what has its labels, and a name that agrees.

Labels alone would not do. An image that someone commits from an environment's container has them,
and so has whatever is started from that image.
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

#: Which provider made it, since two of them use the same engine.
PROVIDER: Final = labels.PREFIX + "provider"

#: In a handle: the container, where there is one; and the main part, which is known at the end of
#: a launch.
CONTAINER, COMPLETE = "container", "main"

#: On a volume that holds nothing but its labels: the expiry has moved, and to when. No engine
#: can change the labels of what is there already.
EXTENDED: Final = labels.PREFIX + "extended-at"

#: On a bake's container: the process that bakes, without which nobody wants it.
PROCESS: Final = labels.PREFIX + "process"

#: Seconds until what is being removed has to be gone.
PATIENCE: Final = 20.0
PAUSE: Final = 0.02

#: Seconds in which an engine still carries out what a client that was killed had asked for.
IN_FLIGHT: Final = 0.5

#: The labels that an environment itself has.
_ENVIRONMENTS: Final = (
    *(labels.ID, labels.TEMPLATE, labels.RUN),
    *(labels.OWNER, labels.EXPIRES, labels.IMAGE),
)

_GONE, _CONFLICT, _IN_USE = 404, 409, 403


class Resources(msgspec.Struct, frozen=True):
    """Containers and networks by their ids, volumes by their names."""

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
    """What an environment's container and network are called."""
    return f"pytest-ephemeral-{id}"


def labels_for(environment: Environment, provider: str) -> dict[str, str]:
    """What everything of an environment is labelled with."""
    return {**environment.labels, PROVIDER: provider}


def find(engine: Engine, id: str) -> Resources:
    """All that an environment has there."""
    containers, networks, volumes = _list(engine, f"{labels.ID}={id}")
    return Resources(
        [one["Id"] for one in containers if is_of(one, id)],
        [one["Id"] for one in networks if is_of(one, id)],
        [one["Name"] for one in volumes if is_of(one, id)],
    )


def containers(engine: Engine, id: str) -> list[Any]:
    """An environment's containers, as the engine lists them."""
    query = {"all": True, "filters": {"label": [f"{labels.ID}={id}"]}}
    found: list[Any] = engine.call("GET", "/containers/json", query=query, timeout=10)
    return [one for one in found if is_of(one, id)]


def is_of(thing: Mapping[str, Any], id: str) -> bool:
    """Whether something with an environment's label also has a name as we and Compose give it."""
    name, names = name_of(id), thing.get("Names") or [thing.get("Name", "")]
    return any(
        one == name or one.startswith((f"{name}-", f"{name}_"))
        for one in (str(each).lstrip("/") for each in names)
    )


def check_record(engine: Engine, environment: Environment) -> None:
    """Make sure that a record is of what is there, before any of that is removed.

    Raises:
        TamperedRecordError: It names a container that is not the environment's, or the environment
            is of another run than it says.
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
    """Remove all that an environment has there.

    Args:
        engine: Where it is.
        environment: Which.
        accepted: Called once its containers are gone; networks and volumes take their time.
        grace: Seconds its containers have to stop when they are asked to; without any, they are
            killed at once.

    Raises:
        DestroyError: Something remains, or it can't be told.
        TamperedRecordError: Its record does not fit what is there.
    """
    try:
        check_record(engine, environment)
        if grace:
            stop(engine, environment.id, grace)
        remove(engine, environment.id, accepted)
        if COMPLETE not in environment.handle and identity.ENGINE in environment.handle:
            # Its launch was cut short: the engine may still be at the last request of whoever died.
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

    One that does not hear the signal is killed at once. That may fail: one may be gone.

    Args:
        engine: Where they are.
        id: The environment's.
        grace: Seconds they have to stop.
    """
    from concurrent.futures import ThreadPoolExecutor

    running = [one["Id"] for one in containers(engine, id) if one["State"] == "running"]

    def stop(container: str) -> None:
        with suppress(EphemeralError, TimeoutError):
            handles_it = handles_stop_signal(engine, container)
            query = {"t": max(1, round(grace)) if handles_it else 0}  # engines take whole seconds
            engine.call("POST", f"/containers/{container}/stop", query=query, timeout=grace + 30)

    if running:
        with ThreadPoolExecutor(len(running)) as pool:
            list(pool.map(stop, running))


def remove(engine: Engine, id: str, accepted: Callable[[], None] = lambda: None) -> bool:
    """Remove all that carries an environment's label.

    Args:
        engine: Where it is.
        id: The environment's.
        accepted: Called once its containers are gone.

    Returns:
        Whether there was anything.

    Raises:
        DestroyError: Something remains.
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
    """Remove one container; gone already, or on its way, is as well."""
    try:
        _delete_container(engine, f"/containers/{id}")
    except EngineError as error:
        if error.status not in {_GONE, _CONFLICT}:
            raise


def list_owned(engine: Engine, provider: str) -> Iterator[Owned]:
    """All environments of one provider that have something there."""
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
    """Move the expiry that ``list_owned`` reads.

    Args:
        engine: Where it is.
        environment: Which.
        provider: The name of its provider.
        expires: As the label says it.
    """
    before = [name for name in find(engine, environment.id).volumes if "-until-" in name]
    now = datetime.now(UTC).isoformat()
    new_labels = {**labels_for(environment, provider), labels.EXPIRES: expires, EXTENDED: now}
    name = f"{name_of(environment.id)}-until-{time.time_ns()}"
    engine.call("POST", "/volumes/create", body={"Name": name, "Labels": new_labels})
    for old in before:
        engine.call("DELETE", f"/volumes/{old}")


def is_ours_to_clear(process: str) -> bool:
    """Whether what a process baked is this one's to clear up: its own, or that of one that is gone.

    Others may bake the same on an engine that they share.
    """
    return process == this_process() or machine.is_gone(process)


def this_process() -> str:
    """This process, as its bakes are marked."""
    return machine.process_of(machine.this_owner("bake"))


def _list(engine: Engine, label: str) -> tuple[list[Any], list[Any], list[Any]]:
    filters = {"label": [label]}
    containers = engine.call("GET", "/containers/json", query={"all": True, "filters": filters})
    networks = engine.call("GET", "/networks", query={"filters": filters})
    volumes = engine.call("GET", "/volumes", query={"filters": filters})
    return containers, networks, volumes["Volumes"] or []


def _remove_containers(engine: Engine, remaining: Resources) -> list[str]:
    """Remove containers; gives what could not be, and why."""
    containers = [f"/containers/{id}" for id in remaining.containers]
    return _each(containers, lambda path: _delete_container(engine, path))


def _delete_container(engine: Engine, path: str) -> None:
    """Kill and remove a container, with the volumes that are its own.

    Podman from version 5 on asks it to stop, and kills it 10 s later: what is killed need not.
    """
    if identity.is_podman(engine):
        with suppress(EngineError):  # it does not run
            engine.call("POST", f"{path}/kill")
    engine.call("DELETE", path, query={"force": True, "v": True})


def _remove_rest(engine: Engine, remaining: Resources) -> list[str]:
    """Remove what containers use, when they are gone; gives what could not be, and why."""
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
                return str(error)  # removed by someone else just now, or still in use
            raise
        return ""

    if len(paths) < 2:
        return [said for path in paths if (said := refusal(path))]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(len(paths)) as pool:
        return [said for said in pool.map(refusal, paths) if said]
