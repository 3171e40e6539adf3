"""Putting containers back: each is made anew from its image, with what it had written by then.

What containers had written once they were ready and seeded is kept as archives in files without a
name, which end with this process: the contents of their volumes, and what differs from their
images. Names, ports and networks stay. What a service had done and ended with stays as it is.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import IO, Any, Final

import msgspec

from pytest_ephemeral import labels, machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import grace
from pytest_ephemeral.providers.docker import containers, identity, resources
from pytest_ephemeral.providers.docker.engine import Engine
from pytest_ephemeral.providers.docker.resources import CONTAINER
from pytest_ephemeral.providers.docker.start_order import start_in_order
from pytest_ephemeral.providers.protocol import Order

#: Seconds that containers have to stop before the baseline is taken, so that they leave what they
#: write in order: a database that was killed begins with a recovery.
GRACE: Final = 10.0

_TAR: Final = {"Content-Type": "application/x-tar"}
_ADDED, _DELETED = 1, 2


class Archive(msgspec.Struct, frozen=True):
    """What a container had written somewhere.

    Attributes:
        folder: Where it is unpacked.
        file: An archive.
    """

    folder: str
    file: IO[bytes]


class Part(msgspec.Struct, frozen=True):
    """One container of a baseline.

    Attributes:
        found: What the engine says of it.
        archives: What it had written, by where.
        volumes: Its volumes that have names, as the engine describes them.
        runs: Whether it ran; one that had ended is left as it is.
    """

    found: Mapping[str, Any]
    archives: Sequence[Archive]
    volumes: Sequence[Mapping[str, Any]]
    runs: bool

    @property
    def name(self) -> str:
        """The container's name."""
        return str(self.found["Name"]).lstrip("/")


#: The baselines of environments that this process has brought up.
_baselines: dict[str, list[Part]] = {}


class ContainerRollback:
    """The part of a container provider that puts environments back; see ``SupportsRollback``."""

    def take_baseline(self, order: Order, /) -> Environment:
        """Stop all, keep what they have written, and start them again."""
        environment = order.environment
        with _explained(environment) as engine:
            parts = [
                containers.inspect(engine, one["Id"])
                for one in resources.containers(engine, environment.id)
            ]
            seconds = grace.read(environment.handle) or GRACE
            resources.stop(engine, environment.id, seconds)
            seen: set[str] = set()
            _baselines[environment.id] = [_keep(engine, found, seen) for found in parts]
            start_in_order(engine, [one.found for one in _running(environment)])
        return environment

    def roll_back(self, order: Order, /) -> Environment:
        """Remove those that ran, with their volumes, and make them anew."""
        environment = order.environment
        with _explained(environment) as engine:
            running = _running(environment)
            _each(lambda one: resources.remove_container(engine, one.name), running)
            volumes = [volume for one in running for volume in one.volumes]
            _each(lambda volume: _renew_volume(engine, volume), volumes)
            made = dict(zip((one.name for one in running), _create(engine, running), strict=True))
            handle = dict(environment.handle)
            if CONTAINER in handle:
                (handle[CONTAINER],) = made.values()
            environment = msgspec.structs.replace(environment, handle=handle)
            order.journal(environment)
            _each(lambda one: _unpack(engine, made[one.name], one.archives), running)
            start_in_order(engine, [one.found for one in running], made)
        return environment


@contextmanager
def _explained(environment: Environment) -> Iterator[Engine]:
    """The environment's engine; what it refuses is an error of ours in any case."""
    try:
        yield identity.engine_of(environment.handle)
    except (TimeoutError, OSError) as error:
        raise EphemeralError(f"{environment.id}: {error or 'no answer in time'}") from error


def _running(environment: Environment) -> list[Part]:
    if environment.id not in _baselines:
        raise EphemeralError(f"{environment.id} has no baseline here")
    return [one for one in _baselines[environment.id] if one.runs]


def _each(act: Any, things: Sequence[Any]) -> list[Any]:
    """Do something with several things at once."""
    if len(things) < 2:
        return [act(one) for one in things]
    with ThreadPoolExecutor(len(things)) as pool:
        return list(pool.map(act, things))


# -- the baseline ----------------------------------------------------------------------------------


