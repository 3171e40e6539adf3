"""The keys that templates of the compose provider have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple

import msgspec

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.tables import Name, Port, Table, Template


class Place(Table, frozen=True, kw_only=True):
    """A port of a service.

    Attributes:
        service: The service.
        port: The port inside it.
    """

    service: str
    port: Port


class At(NamedTuple):
    """Where an endpoint is: a service, and a port inside it."""

    service: str
    port: int


class ComposeTemplate(Template, frozen=True, kw_only=True):
    """What a Compose file describes. ``env`` is what the file's ``${…}`` are filled in from.

    Attributes:
        file: The Compose file, or several, each over the ones before it.
        env_file: What the file's ``${…}`` are filled in from too, instead of ``.env``.
        replaced: Called ``images``: by service, the baked image that it runs.
        service: The service that the URL leads to; commands run in it.
        further: Called ``endpoints``: ports of other services, by name.
        profiles: Those of the file's profiles that are wanted.
        scale: By service, how many containers it has.
        allow_mounts: Whether services with a baked image may have folders of this machine mounted
            over it.
        allow_external: Whether services may use external networks and volumes, which all
            environments of the file share.
        grace: How long services may take to stop when they are asked to; they are killed at once
            if not given.
    """

    needs_port: ClassVar[bool] = False

    provider: str = "compose"
    file: str | list[str]
    env_file: str | list[str] = msgspec.field(default_factory=list)
    replaced: dict[str, str] = msgspec.field(name="images", default_factory=dict)
    service: str
    further: dict[Name, Place] = msgspec.field(name="endpoints", default_factory=dict)
    profiles: list[str] = msgspec.field(default_factory=list)
    scale: dict[str, Annotated[int, msgspec.Meta(ge=0, le=99)]] = msgspec.field(
        default_factory=dict
    )
    allow_mounts: bool = False
    allow_external: bool = False
    grace: Duration | None = None

    def check(self) -> None:
        """Every endpoint has a name of its own, and every image a service."""
        if not self.files():
            raise ValueError("file: expected at least one Compose file")
        if self.image is not None:
            raise ValueError(
                'it has image: name the service that runs it: images = { SERVICE = "IMAGE" }'
            )
        if both := super().endpoints().keys() & self.further.keys():
            raise ValueError(
                f"the endpoint {min(both)!r} is named twice: {self.service} has it too"
            )

    def files(self) -> list[str]:
        """The Compose files, in their order."""
        return [self.file] if isinstance(self.file, str) else self.file

    def env_files(self) -> list[str]:
        """The files with variables, in their order."""
        return [self.env_file] if isinstance(self.env_file, str) else self.env_file

    def places(self) -> dict[str, At]:
        """Where its endpoints are, the URL's first."""
        own = {name: At(self.service, port) for name, port in super().endpoints().items()}
        further = {name: At(place.service, place.port) for name, place in self.further.items()}
        return {**own, **further}

    def endpoints(self) -> dict[str, int]:
        """Its ports by name, the URL's first."""
        return {name: place.port for name, place in self.places().items()}

    def images(self) -> Sequence[str]:
        """The names of the images it is made of, that of the URL's service first."""
        services = sorted(self.replaced, key=lambda service: service != self.service)
        return list(dict.fromkeys(self.replaced[service] for service in services))
