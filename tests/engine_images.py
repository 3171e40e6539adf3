"""Base images for the tests of containers, made on the spot: no registry is needed.

They stay on the engine, under names that say what they are made from, and are made once. The one
with Python takes a minute, so that it is kept as a file too, for the next engine.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import tarfile
from functools import cache
from pathlib import Path

from pytest_ephemeral import files
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.docker import bases, finding
from pytest_ephemeral.providers.docker.engine import TAR_TYPE, json_lines

REPOSITORY = "pytest-ephemeral-tests"

BUSYBOX = """\
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /www /tmp /etc && echo ok > /www/index.html && \
    echo "root:x:0:0:root:/:/bin/sh" > /etc/passwd
CMD ["httpd", "-f", "-p", "8080", "-h", "/www"]
"""

DEBIAN = (
    *("mmdebstrap", "--variant=apt", "--include=python3,python3-venv,ca-certificates"),
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
    "bookworm",
)


def unavailable() -> str:
    """Why there are no containers here; empty when there are."""
    try:
        finding.find().call("GET", "/version", timeout=10)
    except EphemeralError as error:
        return str(error)
    return ""


@cache
def busybox() -> str:
    """An image with Busybox's tools, and a web server on 8080 that answers with ``ok``."""
    program = shutil.which("busybox")
    assert program, "busybox is needed, linked statically (Debian: apt install busybox-static)"
    name = _named("busybox", BUSYBOX)
    with files.locked(_cache() / "busybox.lock"):
        if bases.local(finding.find(), name) is None:
            _build(name, program)
    return name


@cache
def python() -> str:
    """A Debian with Python and venv."""
    name = _named("python", " ".join(DEBIAN))
    with files.locked(_cache() / "python.lock"):
        if bases.local(finding.find(), name) is None:
            _import(name, _debian(name.rpartition(":")[2]))
    return name


def _debian(digits: str) -> Path:
    kept = _cache() / f"debian-{digits}.tar"
    if not kept.exists():
        half = kept.with_suffix(".half.tar")
        subprocess.run([*DEBIAN, str(half)], check=True, capture_output=True)
        half.rename(kept)
    return kept


def _import(name: str, tar: Path) -> None:
    repository, _, tag = name.rpartition(":")
    query = {
        "fromSrc": "-",
        "repo": repository,
        "tag": tag,
        "changes": "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    }
    with (
        tar.open("rb") as source,
        finding.find().stream(
            "POST", "/images/create", query=query, body=source, headers=TAR_TYPE
        ) as answer,
    ):
        answer.read()


def _build(name: str, program: str) -> None:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        tar.add(program, "busybox")
        dockerfile = tarfile.TarInfo("Dockerfile")
        dockerfile.size = len(BUSYBOX)
        tar.addfile(dockerfile, io.BytesIO(BUSYBOX.encode()))
    with finding.find().stream(
        "POST", "/build", query={"t": name}, body=context.getvalue(), headers=TAR_TYPE
    ) as answer:
        for line in json_lines(answer):
            assert "error" not in line, line["error"]


def _named(what: str, made_from: str) -> str:
    return f"{REPOSITORY}/{what}:{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"


def _cache() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / REPOSITORY
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    print(busybox(), python())