def _keep(engine: Engine, found: Mapping[str, Any], seen: set[str]) -> Part:
    """Keep what a container has written; a volume that several have, once."""
    archives, volumes = [], []
    for mount in found["Mounts"]:
        name = str(mount.get("Name", ""))
        if mount["Type"] != "volume" or name in seen:
            continue
        seen.add(name)
        archives.append(_fetch(engine, found["Id"], f"{mount['Destination']}/.", "."))
        volume = engine.call("GET", f"/volumes/{name}")
        if resources.is_of(volume, found["Config"]["Labels"][labels.ID]):
            volumes.append(volume)
    archives += _keep_changes(engine, found)
    return Part(found, archives, volumes, runs=bool(found["State"]["Running"]))


def _keep_changes(engine: Engine, found: Mapping[str, Any]) -> Iterator[Archive]:
    """Keep what differs from its image, outside of its volumes."""
    changes = engine.call("GET", f"/containers/{found['Id']}/changes") or []
    inner = tuple(f"{mount['Destination']}/" for mount in found["Mounts"])
    changes = [one for one in changes if not f"{one['Path']}/".startswith(inner)]
    if deleted := [one["Path"] for one in changes if one["Kind"] == _DELETED]:
        raise EphemeralError(
            f"{found['Name'].lstrip('/')} has deleted {deleted[0]} of its image, which a rollback "
            "would bring back: have it deleted in the image"
        )
    paths = sorted(one["Path"] for one in changes)
    parents = {path.rpartition("/")[0] for path in paths}
    added = {one["Path"] for one in changes if one["Kind"] == _ADDED}
    whole: list[str] = []
    for path in paths:
        if any(path.startswith(f"{one}/") for one in whole):
            continue
        if path in added or path not in parents:
            whole.append(path)
    for path in whole:
        yield _fetch(engine, found["Id"], path, "..")


def _fetch(engine: Engine, container: str, path: str, at: str) -> Archive:
    """Keep a path of a container.

    Args:
        engine: Where it is.
        container: Its id.
        path: A path, or ``PATH/.`` for what is in a folder.
        at: Whether the archive is of what is in it (``.``), or of itself in its folder (``..``).
    """
    folder = path.removesuffix("/.") if at == "." else path.rpartition("/")[0] or "/"
    state = machine.state_directory()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = tempfile.TemporaryFile(dir=state)  # noqa: SIM115 - it ends with the baseline
    with engine.stream("GET", f"/containers/{container}/archive", query={"path": path}) as answer:
        while data := answer.read(1 << 20):
            file.write(data)
    return Archive(folder, file)


# -- and back to it --------------------------------------------------------------------------------


def _renew_volume(engine: Engine, volume: Mapping[str, Any]) -> None:
    engine.call("DELETE", f"/volumes/{volume['Name']}")
    wanted = {
        "Name": volume["Name"],
        "Driver": volume["Driver"],
        "DriverOpts": volume.get("Options") or {},
        "Labels": volume["Labels"],
    }
    engine.call("POST", "/volumes/create", body=wanted)


def _create(engine: Engine, parts: Sequence[Part]) -> list[str]:
    return _each(lambda one: _create_again(engine, one), parts)


def _create_again(engine: Engine, part: Part) -> str:
    """A container like one that was removed; not started."""
    config, own = dict(part.found["Config"]), part.found["Id"][:12]
    config["Image"] = part.found["Image"]
    if config.get("Hostname") == own:
        del config["Hostname"]
    host = dict(part.found["HostConfig"])
    networks = {
        name: _network(one, own)
        for name, one in (part.found["NetworkSettings"]["Networks"] or {}).items()
    }
    first, *others = networks or [""]
    body = {**config, "HostConfig": host}
    if (first and first == host.get("NetworkMode")) or len(networks) == 1:
        body["NetworkingConfig"] = {"EndpointsConfig": {first: networks[first]} if first else {}}
    made = engine.call("POST", "/containers/create", query={"name": part.name}, body=body)
    for name in others:
        joined = {"Container": made["Id"], "EndpointConfig": networks[name]}
        engine.call("POST", f"/networks/{name}/connect", body=joined)
    return str(made["Id"])


def _network(found: Mapping[str, Any], own: str) -> dict[str, Any]:
    """How a container is on a network; the engine chooses its address again."""
    aliases = [one for one in found.get("Aliases") or () if one != own]
    kept = {name: found.get(name) for name in ("IPAMConfig", "Links", "DriverOpts")}
    return {**{name: value for name, value in kept.items() if value}, "Aliases": aliases}


def _unpack(engine: Engine, container: str, archives: Sequence[Archive]) -> None:
    for one in archives:
        one.file.seek(0)
        query = {"path": one.folder}
        path = f"/containers/{container}/archive"
        with engine.stream("PUT", path, query=query, body=one.file, headers=_TAR) as answer:
            answer.read()
