"""Which engine: found as the docker command finds it, and Podman's where there is no other.

The order is that of https://docs.docker.com/engine/manage-resources/contexts/: ``DOCKER_HOST``,
``DOCKER_CONTEXT``, the current context of ``~/.docker/config.json``, the usual sockets.
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
        environ: Variables; by default this process's.

    Raises:
        NoEngineError: There is none; a line that says what was tried.
        ConfigurationError: What is set names one that can't be used.
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
    """Every engine that this user has named: by variables, and by the docker command's contexts."""
    folder = _folder(environ)
    if url := environ.get("DOCKER_HOST"):
        yield _from_variables(url, folder, environ)
    for meta in sorted((folder / "contexts").glob("meta/*/meta.json")):
        read = _json(meta)
        if (read.get("Endpoints") or {}).get("docker"):
            name = str(read.get("Name"))
            yield _context(folder / "contexts", name, f"the context {name!r}")


def plugin_folders(environ: Mapping[str, str]) -> list[Path]:
    """Where the docker command looks for its plugins, such as compose, in its order."""
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
    """Where the docker command keeps what it was told."""
    return Path(environ.get("DOCKER_CONFIG") or machine.home() / ".docker")


def _chosen(environ: Mapping[str, str]) -> Address | None:
    """The engine that somebody has chosen, if somebody has."""
    folder = _folder(environ)
    if url := environ.get("DOCKER_HOST"):
        return _from_variables(url, folder, environ)
    name = environ.get("DOCKER_CONTEXT")
    said_by = "DOCKER_CONTEXT"
    if not name:
        name = str(_json(folder / "config.json").get("currentContext") or "default")
        said_by = f"the context {name!r}"
    return None if name == "default" else _context(folder / "contexts", name, said_by)


def _from_variables(url: str, folder: Path, environ: Mapping[str, str]) -> Address:
    verify = bool(environ.get("DOCKER_TLS_VERIFY"))
    tls = verify or bool(environ.get("DOCKER_TLS"))
    certificates = environ.get("DOCKER_CERT_PATH") or str(folder)
    return Address(url, certificates if tls else "", verify, "DOCKER_HOST")


def _context(folder: Path, name: str, said_by: str) -> Address:
    """A context: its folder is called after the digest of its name."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    endpoint = _json(folder / "meta" / digest / "meta.json").get("Endpoints", {}).get("docker")
    if not endpoint:
        known = [str(_json(meta).get("Name")) for meta in folder.glob("meta/*/meta.json")]
        raise ConfigurationError(
            f"there is no docker context {name!r} (from {said_by}).{closest(name, known)}"
        )
    tls = folder / "tls" / digest / "docker"
    verify = not endpoint.get("SkipTLSVerify", False)
    return Address(str(endpoint["Host"]), str(tls) if tls.is_dir() else "", verify, said_by)


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
    """The sockets to look for: Docker's, then rootless Docker's and Docker Desktop's, Podman's."""
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
    """A file of the docker command's; empty when it is not there or not readable, as there."""
    try:
        read = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return read if isinstance(read, dict) else {}
