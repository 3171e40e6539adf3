"""Putting containers back: each is made anew from its image, with what it had written by then.

What containers had written once they were ready and seeded is kept as archives in files without a
name, which end with this process: the contents of their volumes, and what differs from their
images. Names, ports and networks stay. A service that had ended by then is not run again.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
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


class KeptContainer(msgspec.Struct, frozen=True):
    """One container of a baseline.

    Attributes:
        found: What the engine says of it.
        archives: What it had written, by where.
        volumes: Its volumes that have names, as the engine describes them.
        runs: Whether it ran; one that had ended is not started again.
    """

    found: Mapping[str, Any]
    archives: Sequence[Archive]
    volumes: Sequence[Mapping[str, Any]]
    runs: bool

    @property
    def name(self) -> str:
        """The container's name."""
        return str(self.found["Name"]).lstrip("/")

    @property
    def uses_volumes(self) -> bool:
        """Whether volumes can't be made anew as long as it is there."""
        return any(mount["Type"] == "volume" for mount in self.found["Mounts"])


class ContainerBaseline:
    """The containers of an environment as they were, and the files that hold what they wrote."""

    def __init__(self) -> None:
        self.parts: list[KeptContainer] = []
        self.files = ExitStack()


#: The baselines of environments that this process has brought up.
_baselines: dict[str, ContainerBaseline] = {}


def forget(id: str) -> None:
    """Let go of an environment's baseline, if it has one: it is being removed."""
    if baseline := _baselines.pop(id, None):
        baseline.files.close()


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
            baseline = _baselines[environment.id] = ContainerBaseline()
            keeper = _Keeper(engine, baseline.files)
            baseline.parts += [keeper.keep(found) for found in parts]
            start_in_order(engine, [one.found for one in baseline.parts if one.runs])
        return environment

    def roll_back(self, order: Order, /) -> Environment:
        """Remove those that ran, and whatever has a volume; make all of that anew."""
        environment = order.environment
        if environment.id not in _baselines:
            raise EphemeralError(f"{environment.id} has no baseline here")
        parts = [one for one in _baselines[environment.id].parts if one.runs or one.uses_volumes]
        with _explained(environment) as engine:
            made = _replace(engine, parts)
            handle = dict(environment.handle)
            if CONTAINER in handle:
                (handle[CONTAINER],) = made.values()
            environment = msgspec.structs.replace(environment, handle=handle)
            order.journal(environment)
            start_in_order(engine, [one.found for one in parts if one.runs], made)
        return environment


@contextmanager
def _explained(environment: Environment) -> Iterator[Engine]:
    """The environment's engine; what it refuses is an error of ours in any case."""
    try:
        yield identity.engine_of(environment.handle)
    except (TimeoutError, OSError) as error:
        raise EphemeralError(f"{environment.id}: {error or 'no answer in time'}") from error


def _each(act: Any, things: Sequence[Any]) -> list[Any]:
    """Do something with several things at once."""
    if len(things) < 2:
        return [act(one) for one in things]
    with ThreadPoolExecutor(len(things)) as pool:
        return list(pool.map(act, things))


# -- the baseline ----------------------------------------------------------------------------------


