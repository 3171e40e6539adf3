"""The configuration keys of the docker provider's recipes and templates."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Annotated, ClassVar, Final

import msgspec

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.tables import Recipe, Template

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30}

#: An amount of memory: ``"512M"``, ``"2G"``.
Size = Annotated[str, msgspec.Meta(pattern="^[0-9]+[KMGkmg]?$")]
#: The name of a container's variable: many applications have names like ``spring.datasource.url``.
VariableName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$(?!\n)")]
#: A host name and its address, in the form of ``docker run --add-host``.
HostName = Annotated[str, msgspec.Meta(pattern="^[^:]+:.+$")]
#: A volume's name; it becomes part of the volume's name in the engine.
_VOLUME: Final = r"[a-zA-Z0-9][a-zA-Z0-9_.-]*"


class DockerRecipe(Recipe, frozen=True, kw_only=True):
    """A container image: from a Dockerfile, from ``base`` and ``install``, or a ``reference``.

    Attributes:
        context: The build context: a folder; its ``.dockerignore`` is respected.
        dockerfile: The path of the Dockerfile, relative to the context.
        target: The stage of the Dockerfile to build.
        build_args: Values for the Dockerfile's ``ARG`` instructions.
        base: The image to install into, for ``install``.
        platform: The platform to build for, such as ``"linux/arm64"``.
        secrets: Values for ``RUN --mount=type=secret``, by id: ``"{env:NAME}"``.
        cache_from: Sources of cached steps, in the form of ``docker buildx --cache-from``.
        cache_to: Where to save cached steps, in the form of ``docker buildx --cache-to``.
        registry: A repository to push the image to (``registry.example/team/shop``). Engines
            without the image pull it from there, by its digest.
    """

    provider: str = "docker"
    context: str | None = None
    dockerfile: str = "Dockerfile"
    target: str | None = None
    build_args: dict[str, str] = msgspec.field(default_factory=dict)
    base: str | None = None
    platform: str | None = None
    secrets: dict[str, str] = msgspec.field(default_factory=dict)
    cache_from: list[str] = msgspec.field(default_factory=list)
    cache_to: list[str] = msgspec.field(default_factory=list)
    registry: str | None = None

    def check(self) -> None:
        """Check that it has one source, and no keys of the others."""
        ways = {"context": self.context, "base": self.base, "reference": self.reference}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            problem = f"it has {' and '.join(given)}" if given else "its source is missing"
            raise ValueError(f"{problem}: give one of context (a Dockerfile), base, or reference")
        if self.base is not None and not self.install:
            raise ValueError("it has a base: give install, too (the commands to run in it)")
        if self.context is not None and self.install:
            raise ValueError("a Dockerfile installs by itself: remove install, or context")
        if self.context is None and (self.platform or self.secrets):
            raise ValueError("platform and secrets are for a Dockerfile: give context, or pass-env")
        for id, value in self.secrets.items():
            if not re.fullmatch(r"\{env:[^{}]+\}", value):
                raise ValueError(f'secrets: {id} must come from a variable, "{{env:NAME}}"')


class DockerTemplate(Template, frozen=True, kw_only=True):
    """A container.

    Attributes:
        command: The command, instead of the image's own. A string is run by ``/bin/sh``; a list
            is a program and its arguments, as in a Dockerfile's ``CMD``.
        volumes: ``"/path"`` or ``"name:/path"``. They are removed with the environment.
        tmpfs: Folders in memory: ``"/path"`` or ``"/path:size=64m"``.
        memory: The memory limit, such as ``"512M"``; a container that needs more is killed.
        cpus: The limit of processors, such as ``1.5``.
        network: An existing network to join, too.
        isolated: Whether to create a network for it, which other containers can't reach, instead
            of using the engine's default network.
        user: The user that runs the command, such as ``"www-data"`` or ``"1000:1000"``.
        extra_hosts: ``"name:address"``; the address ``host-gateway`` is this machine's.
        shm_size: The size of ``/dev/shm``, such as ``"256M"``.
        cap_add: Linux capabilities to add, such as ``"NET_ADMIN"``.
        init: Whether to run the engine's init process, which reaps zombie processes.
        stop_signal: The signal that stops it, if it has a ``grace``.
        grace: How long it may take to stop; without it, it is killed at once.
    """

    needs_port: ClassVar[bool] = False

    provider: str = "docker"
    env: dict[VariableName, str] = msgspec.field(default_factory=dict)
    command: str | list[str] | None = None
    volumes: list[str] = msgspec.field(default_factory=list)
    tmpfs: list[str] = msgspec.field(default_factory=list)
    memory: Size | None = None
    cpus: Annotated[float, msgspec.Meta(gt=0)] | None = None
    network: str | None = None
    isolated: bool = False
    user: str | None = None
    extra_hosts: list[HostName] = msgspec.field(default_factory=list)
    shm_size: Size | None = None
    cap_add: list[str] = msgspec.field(default_factory=list)
    init: bool = False
    stop_signal: str | None = None
    grace: Duration | None = None

    def check(self) -> None:
        """Check that it has an image, and that ``volumes`` and ``tmpfs`` are valid."""
        if self.image is None:
            raise ValueError("it needs an image")
        for volume in self.volumes:
            volume_of(volume)
        for folder in self.tmpfs:
            if not PurePosixPath(folder).is_absolute():
                raise ValueError(f'tmpfs: expected "/path" or "/path:size=64m", got {folder!r}')


def volume_of(text: str) -> tuple[str, str]:
    """A volume's name (empty if it has none), and the path that it is mounted on.

    Raises:
        ValueError: The text is not valid, or mounts a folder of this machine.
    """
    name, _, path = text.rpartition(":")
    if "/" in name or name.startswith("."):
        raise ValueError(
            f'volumes: {text!r} mounts a folder of this machine: expected "/path" or "name:/path", '
            "which are removed with the environment; put files that it reads into its image"
        )
    if (name and not re.fullmatch(_VOLUME, name)) or not PurePosixPath(path).is_absolute():
        raise ValueError(f'volumes: expected "/path" or "name:/path", got {text!r}')
    return name, path


def bytes_of(size: str) -> int:
    """Convert an amount of memory, such as ``"512M"``, to bytes."""
    unit = size[-1].lower() if size[-1].isalpha() else ""
    return int(size.removesuffix(size[-1]) if unit else size) * _UNITS[unit]
