"""Which engine it is: recorded at launch, and compared before anything said of it is believed.

An address alone says little. ``unix:///var/run/docker.sock`` is another engine on every machine,
and a record that was tampered with may name an engine that says what its author wants. So a
recorded address is used only if this machine or this user vouches for it, and only the engine that
the environment was launched on can say that it is gone.
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

#: In a handle: the engine's address, and its own id.
ENGINE, ENGINE_ID = "engine", "engine-id"

#: What Docker calls the drivers of its containerd store.
_SNAPSHOTTER: Final = "io.containerd.snapshotter"


class _Known(NamedTuple):
    """What an engine says of itself: what tells it from others, and how it keeps images."""

    id: str
    has_manifests: bool
    is_podman: bool


_known: Final[dict[Address, _Known]] = {}
_lock: Final = threading.Lock()


def handle_of(engine: Engine) -> dict[str, str]:
    """What ``engine_of`` finds an engine again by."""
    return {ENGINE: engine.address.url, ENGINE_ID: id_of(engine)}


def engine_of(handle: Mapping[str, str]) -> Engine:
    """The engine that an environment was launched on.

    Args:
        handle: The environment's. Empty when nothing was asked of any engine yet: then it is the
            engine that this process uses.

    Raises:
        ElsewhereError: It can't be reached from here, or what answers there is another one.
        NoEngineError: It does not answer.
    """
    if ENGINE not in handle:
        return endpoint.find()
    engine = Engine(_trusted(handle[ENGINE]))
    if id_of(engine) != handle.get(ENGINE_ID):
        raise ElsewhereError(
            f"it was launched on another container engine than the one at {engine.address}: "
            "its record stays; remove it on the machine where it was launched"
        )
    return engine


def begin_launch(order: Order, engine: Engine) -> Order:
    """Record where an environment is about to be made, before anything of it is.

    Args:
        order: What is asked for.
        engine: Where.

    Returns:
        The order, with the environment as it is recorded now.
    """
    handle = handle_of(engine)
    environment = msgspec.structs.replace(order.environment, handle=handle)
    order.journal(environment)
    masking.remember(environment.id, order.secrets)
    return msgspec.structs.replace(order, environment=environment)


def id_of(engine: Engine) -> str:
    """What tells an engine from others.

    Docker has an id, which before its version 25 is the machine's: two engines of one machine
    differ in where their data is. Podman makes up another id for every answer, so that its machine
    takes the id's place.

    Raises:
        NoEngineError: It does not answer.
    """
    return _ask(engine).id


def has_manifests(engine: Engine) -> bool:
    """Whether an engine knows images by their manifests: Docker's containerd store does.

    Raises:
        NoEngineError: It does not answer.
    """
    return _ask(engine).has_manifests


def is_podman(engine: Engine) -> bool:
    """Whether an engine is Podman, speaking Docker's language.

    Raises:
        NoEngineError: It does not answer.
    """
    return _ask(engine).is_podman


def _ask(engine: Engine) -> _Known:
    """Ask an engine for what it is, once a process."""
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
    """What an engine says of what it keeps images in; Podman has it in another form."""
    return [tuple(pair) for pair in info.get("DriverStatus") or () if len(pair) == 2]


def ask_early(engine: Engine) -> None:
    """Ask an engine for its id beside what else there is to do: a launch needs it first of all."""

    def ask() -> None:
        with suppress(EphemeralError, TimeoutError):  # whoever needs it gets the error
            id_of(engine)

    threading.Thread(target=ask, name="engine id", daemon=True).start()


def contact() -> None:
    """Ask the engine for its id, if it is on this machine: another is not asked unasked."""
    with suppress(EphemeralError, TimeoutError):
        engine = endpoint.find()
        if not engine.address.host:
            id_of(engine)


def _trusted(url: str) -> Address:
    """An address from a record, if someone other than the record vouches for it.

    For a socket, its owner: this user or root. For a host, the docker command's settings, which
    also say with which certificates: ``DOCKER_HOST`` or a context of this user.
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
    """Whether only root or this user could have put an engine there; one not there is no engine."""
    try:
        owner = socket.stat().st_uid
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return not hasattr(os, "getuid") or owner in {0, os.getuid()}
