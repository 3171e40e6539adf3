"""BuildKit builds for another platform, with an external cache, and killed builds."""

from __future__ import annotations

import secrets
import signal
import subprocess
from pathlib import Path

import pytest

from containers.project import WEB, Opened
from containers.test_buildkit import baked, engine, printed, with_buildx, without_buildx
from pytest_ephemeral.providers.docker import image_store
from pytest_ephemeral.providers.docker.engine import Engine
from support.processes import PROGRAM
from support.waiting import until

__all__ = ["engine", "with_buildx", "without_buildx"]  # fixtures

#: It runs no command, so that any engine can build it for any platform.
COPIED = "FROM --platform=$TARGETPLATFORM scratch\nCOPY Dockerfile /\n"

RANDOM = """\
FROM {base}
RUN --mount=type=tmpfs,target=/t head -c 9 /dev/urandom | base64 > /made
"""

SLEEPS = """\
FROM {base}
RUN --mount=type=cache,target=/c exec sleep {{name}}
"""


@pytest.mark.parametrize("plugin", ["with_buildx", "without_buildx"])
def test_an_image_is_built_for_another_platform(
    engine: Engine, opened: Opened, request: pytest.FixtureRequest, plugin: str
) -> None:
    """The image, its record and the inputs of its key have the platform."""
    request.getfixturevalue(plugin)
    image = baked(opened, COPIED, platform="linux/arm64")
    found = engine.call("GET", f"/images/{image_store.id_on(engine, image)}/json")
    assert (found["Os"], found["Architecture"]) == ("linux", "arm64")
    assert image.handle["platform"] == "linux/arm64"
    assert image.inputs["platform"] == "linux/arm64"


@pytest.mark.parametrize("engine", ["newest"], indirect=True)
def test_an_external_build_cache_is_used(
    engine: Engine, opened: Opened, with_buildx: None, tmp_path: Path
) -> None:
    """A cached step is not run again by an engine whose own cache is empty."""
    cache = tmp_path / "cache"
    first = baked(opened, RANDOM, cache_to=[f"type=local,dest={cache}"])
    made = printed(engine, first, "cat", "/made")
    assert (cache / "index.json").exists()
    engine.call("DELETE", f"/images/{image_store.tag_of(first)}", query={"force": True})
    engine.call("POST", "/build/prune", query={"all": True})
    again = baked(opened, RANDOM, cache_from=[f"type=local,src={cache}"])
    assert printed(engine, again, "cat", "/made") == made
    assert again.key == first.key  # the cache is no part of the key


@pytest.mark.parametrize(
    ("plugin", "number"),
    [
        ("with_buildx", signal.SIGKILL),
        ("without_buildx", signal.SIGKILL),
        ("without_buildx", signal.SIGTERM),
    ],
)
def test_a_killed_build_ends_its_step(
    engine: Engine,
    opened: Opened,
    request: pytest.FixtureRequest,
    tmp_path: Path,
    plugin: str,
    number: signal.Signals,
) -> None:
    """The step's process ends, and no image or container of the build is left on the engine."""
    request.getfixturevalue(plugin)
    seconds = f"{secrets.randbelow(900) + 100}.{secrets.randbelow(10**6)}"
    opened(dockerfile=SLEEPS.replace("{{name}}", seconds))
    baking = subprocess.Popen(
        [PROGRAM, "bake", "web"],
        cwd=tmp_path,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        until(lambda: is_running(seconds), within=60)
        baking.send_signal(number)
        baking.wait(30)
        until(lambda: not is_running(seconds), within=30)
    finally:
        baking.kill()
        baking.wait()
    assert WEB not in str(engine.call("GET", "/images/json"))
    everything = {"all": True}
    until(lambda: seconds not in str(engine.call("GET", "/containers/json", query=everything)))


def is_running(seconds: str) -> bool:
    """Whether any process on this machine runs ``sleep`` with this argument."""
    wanted = f"sleep\0{seconds}\0".encode()
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if file.read_bytes() == wanted:
                return True
        except OSError:
            continue
    return False
