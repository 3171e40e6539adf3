"""Pull images from registries and push to them, with the docker command's credentials."""

from __future__ import annotations

import base64
import json
import os
import subprocess
from pathlib import Path
from typing import Any, Final

from pytest_ephemeral import machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.docker.engine import Engine, EngineError, json_lines

#: Docker Hub's name in the docker command's files: the registry of image names without a host.
_HUB: Final = "https://index.docker.io/v1/"


def pull(engine: Engine, reference: str) -> None:
    """Pull an image.

    Raises:
        EphemeralError: It can't be pulled; the message has the reason.
    """
    name, separator, digest = reference.partition("@")
    if not separator:
        name, digest = split(reference)
    try:
        _follow(engine, "/images/create", {"fromImage": name, "tag": digest}, name)
    except EngineError as error:
        raise EphemeralError(
            f"{reference} is not on this engine, and can't be pulled: {error}"
        ) from error


def push(engine: Engine, image: str, repository: str, tag: str) -> str:
    """Push an image to a registry.

    Args:
        engine: The engine that has the image.
        image: The image's id.
        repository: The repository, such as ``registry.example/team/shop``.
        tag: The image's tag there.

    Returns:
        ``repository@sha256:…``, by which any engine can pull it.

    Raises:
        EphemeralError: The registry refused; the message has the reason.
    """
    engine.call("POST", f"/images/{image}/tag", query={"repo": repository, "tag": tag})
    try:
        pushed = _follow(engine, f"/images/{repository}/push", {"tag": tag}, repository)
    finally:
        engine.call("DELETE", f"/images/{repository}:{tag}", query={"noprune": True})
    return f"{repository}@{pushed['Digest']}"


def split(reference: str) -> tuple[str, str]:
    """Split a reference into repository and tag, by default ``latest``."""
    repository, colon, tag = reference.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (reference, "latest")


def _follow(engine: Engine, path: str, query: dict[str, str], name: str) -> dict[str, Any]:
    """Make a call that reports progress; return its results, such as the digest."""
    results: dict[str, Any] = {}
    headers = {"X-Registry-Auth": _login(name)}
    with engine.stream("POST", path, query=query, headers=headers) as answer:
        for line in json_lines(answer):
            if "error" in line:
                raise EphemeralError(f"{name}: {line['error']}")
            results.update(line.get("aux") or {})
    return results


def _login(name: str) -> str:
    """The credentials for an image's registry, in the form of the engine's header."""
    host = _host(name)
    folder = Path(os.environ.get("DOCKER_CONFIG") or machine.home() / ".docker")
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        config = {}
    helper = (config.get("credHelpers") or {}).get(host) or config.get("credsStore")
    login = _from_helper(helper, host) if helper else {}
    if not login:
        entry = (config.get("auths") or {}).get(host, {})
        user, _, password = base64.b64decode(entry.get("auth", "")).decode().partition(":")
        login = {"username": user, "password": password} if user else {}
    return base64.urlsafe_b64encode(json.dumps({**login, "serveraddress": host}).encode()).decode()


def _host(name: str) -> str:
    first, slash, _ = name.partition("/")
    is_host = slash and ("." in first or ":" in first or first == "localhost")
    return first if is_host and first != "docker.io" else _HUB


def _from_helper(helper: str, host: str) -> dict[str, str]:
    """Get credentials from a helper (https://github.com/docker/docker-credential-helpers)."""
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=host,
            capture_output=True,
            text=True,
            check=True,
        )
        found = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return {}
    if found["Username"] == "<token>":
        return {"identitytoken": found["Secret"]}
    return {"username": found["Username"], "password": found["Secret"]}
