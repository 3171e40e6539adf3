"""The keys that recipes and templates of the docker provider have."""

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
#: The name of a container's variable: many applications read ``spring.datasource.url`` and such.
VariableName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_.-]*$(?!\n)")]
#: A name and the address it stands for, as ``docker run --add-host`` takes it.
HostName = Annotated[str, msgspec.Meta(pattern="^[^:]+:.+$")]
#: A volume's name; it becomes part of the name that the engine knows it by.
_VOLUME: Final = r"[a-zA-Z0-9][a-zA-Z0-9_.-]*"


class DockerRecipe(Recipe, frozen=True, kw_only=True):
    """A container image: from a Dockerfile, from ``base`` and ``install``, or a ``reference``.

    Attributes:
        context: The folder a Dockerfile is built in; its ``.dockerignore`` is honoured.
        dockerfile: Relative to the context.
        target: The stage of the Dockerfile to stop at.
        build_args: Values of the Dockerfile's ``ARG``.
        base: The image to install into, for ``install``.
        platform: What it is made for, such as ``"linux/arm64"``.
        secrets: Values of ``RUN --mount=type=secret``, by id: ``"{env:NAME}"``.
        cache_from: Where ``docker buildx`` gets cached steps from, as its option has it.
        cache_to: Where it puts them.
        registry: A repository it is pushed to once baked (``registry.example/team/shop``), from
            where engines that don't have it pull it by its digest.
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
        """It is made in one way."""
        ways = {"context": self.context, "base": self.base, "reference": self.reference}
        given = [name for name, value in ways.items() if value is not None]
        if len(given) != 1:
            said = f"it has {' and '.join(given)}" if given else "its source is missing"
            raise ValueError(f"{said}: give one of context (a Dockerfile), base, or reference")
        if self.base is not None and not self.install:
            raise ValueError("it has a base: give install too (what puts the artifact into it)")
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
        command: Instead of the image's own: text is for its ``/bin/sh``, a list is the command
            and its arguments, as in a Dockerfile's ``CMD``.
        volumes: ``"/path"`` or ``"name:/path"``. They are the environment's, and die with it.
        tmpfs: ``"/path"`` or ``"/path:size=64m"``: folders in memory.
        memory: At most so much, such as ``"512M"``; it is killed beyond.
        cpus: At most so many.
        network: A network that is there already, joined besides.
        isolated: Whether it has a network of its own, which other containers can't reach, instead
            of the engine's default one.
        user: Whom its command runs as, such as ``"www-data"`` or ``"1000:1000"``.
        extra_hosts: ``"name:address"``; ``host-gateway`` is this machine's address.
        shm_size: The size of ``/dev/shm``, such as ``"256M"``.
        cap_add: Capabilities, such as ``"NET_ADMIN"``.
        init: Whether an init process of the engine's reaps its children.
        stop_signal: What asks it to stop, where there is a ``grace``.
        grace: How long it may take to stop when it is asked to; it is killed at once if not given.
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
        """Something runs, and nothing of the machine's own is mounted."""
        if self.image is None:
            raise ValueError("it needs an image")
        for volume in self.volumes:
            volume_of(volume)
        for folder in self.tmpfs:
            if not PurePosixPath(folder).is_absolute():
                raise ValueError(f'tmpfs: expected "/path" or "/path:size=64m", got {folder!r}')


def volume_of(text: str) -> tuple[str, str]:
    """A volume's name (empty for one without) and where it is mounted.

    Raises:
        ValueError: It is none, or a folder of this machine, which would outlive the environment.
    """
    name, _, path = text.rpartition(":")
    if "/" in name or name.startswith("."):
        raise ValueError(
            f'volumes: {text!r} mounts a folder of this machine: expected "/path" or "name:/path", '
            "which die with the environment; what it reads belongs into its image"
        )
    if (name and not re.fullmatch(_VOLUME, name)) or not PurePosixPath(path).is_absolute():
        raise ValueError(f'volumes: expected "/path" or "name:/path", got {text!r}')
    return name, path


def bytes_of(size: str) -> int:
    """An amount of memory in bytes."""
    unit = size[-1].lower() if size[-1].isalpha() else ""
    return int(size.removesuffix(size[-1]) if unit else size) * _UNITS[unit]
