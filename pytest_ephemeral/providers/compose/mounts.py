"""The mounts of services, and the data in them that a rollback can't restore."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.providers import external_state
from pytest_ephemeral.providers.compose.tables import ComposeTemplate

File = dict[str, Any]


class Mount(NamedTuple):
    """A mount of a service.

    Attributes:
        source: The volume's name, or the path of a folder; empty for an anonymous volume.
        target: The path in the service's containers.
        is_folder: Whether the source is a folder of this machine.
        is_read_only: Whether the service can't write to it.
    """

    source: str
    target: str
    is_folder: bool
    is_read_only: bool


def list_mounts(service: File) -> Iterator[Mount]:
    """The mounts of a service, as in the file; anonymous volumes in the short form are left out."""
    for volume in service.get("volumes") or ():
        if isinstance(volume, dict):
            is_folder, is_read_only = volume.get("type") == "bind", bool(volume.get("read_only"))
            source, target = (str(volume.get(key) or "") for key in ("source", "target"))
            yield Mount(source, target, is_folder, is_read_only)
        elif ":" in str(volume):
            source, _, rest = str(volume).partition(":")
            target, _, mode = rest.partition(":")
            is_folder = source.startswith(("/", ".", "~"))
            yield Mount(source, target, is_folder, "ro" in mode.split(","))


def device_of(volume: File | None) -> str:
    """The folder, here or on a file server, that a volume mounts; empty if it is a plain volume."""
    options = (volume or {}).get("driver_opts") or {}
    return "" if options.get("type") == "tmpfs" else str(options.get("device") or "")


def list_writable(service: File, volumes: Mapping[str, File | None]) -> Iterator[tuple[str, bool]]:
    """The writable mounts of a service: a volume's name and False, or a folder and True.

    Args:
        service: The service in the file.
        volumes: The file's volumes, which may mount folders, too.
    """
    for mount in list_mounts(service):
        if mount.source and not mount.is_read_only:
            device = "" if mount.is_folder else device_of(volumes.get(mount.source))
            yield (device, True) if device else (mount.source, mount.is_folder)


def check_state(file: File, template: ComposeTemplate, services: Mapping[str, File]) -> None:
    """Check that services write only to data of their environment.

    Args:
        file: The file, as resolved by ``config``.
        template: The template.
        services: The services that it brings up.

    Raises:
        ConfigurationError: A service writes to a folder of this machine or to an external volume,
            or uses a database elsewhere; the message names it.
    """
    volumes = file.get("volumes") or {}
    external = {name for name, one in volumes.items() if (one or {}).get("external")}
    for name, service in services.items():
        for source, is_bound in list_writable(service, volumes):
            if is_bound:
                external_state.refuse_folder(template, f"the service {name}", source)
            if source in external:
                raise ConfigurationError(
                    f"templates.{template.name}: the volume {source!r} of the service {name} is "
                    "external, so a rollback can't put it back: it is not this environment's alone"
                )
    texts = [str(service.get("environment") or "") for service in services.values()]
    own = {*services, "localhost", "127.0.0.1"}
    external_state.refuse_databases(template, dict(os.environ), commands=texts, own=own)