class _Keeper:
    """Keeps what containers have written.

    Args:
        engine: Where they are.
        files: Holds the files that it is kept in.
    """

    def __init__(self, engine: Engine, files: ExitStack) -> None:
        self._engine = engine
        self._files = files
        self._seen: set[str] = set()
        self._folder = machine.state_directory()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def keep(self, found: Mapping[str, Any]) -> KeptContainer:
        """Keep what a container has written; a volume that several have, once."""
        changes = self._keep_changes(found)
        archives, volumes = [], []
        for mount in found["Mounts"]:
            name = str(mount.get("Name", ""))
            if mount["Type"] != "volume" or name in self._seen:
                continue
            self._seen.add(name)
            folder = str(mount["Destination"])
            archives.append(Archive(folder, self._fetch(found["Id"], f"{folder}/.")))
            volume = self._engine.call("GET", f"/volumes/{name}")
            if resources.is_of(volume, found["Config"]["Labels"][labels.ID]):
                volumes.append(volume)
        return KeptContainer(
            found, [*archives, *changes], volumes, runs=bool(found["State"]["Running"])
        )

    def _keep_changes(self, found: Mapping[str, Any]) -> list[Archive]:
        """Keep what differs from its image, outside of its volumes."""
        changes = self._engine.call("GET", f"/containers/{found['Id']}/changes") or []
        inner = tuple(f"{mount['Destination']}/" for mount in found["Mounts"])
        changes = [one for one in changes if not f"{one['Path']}/".startswith(inner)]
        if deleted := [one["Path"] for one in changes if one["Kind"] == _DELETED]:
            raise EphemeralError(
                f"{found['Name'].lstrip('/')} has deleted {deleted[0]} of its image, which a "
                "rollback would bring back: delete it when the image is baked"
            )
        return [
            Archive(path.rpartition("/")[0] or "/", self._fetch(found["Id"], path))
            for path in _whole(changes)
        ]

    def _fetch(self, container: str, path: str) -> IO[bytes]:
        """Keep a path of a container; ``PATH/.`` is what is in a folder."""
        made = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - ends with the baseline
        file = self._files.enter_context(made)
        query, archive = {"path": path}, f"/containers/{container}/archive"
        with self._engine.stream("GET", archive, query=query) as answer:
            while data := answer.read(1 << 20):
                file.write(data)
        return file


def _whole(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The paths that have to be kept: all that was changed, and nothing twice.

    A folder is listed as changed when something in it is.
    """
    paths = sorted(one["Path"] for one in changes)
    parents = {path.rpartition("/")[0] for path in paths}
    added = {one["Path"] for one in changes if one["Kind"] == _ADDED}
    whole: list[str] = []
    for path in paths:
        is_inside = any(path.startswith(f"{one}/") for one in whole)
        if not is_inside and (path in added or path not in parents):
            whole.append(path)
    return whole


# -- and back to it --------------------------------------------------------------------------------


def _replace(engine: Engine, parts: Sequence[KeptContainer]) -> dict[str, str]:
    """Remove containers, and make them anew with what they had; their new ids, by name."""
    _each(lambda one: resources.remove_container(engine, one.name), parts)
    volumes = [volume for one in parts for volume in one.volumes]
    _each(lambda volume: _renew_volume(engine, volume), volumes)
    made: dict[str, str] = {}
    ids: dict[str, str] = {}  # by those before them
    for one in sorted(parts, key=lambda part: str(part.found["Created"])):
        made[one.name] = ids[one.found["Id"]] = _create_again(engine, one, ids)
    _each(lambda one: _unpack(engine, made[one.name], one.archives), parts)
    return made


def _renew_volume(engine: Engine, volume: Mapping[str, Any]) -> None:
    engine.call("DELETE", f"/volumes/{volume['Name']}")
    wanted = {
        "Name": volume["Name"],
        "Driver": volume["Driver"],
        "DriverOpts": volume.get("Options") or {},
        "Labels": volume["Labels"],
    }
    engine.call("POST", "/volumes/create", body=wanted)


def _create_again(engine: Engine, part: KeptContainer, ids: Mapping[str, str]) -> str:
    """A container like one that was removed; not started.

    Args:
        engine: Where it is.
        part: The one before it.
        ids: Those of containers that were made already, by the ids of the ones before them.
    """
    config, own = dict(part.found["Config"]), part.found["Id"][:12]
    config["Image"] = part.found["Image"]
    host = _follow(part.found["HostConfig"], ids)
    if config.get("Hostname") == own or "container:" in host["NetworkMode"]:
        config.pop("Hostname", None)
    for limit in host.get("Ulimits") or ():  # Podman tells another name than it takes
        limit["Name"] = limit["Name"].removeprefix("RLIMIT_").lower()
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


def _follow(host: Mapping[str, Any], ids: Mapping[str, str]) -> dict[str, Any]:
    """A host configuration with the new ids of containers whose network, say, is shared."""

    def new(value: Any) -> Any:
        if not isinstance(value, str) or not value.startswith("container:"):
            return value
        before = value.removeprefix("container:")
        return f"container:{ids.get(before, before)}"

    return {key: new(value) for key, value in host.items()}


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
