"""The configuration keys of the compose provider's templates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, ClassVar, NamedTuple

import msgspec

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.tables import Name, Port, Table, Template


class Place(Table, frozen=True, kw_only=True):
    """A port of a service.

    Attributes:
        service: The service's name.
        port: The port inside its container.
    """

    service: str
    port: Port


class ServicePort(NamedTuple):
    """The target of an endpoint: a service, and a port inside its container."""

    service: str
    port: int


class ComposeTemplate(Template, frozen=True, kw_only=True):
    """A project of a Compose file. ``env`` sets the variables for the file's ``${…}``.

    Attributes:
        file: The Compose file, or several; each overrides the ones before it.
        env_file: Files with variables for the file's ``${…}``, instead of ``.env``.
        replaced: Called ``images``: the baked image of a service, by the service's name.
        service: The service of the URL; commands run in its container.
        further: Called ``endpoints``: ports of other services, by name.
        profiles: The profiles of the file to activate.
        scale: The number of containers, by service.
        allow_mounts: Whether folders of this machine may be mounted over a baked image.
        allow_external: Whether services may use external networks and volumes, which all
            environments of the file share.
        grace: How long services may take to stop; without it, they are killed at once.
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
        """Check that it has a file, no ``image``, and no two endpoints of one name."""
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
        """The Compose files, in order."""
        return [self.file] if isinstance(self.file, str) else self.file

    def env_files(self) -> list[str]:
        """The files with variables, in order."""
        return [self.env_file] if isinstance(self.env_file, str) else self.env_file

    def service_ports(self) -> dict[str, ServicePort]:
        """The targets of its endpoints by name, the URL's first."""
        own = {name: ServicePort(self.service, port) for name, port in super().endpoints().items()}
        further = {
            name: ServicePort(place.service, place.port) for name, place in self.further.items()
        }
        return {**own, **further}

    def endpoints(self) -> dict[str, int]:
        """The ports of its endpoints by name, the URL's first."""
        return {name: place.port for name, place in self.service_ports().items()}

    def images(self) -> Sequence[str]:
        """The names of its baked images, that of the URL's service first."""
        services = sorted(self.replaced, key=lambda service: service != self.service)
        return list(dict.fromkeys(self.replaced[service] for service in services))
