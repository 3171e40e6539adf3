"""Errors of engines, each with advice."""

from __future__ import annotations

import re
import shutil
from typing import Final

from pytest_ephemeral.errors import BakeError, EphemeralError
from pytest_ephemeral.providers.bake_log import BakeLog
from pytest_ephemeral.providers.docker.engine import Engine

_DISK_FULL: Final = "no space left on device"
_FULL: Final = "a disk is full: see `docker system df` and `df -h`, and free some"

_REMEDIES: Final = {
    _DISK_FULL: _FULL,
    "address pool": "too many networks: see `docker network ls`; `pytest-ephemeral reap` and "
    "`docker network prune` remove unused ones",
    "not enough memory": "reduce `memory` in the template",
    "lookup init binary": "the engine's machine has no init for containers: install "
    "catatonit there, or leave `init` out",
    "executable file not found": "its command is not in the image: see `command`",
    "no such image": "it was removed: bake it again with `pytest-ephemeral bake`",
    "exec format error": "the image is for another architecture, or its command is not a program",
}

_NEWER_PARSER: Final = (
    "Docker 23 or newer, or a first line `# syntax=docker/dockerfile:1`, which makes the engine "
    "fetch a newer parser"
)

#: Advice for errors of builds only.
_BUILD_REMEDIES: Final = {
    "/docker/dockerfile/manifests/": "its first line, `# syntax=…`, makes the engine fetch a "
    "parser from a registry that it can't reach: remove that line, which Docker 23 and newer "
    "do not need",
    "unknown flag": f"if it is spelled correctly, it needs {_NEWER_PARSER}",
    "no active sessions": "mounts of type secret need `docker buildx`, and the image's `secrets`; "
    "mounts of type ssh can't be used in a bake: use a secret",
    "unset ssh forward key": "mounts of type ssh can't be used in a bake: use a secret",
    "secret not found": "add it to the image's `secrets`",
}
_HERE_DOCUMENT: Final = re.compile(
    r"^\s*(RUN|COPY|ADD)\b.*<<-?[\"']?\w", re.MULTILINE | re.IGNORECASE
)
_UNKNOWN_SECRET: Final = re.compile(r"\bsecret \S+ not found")

#: The program of a command, or its interpreter, is not in the image. (Folders, devices and files of
#: this machine may be missing, too.)
_NO_PROGRAM: Final = re.compile(
    r"\bexec(: \"|utable file | user process | /)[^;\n]*no such file or directory"
)
_NO_PROGRAM_REMEDY: Final = (
    "the image lacks what its command needs (text is for /bin/sh; a list starts a program "
    "without one)"
)

#: The names of an engine's internal components, before the reason.
_COMPONENTS: Final = re.compile(
    r"(failed to create (shim )?task: )?OCI runtime \w+ failed: "
    r".*?(unable to start container process|starting container process caused): "
)

#: A disk with less free space, in bytes, is full.
_NOTHING: Final = 1 << 20


def describe_error(error: Exception) -> str:
    """The engine's message, and advice."""
    text = message_of(error)
    return text + find_remedy(text)


def bake_failure(log: BakeLog, what: str) -> BakeError:
    """The error for a failed bake, with advice.

    The advice is chosen by the engine's message alone, unless a disk is full: the output of an
    install script may look like a message of the engine.

    Args:
        log: The log of the bake.
        what: What went wrong.
    """
    text = _DISK_FULL if _DISK_FULL in log.last_lines().lower() else what
    return log.failure(what, find_remedy(text))


def build_failure(log: BakeLog, what: str, dockerfile: str) -> BakeError:
    """The error for a failed build of a Dockerfile, with advice.

    Args:
        log: The log of the bake.
        what: What went wrong.
        dockerfile: The Dockerfile's text.
    """
    lower = _UNKNOWN_SECRET.sub("secret not found", what.lower())
    helps = next((text for symptom, text in _BUILD_REMEDIES.items() if symptom in lower), "")
    if "unknown instruction" in lower and _HERE_DOCUMENT.search(dockerfile):
        helps = f"here-documents need {_NEWER_PARSER}"
    return log.failure(what, f"; {helps}") if helps else bake_failure(log, what)


def message_of(error: Exception) -> str:
    """The engine's message, without the names of its internal components."""
    if isinstance(error, TimeoutError) and not isinstance(error, EphemeralError):
        return "the container engine gave no answer in time; is its machine overloaded?"
    return shorten(str(error))


def shorten(text: str) -> str:
    """A message without the names of the engine's internal components."""
    return _COMPONENTS.sub("", text, count=1).removesuffix(": unknown")


def find_remedy(text: str) -> str:
    """The advice for a message, after a semicolon; empty if there is none."""
    lower = text.lower()
    known = next((helps for symptom, helps in _REMEDIES.items() if symptom in lower), "")
    helps = known or (_NO_PROGRAM_REMEDY if _NO_PROGRAM.search(lower) else "")
    return f"; {helps}" if helps else ""


def describe_full_disk(engine: Engine) -> str:
    """A note if the engine's disk is full, so that it can't write logs, either."""
    try:
        root = engine.call("GET", "/info", timeout=10)["DockerRootDir"]
        free = _NOTHING if engine.address.host else shutil.disk_usage(root).free
    except (EphemeralError, OSError, KeyError):
        return ""
    return f" (no space is left for the container engine, in {root}; {_FULL})" * (free < _NOTHING)
