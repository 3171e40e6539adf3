"""The identity of an engine: recorded at launch, and checked before its answers are used.

An address is not enough: ``unix:///var/run/docker.sock`` is another engine on every machine, and a
record that was tampered with may name an engine of its author. So a recorded address is used only
if this machine or this user has configured it, and only the engine that the environment was
launched on can tell that it is gone.
"""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit

import msgspec

from pytest_ephemeral import machine
from pytest_ephemeral.errors import ElsewhereError, EphemeralError
from pytest_ephemeral.providers.docker import endpoint, masking
from pytest_ephemeral.providers.docker.engine import Address, Engine
from pytest_ephemeral.providers.protocol import Order

#: In a handle: the engine's address, and its id.
ENGINE, ENGINE_ID = "engine", "engine-id"

#: The prefix of the names of Docker's drivers with the containerd store.
_SNAPSHOTTER: Final = "io.containerd.snapshotter"


class _Known(NamedTuple):
    """The properties of an engine: its id, and how it stores images."""

    id: str
    has_manifests: bool
    is_podman: bool


_known: Final[dict[Address, _Known]] = {}
_lock: Final = threading.Lock()


def handle_of(engine: Engine) -> dict[str, str]:
    """The entries in a handle by which ``engine_of`` finds the engine again."""
    return {ENGINE: engine.address.url, ENGINE_ID: id_of(engine)}


def engine_of(handle: Mapping[str, str]) -> Engine:
    """The engine that an environment was launched on.

    Args:
        handle: The environment's handle. If it names no engine, nothing was created yet: then
            it is the engine that this process uses.

    Raises:
        ElsewhereError: The address is not trusted, or another engine answers there.
        NoEngineError: The engine does not answer.
    """
    if ENGINE not in handle:
        return endpoint.find()
    engine = Engine(_find_trusted(handle[ENGINE]))
    if id_of(engine) != handle.get(ENGINE_ID):
        raise ElsewhereError(
            f"it was launched on another container engine than the one at {engine.address}: "
            "its record stays; remove it on the machine where it was launched"
        )
    return engine


def begin_launch(order: Order, engine: Engine) -> Order:
    """Journal the engine of an environment before anything is created.

    Args:
        order: The order.
        engine: The engine to launch on.

    Returns:
        The order, with the journaled environment.
    """
    handle = handle_of(engine)
    environment = msgspec.structs.replace(order.environment, handle=handle)
    order.journal(environment)
    masking.remember(environment.id, order.secrets)
    return msgspec.structs.replace(order, environment=environment)


def id_of(engine: Engine) -> str:
    """The id of an engine.

    Docker has an id. Before version 25 it is the machine's, so the engine's data folder is part of
    ours. Podman returns another id in every answer, so we use the machine's id instead.

    Raises:
        NoEngineError: The engine does not answer.
    """
    return _look_up(engine).id


def has_manifests(engine: Engine) -> bool:
    """Whether an engine identifies images by their manifests, as Docker's containerd store does.

    Raises:
        NoEngineError: The engine does not answer.
    """
    return _look_up(engine).has_manifests


def is_podman(engine: Engine) -> bool:
    """Whether an engine is Podman, by its implementation of Docker's API.

    Raises:
        NoEngineError: The engine does not answer.
    """
    return _look_up(engine).is_podman


def _look_up(engine: Engine) -> _Known:
    """The properties of an engine, asked for once in a process."""
    with _lock:
        if engine.address not in _known:
            info = engine.call("GET", "/info", timeout=10)
            own = str(info.get("ID", ""))
            if is_podman := "BuildahVersion" in info:
                own = f"{info.get('Name', '')} " + machine.machine_id() * (not engine.address.host)
            text = f"{own}|{info.get('DockerRootDir', '')}"
            snapshotter = any(str(value).startswith(_SNAPSHOTTER) for _, value in _driver(info))
            id = hashlib.sha256(text.encode()).hexdigest()[:20]
            _known[engine.address] = _Known(id, snapshotter, is_podman)
        return _known[engine.address]


def _driver(info: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The properties of an engine's storage driver; none for Podman, which has another form."""
    return [tuple(pair) for pair in info.get("DriverStatus") or () if len(pair) == 2]


def look_up_early(engine: Engine) -> None:
    """Look up an engine's id in a thread, as a launch needs it first of all."""

    def look_up() -> None:
        with suppress(EphemeralError, TimeoutError):  # the launch will get the same error
            id_of(engine)

    threading.Thread(target=look_up, name="engine id", daemon=True).start()


def contact() -> None:
    """Look up the engine's id, if it is on this machine: remote ones are only used on demand."""
    with suppress(EphemeralError, TimeoutError):
        engine = endpoint.find()
        if not engine.address.host:
            id_of(engine)


def _find_trusted(url: str) -> Address:
    """An address from a record, if something other than the record confirms it.

    For a socket, its owner must be this user or root. For a host, ``DOCKER_HOST`` or one of this
    user's docker contexts must name it; that also gives the certificates.
    """
    for known in endpoint.list_addresses(os.environ):
        if known.url == url:
            return known
    parts = urlsplit(url)
    if parts.scheme == "unix" and _is_socket_trusted(Path(parts.path)):
        return Address(url)
    raise ElsewhereError(
        f"its record names the container engine {url!r}, which neither DOCKER_HOST nor a docker "
        "context here names: nothing was removed. If it is yours, set DOCKER_HOST to it"
    )


def _is_socket_trusted(socket: Path) -> bool:
    """Whether a socket belongs to root or this user; True if there is none, so no engine."""
    try:
        owner = socket.stat().st_uid
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not hasattr(os, "getuid") or owner in {0, os.getuid()}
