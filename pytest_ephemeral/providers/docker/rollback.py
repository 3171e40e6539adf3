"""Roll back containers: each is created again from its image, with its files of the baseline.

The baseline is taken when the environment is ready and seeded. It has archives of all volumes, and
of all changes to the images' files, in unnamed files that end with this process. Names, ports and
networks do not change. A container that had ended by then is not started again.
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
from pytest_ephemeral.providers.docker.engine import TAR_TYPE, Engine
from pytest_ephemeral.providers.docker.resources import CONTAINER
from pytest_ephemeral.providers.docker.start_order import start_in_order
from pytest_ephemeral.providers.protocol import Order

#: Seconds that containers get to stop before the baseline is taken, so that their files are
#: consistent: a killed database would begin with a recovery.
GRACE: Final = 10.0

_ADDED, _DELETED = 1, 2


class Archive(msgspec.Struct, frozen=True):
    """Files of a container.

    Attributes:
        folder: The folder to unpack them in.
        file: The archive, a tar.
    """

    folder: str
    file: IO[bytes]


class KeptContainer(msgspec.Struct, frozen=True):
    """One container of a baseline.

    Attributes:
        found: The engine's description of the container.
        archives: The files that it had written.
        volumes: The engine's descriptions of its named volumes.
        runs: Whether it ran; if not, it is not started again.
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
        """Whether it has volumes, which can be replaced only when it is removed."""
        return any(mount["Type"] == "volume" for mount in self.found["Mounts"])


class ContainerBaseline:
    """The baseline of an environment: its containers, and the open files of the archives."""

    def __init__(self) -> None:
        self.parts: list[KeptContainer] = []
        self.files = ExitStack()


#: The baselines of the environments that this process has launched, by id.
_baselines: dict[str, ContainerBaseline] = {}


def forget(id: str) -> None:
    """Drop the baseline of a destroyed environment, if it has one."""
    if baseline := _baselines.pop(id, None):
        baseline.files.close()


class ContainerRollback:
    """The part of a container provider that rolls environments back; see ``SupportsRollback``."""

    def take_baseline(self, order: Order, /) -> Environment:
        """Stop all containers, archive their files, and start them again."""
        environment = order.environment
        with _translate_errors(environment) as engine:
            parts = [
                containers.inspect(engine, one["Id"])
                for one in resources.containers(engine, environment.id)
            ]
            seconds = grace.read(environment.handle) or GRACE
            resources.stop(engine, environment.id, seconds)
            baseline = _baselines[environment.id] = ContainerBaseline()
            archiver = _Archiver(engine, baseline.files)
            baseline.parts += [archiver.archive(found) for found in parts]
            start_in_order(engine, [one.found for one in baseline.parts if one.runs])
        return environment

    def roll_back(self, order: Order, /) -> Environment:
        """Remove the containers that ran or have volumes, and create them again."""
        environment = order.environment
        if environment.id not in _baselines:
            raise EphemeralError(f"{environment.id} has no baseline here")
        parts = [one for one in _baselines[environment.id].parts if one.runs or one.uses_volumes]
        with _translate_errors(environment) as engine:
            made = _replace(engine, parts)
            handle = dict(environment.handle)
            if CONTAINER in handle:
                (handle[CONTAINER],) = made.values()
            environment = msgspec.structs.replace(environment, handle=handle)
            order.journal(environment)
            start_in_order(engine, [one.found for one in parts if one.runs], made)
        return environment


@contextmanager
def _translate_errors(environment: Environment) -> Iterator[Engine]:
    """The environment's engine; errors of the connection become ``EphemeralError``."""
    try:
        yield identity.engine_of(environment.handle)
    except (TimeoutError, OSError) as error:
        raise EphemeralError(f"{environment.id}: {error or 'no answer in time'}") from error


def _each(act: Any, things: Sequence[Any]) -> list[Any]:
    """Call a function for several things at once, in threads."""
    if len(things) < 2:
        return [act(one) for one in things]
    with ThreadPoolExecutor(len(things)) as pool:
        return list(pool.map(act, things))


# -- the baseline ----------------------------------------------------------------------------------


class _Archiver:
    """Archives the files that containers have written.

    Args:
        engine: The containers' engine.
        files: Keeps the archives open.
    """

    def __init__(self, engine: Engine, files: ExitStack) -> None:
        self._engine = engine
        self._files = files
        self._seen: set[str] = set()
        self._folder = machine.state_directory()
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    def archive(self, found: Mapping[str, Any]) -> KeptContainer:
        """Archive a container's volumes and changed files; a shared volume only once."""
        changes = self._archive_changes(found)
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

    def _archive_changes(self, found: Mapping[str, Any]) -> list[Archive]:
        """Archive the files that differ from the image, outside of volumes."""
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
            for path in _changed_paths(changes)
        ]

    def _fetch(self, container: str, path: str) -> IO[bytes]:
        """Archive a path of a container; ``PATH/.`` is the content of a folder."""
        made = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 - ends with the baseline
        file = self._files.enter_context(made)
        query, archive = {"path": path}, f"/containers/{container}/archive"
        with self._engine.stream("GET", archive, query=query) as answer:
            while data := answer.read(1 << 20):
                file.write(data)
        return file


def _changed_paths(changes: Sequence[Mapping[str, Any]]) -> list[str]:
    """The paths to archive, so that each changed file is in one archive.

    Engines list a folder as changed if a file in it is.
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
    """Remove containers, and create them again with their files; return the new ids, by name."""
    _each(lambda one: resources.remove_container(engine, one.name), parts)
    volumes = [volume for one in parts for volume in one.volumes]
    _each(lambda volume: _renew_volume(engine, volume), volumes)
    made: dict[str, str] = {}
    ids: dict[str, str] = {}  # the new ids, by the old ones
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
    """Create a container like one that was removed; return its id. It is not started.

    Args:
        engine: The engine.
        part: The removed container.
        ids: The new ids of containers that were created again, by their old ids.
    """
    config, own = dict(part.found["Config"]), part.found["Id"][:12]
    config["Image"] = part.found["Image"]
    host = _follow(part.found["HostConfig"], ids)
    if config.get("Hostname") == own or "container:" in host["NetworkMode"]:
        config.pop("Hostname", None)
    for limit in host.get("Ulimits") or ():  # Podman returns other names than it accepts
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
    """Replace old ids in a host configuration, such as in ``NetworkMode: container:ID``."""

    def new(value: Any) -> Any:
        if not isinstance(value, str) or not value.startswith("container:"):
            return value
        before = value.removeprefix("container:")
        return f"container:{ids.get(before, before)}"

    return {key: new(value) for key, value in host.items()}


def _network(found: Mapping[str, Any], own: str) -> dict[str, Any]:
    """A container's settings on a network, without its address, which may change."""
    aliases = [one for one in found.get("Aliases") or () if one != own]
    kept = {name: found.get(name) for name in ("IPAMConfig", "Links", "DriverOpts")}
    return {**{name: value for name, value in kept.items() if value}, "Aliases": aliases}


def _unpack(engine: Engine, container: str, archives: Sequence[Archive]) -> None:
    for one in archives:
        one.file.seek(0)
        query = {"path": one.folder}
        path = f"/containers/{container}/archive"
        with engine.stream("PUT", path, query=query, body=one.file, headers=TAR_TYPE) as answer:
            answer.read()
