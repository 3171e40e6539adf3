"""Find data that services share with others, which a rollback can't restore."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.providers import external_state
from pytest_ephemeral.providers.compose.project import File, device_of
from pytest_ephemeral.providers.compose.tables import ComposeTemplate


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


def list_writable(service: File, volumes: Mapping[str, File | None]) -> Iterator[tuple[str, bool]]:
    """The writable mounts of a service: a volume's name and False, or a folder and True.

    Args:
        service: The service in the file.
        volumes: The file's volumes, which may mount folders, too.
    """
    for source, is_bound in _list_writable(service):
        device = "" if is_bound else device_of(volumes.get(source))
        yield (device, True) if device else (source, is_bound)


def _list_writable(service: File) -> Iterator[tuple[str, bool]]:
    for volume in service.get("volumes") or ():
        if isinstance(volume, dict):
            if not volume.get("read_only") and volume.get("source"):
                yield str(volume["source"]), volume.get("type") == "bind"
            continue
        source, _, rest = str(volume).partition(":")
        _, _, mode = rest.partition(":")
        if rest and "ro" not in mode.split(","):
            yield source, source.startswith(("/", ".", "~"))
