"""Base images for the tests of containers, built locally, without a registry.

They are built once and stay on the engine; their names have a digest of their sources. Images of
Debian take a minute, so they are also cached as files, for other engines.
"""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from pytest_ephemeral import files
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.docker import bases, endpoint
from pytest_ephemeral.providers.docker.engine import TAR_TYPE, json_lines
from support.lacks import skip_without

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
    *("mmdebstrap", "--variant=apt"),
    "--dpkgopt=path-exclude=/usr/share/doc/*",
    "--dpkgopt=path-exclude=/usr/share/locale/*",
)
PATH = "ENV PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

#: The dependencies of the shop in examples/, for a build without a package index.
WHEELS = ("Flask>=3,<4", "waitress>=3,<4")
WITH_WHEELS = """\
FROM {base}
COPY wheels /wheels
ENV PIP_NO_INDEX=1 PIP_FIND_LINKS=/wheels
"""


def unavailable() -> str:
    """What this machine lacks for tests of containers, and why; or empty."""
    try:
        endpoint.find().call("GET", "/version", timeout=10)
    except EphemeralError as error:
        return f"a container engine: {error}"
    if not shutil.which("busybox"):
        return "busybox: base images are made with it (.ci/engine installs it)"
    return ""


def require() -> None:
    """Skip the test if this machine can't run containers."""
    if why := unavailable():
        pytest.skip(f"without {why}")


def busybox() -> str:
    """An image with Busybox, and a web server on port 8080 that answers ``ok``."""
    require()
    program = shutil.which("busybox")
    assert program is not None
    name = _named("busybox", BUSYBOX)
    with files.hold_lock(cache() / "busybox.lock"):
        if bases.find_local(endpoint.find(), name) is None:
            _build(name, BUSYBOX, {"busybox": Path(program)})
    return name


def python() -> str:
    """An image of Debian with Python and venv."""
    return _debian("python", "python3,python3-venv,ca-certificates", [PATH])


def redis() -> str:
    """An image with a Redis server."""
    serve = 'CMD ["redis-server", "--bind", "0.0.0.0", "--protected-mode", "no"]'
    return _debian("redis", "redis-server", [PATH, "EXPOSE 6379", serve])


def python_for_shop() -> str:
    """The image of ``python``, with the packages that the shop needs."""
    dockerfile = WITH_WHEELS.format(base=python())
    name = _named("shop", dockerfile + " ".join(WHEELS))
    with files.hold_lock(cache() / "shop.lock"), tempfile.TemporaryDirectory() as folder:
        if bases.find_local(endpoint.find(), name) is None:
            pip = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary=:all:"]
            debian = ["--python-version=3.11", f"--dest={folder}"]
            subprocess.run([*pip, *debian, *WHEELS], check=True)
            _build(name, dockerfile, {"wheels": Path(folder)})
    return name


def _debian(what: str, packages: str, changes: Sequence[str]) -> str:
    require()
    argv = [*DEBIAN, f"--include={packages}", "bookworm"]
    name = _named(what, " ".join([*argv, *changes]))
    kept = cache() / f"{what}-{name.rpartition(':')[2]}.tar"
    with files.hold_lock(cache() / f"{what}.lock"):
        if bases.find_local(endpoint.find(), name) is None:
            if not kept.exists():
                if not shutil.which("mmdebstrap"):
                    skip_without("mmdebstrap", "base images are made with it (.ci/engine)")
                half = kept.with_suffix(".half.tar")
                subprocess.run([*argv, str(half)], check=True, capture_output=True)
                half.rename(kept)
            _import(name, kept, changes)
    return name


def _import(name: str, tar: Path, changes: Sequence[str]) -> None:
    # The whole name as the repository: Podman ignores a separate tag.
    query = {"fromSrc": "-", "repo": name, "changes": list(changes)}
    with (
        tar.open("rb") as source,
        endpoint.find().stream(
            "POST", "/images/create", query=query, body=source, headers=TAR_TYPE
        ) as answer,
    ):
        answer.read()


def _build(name: str, dockerfile: str, contents: Mapping[str, Path]) -> None:
    context = io.BytesIO()
    with tarfile.open(fileobj=context, mode="w") as tar:
        for place, file in contents.items():
            tar.add(file, place)
        member = tarfile.TarInfo("Dockerfile")
        member.size = len(dockerfile)
        tar.addfile(member, io.BytesIO(dockerfile.encode()))
    with endpoint.find().stream(
        "POST", "/build", query={"t": name}, body=context.getvalue(), headers=TAR_TYPE
    ) as answer:
        for line in json_lines(answer):
            assert "error" not in line, line["error"]


def _named(what: str, made_from: str) -> str:
    return f"{REPOSITORY}/{what}:{hashlib.sha256(made_from.encode()).hexdigest()[:12]}"


def cache() -> Path:
    """The folder for files that take long to build or download, kept for later runs."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / REPOSITORY
    folder.mkdir(parents=True, exist_ok=True)
    return folder


if __name__ == "__main__":
    print(busybox(), python(), redis(), python_for_shop())
