"""Pulling from registries and pushing to them, as whoever the docker command is logged in as."""

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

#: What names of images without a host stand for, in the docker command's files.
_HUB: Final = "https://index.docker.io/v1/"


def pull(engine: Engine, reference: str) -> None:
    """Bring an image to the engine.

    Raises:
        EphemeralError: It could not be brought up; the message has the reason.
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
    """Bring an image from the engine to a registry.

    Args:
        engine: Where it is.
        image: Its id.
        repository: Where to, such as ``registry.example/team/shop``.
        tag: What it is called there, until it is known by its digest.

    Returns:
        ``repository@sha256:…``, by which any engine can pull it.

    Raises:
        EphemeralError: The registry refused; says why.
    """
    engine.call("POST", f"/images/{image}/tag", query={"repo": repository, "tag": tag})
    try:
        told = _follow(engine, f"/images/{repository}/push", {"tag": tag}, repository)
    finally:
        engine.call("DELETE", f"/images/{repository}:{tag}", query={"noprune": True})
    return f"{repository}@{told['Digest']}"


def split(reference: str) -> tuple[str, str]:
    """A reference's repository and tag; a port of its host is no tag."""
    repository, colon, tag = reference.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (reference, "latest")


def _follow(engine: Engine, path: str, query: dict[str, str], name: str) -> dict[str, Any]:
    """Make a call that reports as it goes on; what it reports besides, such as the digest."""
    aside: dict[str, Any] = {}
    headers = {"X-Registry-Auth": _login(name)}
    with engine.stream("POST", path, query=query, headers=headers) as answer:
        for line in json_lines(answer):
            if "error" in line:
                raise EphemeralError(f"{name}: {line['error']}")
            aside.update(line.get("aux") or {})
    return aside


def _login(name: str) -> str:
    """Who we are to the registry of an image, in the form that the engine passes on."""
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
    """Ask a credential helper, as https://github.com/docker/docker-credential-helpers says."""
    try:
        done = subprocess.run(
            [f"docker-credential-{helper}", "get"],
            input=host,
            capture_output=True,
            text=True,
            check=True,
        )
        told = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.CalledProcessError):
        return {}
    if told["Username"] == "<token>":
        return {"identitytoken": told["Secret"]}
    return {"username": told["Username"], "password": told["Secret"]}
