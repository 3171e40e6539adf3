"""Find the container engine as the docker command does, and Podman if there is no other.

The order is that of https://docs.docker.com/engine/manage-resources/contexts/: ``DOCKER_HOST``,
``DOCKER_CONTEXT``, the current context of ``~/.docker/config.json``, the default sockets.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pytest_ephemeral import machine
from pytest_ephemeral.errors import ConfigurationError, closest
from pytest_ephemeral.providers.docker.engine import Address, Engine, NoEngineError


def find(environ: Mapping[str, str] | None = None) -> Engine:
    """The engine to use.

    Args:
        environ: The environment variables; by default those of this process.

    Raises:
        NoEngineError: No engine answers; the message lists the sockets that were tried.
        ConfigurationError: A variable or context has an invalid address.
    """
    environ = os.environ if environ is None else environ
    if chosen := _chosen(environ):
        _check_scheme(chosen)
        return Engine(chosen)
    refused: PermissionError | None = None
    tried = []
    for candidate in _candidates(environ):
        try:
            _connect(candidate)
        except PermissionError as error:
            refused = error
            tried.append(f"{candidate} (no permission)")
        except OSError as error:
            tried.append(f"{candidate} ({(error.strerror or str(error)).lower()})")
        else:
            return Engine(Address(f"unix://{candidate}"))
    remedy = (
        "join its group (sudo usermod -aG docker $USER, then log in again), or run one rootless"
        if refused
        else "start one (sudo systemctl start docker), or set DOCKER_HOST"
    )
    raise NoEngineError(f"no container engine answers; tried {', '.join(tried)}: {remedy}")


def list_addresses(environ: Mapping[str, str]) -> Iterator[Address]:
    """The addresses of all engines in the variables and in the docker command's contexts."""
    folder = _folder(environ)
    if url := environ.get("DOCKER_HOST"):
        yield _from_variables(url, folder, environ)
    for meta in sorted((folder / "contexts").glob("meta/*/meta.json")):
        read = _json(meta)
        if (read.get("Endpoints") or {}).get("docker"):
            name = str(read.get("Name"))
            yield _context(folder / "contexts", name, f"the context {name!r}")


def plugin_folders(environ: Mapping[str, str]) -> list[Path]:
    """The folders in which the docker command looks for plugins, such as compose, in order."""
    folder = _folder(environ)
    extra = _json(folder / "config.json").get("cliPluginsExtraDirs") or []
    usual = ("/usr/local/lib", "/usr/local/libexec", "/usr/lib", "/usr/libexec")
    if sys.platform == "win32":
        usual = (environ.get("ProgramData", ""), environ.get("ProgramFiles", ""))
    return [
        folder / "cli-plugins",
        *map(Path, extra),
        *(Path(one, "docker", "cli-plugins") for one in usual),
    ]


def _folder(environ: Mapping[str, str]) -> Path:
    """The folder of the docker command's configuration."""
    return Path(environ.get("DOCKER_CONFIG") or machine.home() / ".docker")


def _chosen(environ: Mapping[str, str]) -> Address | None:
    """The engine that a variable or the current context selects, or None."""
    folder = _folder(environ)
    if url := environ.get("DOCKER_HOST"):
        return _from_variables(url, folder, environ)
    name = environ.get("DOCKER_CONTEXT")
    source = "DOCKER_CONTEXT"
    if not name:
        name = str(_json(folder / "config.json").get("currentContext") or "default")
        source = f"the context {name!r}"
    return None if name == "default" else _context(folder / "contexts", name, source)


def _from_variables(url: str, folder: Path, environ: Mapping[str, str]) -> Address:
    verify = bool(environ.get("DOCKER_TLS_VERIFY"))
    tls = verify or bool(environ.get("DOCKER_TLS"))
    certificates = environ.get("DOCKER_CERT_PATH") or str(folder)
    return Address(url, certificates if tls else "", verify, "DOCKER_HOST")


def _context(folder: Path, name: str, source: str) -> Address:
    """The address in a context, whose folder is named by the digest of the context's name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    endpoint = _json(folder / "meta" / digest / "meta.json").get("Endpoints", {}).get("docker")
    if not endpoint:
        known = [str(_json(meta).get("Name")) for meta in folder.glob("meta/*/meta.json")]
        raise ConfigurationError(
            f"there is no docker context {name!r} (from {source}).{closest(name, known)}"
        )
    tls = folder / "tls" / digest / "docker"
    verify = not endpoint.get("SkipTLSVerify", False)
    return Address(str(endpoint["Host"]), str(tls) if tls.is_dir() else "", verify, source)


def _check_scheme(address: Address) -> None:
    parts = urlsplit(address.url)
    host = parts.hostname or ""
    is_named = parts.scheme in {"tcp", "ssh"} and host and not host.startswith("-")
    good = bool(parts.path) if parts.scheme == "unix" else is_named
    if not good:
        raise ConfigurationError(
            f"{address} is not the address of a container engine: "
            "expected unix:///path/to/socket, tcp://host:port or ssh://user@host"
        )


def _candidates(environ: Mapping[str, str]) -> Iterator[Path]:
    """The sockets to try: those of Docker, rootless Docker, Docker Desktop and Podman."""
    yield Path("/var/run/docker.sock")
    runtime = environ.get("XDG_RUNTIME_DIR")
    if runtime:
        yield Path(runtime) / "docker.sock"
    yield machine.home() / ".docker" / "run" / "docker.sock"
    if runtime:
        yield Path(runtime, "podman", "podman.sock")
    yield Path("/run/podman/podman.sock")


def _connect(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(2)
        probe.connect(str(path))


def _json(file: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if it can't be read, as for the docker command."""
    try:
        read = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
