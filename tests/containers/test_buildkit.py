"""Dockerfiles that need BuildKit, built by ``docker buildx`` or by the engine alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from containers.project import WEB, Opened
from pytest_ephemeral.errors import BakeError, ConfigurationError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.docker import endpoint, image_store
from pytest_ephemeral.providers.docker.engine import Engine
from support import compose_versions, engine_images, engines

#: Syntax that Docker's older builder does not support.
MOUNTS = """\
FROM --platform=$BUILDPLATFORM {base} AS made
RUN --mount=type=cache,target=/cache echo {{name}} > /made && touch /cache/used
FROM {base} AS small
COPY --from=made --chmod=755 /made /made
FROM small AS large
RUN touch /large
"""

HERE_DOCUMENT = """\
FROM {base}
RUN <<EOF
echo here > /made
EOF
"""

TOKEN = "a-token-of-the-registry"

#: A step that prints a secret, and stores only its size in the image.
SECRET = """\
FROM {base}
RUN --mount=type=secret,id=token wc -c < /run/secrets/token > /made && cat /run/secrets/token
"""


@pytest.fixture(params=["machine", "newest"])
def engine(request: pytest.FixtureRequest) -> Iterator[Engine]:
    """The machine's engine, and the newest Docker."""
    if request.param == "machine":
        engine_images.require()
        yield endpoint.find()
        return
    if why := engines.newest_unavailable():
        pytest.skip(f"without {why}")
    with engines.newest_dockerd() as newest, engines.use(newest):
        yield newest


@pytest.fixture
def with_buildx() -> Iterator[None]:
    """The docker command with the ``buildx`` plugin."""
    if why := engines.newest_unavailable():
        pytest.skip(f"without {why}")
    plugin = engines.NEWEST / "libexec/docker/cli-plugins/docker-buildx"
    assert plugin.exists(), "remove the folder above it: .ci/engine fetches it again"
    with compose_versions.plugin_folder() as folder:
        (folder / "docker-buildx").symlink_to(plugin)
        yield


@pytest.fixture
def without_buildx() -> Iterator[None]:
    """The docker command without plugins."""
    with compose_versions.plugin_folder():
        yield


def baked(opened: Opened, dockerfile: str, **keys: Any) -> Image:
    """Bake the image of a Dockerfile, with further keys in its recipe."""
    project = opened(dockerfile=dockerfile.replace("{{name}}", WEB)).project
    recipe = msgspec.structs.replace(project.config.recipe("web"), **keys)
    return project.images.obtain(recipe, mode="missing", say=print)


def printed(engine: Engine, image: Image, *argv: str) -> str:
    """The output of a command in a container of the image."""
    body = {"Image": image_store.id_on(engine, image), "Cmd": list(argv), "Tty": True}
    id = engine.call("POST", "/containers/create", body=body)["Id"]
    try:
        engine.call("POST", f"/containers/{id}/start")
        engine.call("POST", f"/containers/{id}/wait")
        with engine.stream("GET", f"/containers/{id}/logs", query={"stdout": True}) as answer:
            return str(answer.read().decode())
    finally:
        engine.call("DELETE", f"/containers/{id}", query={"force": True})


@pytest.mark.parametrize("plugin", ["with_buildx", "without_buildx"])
def test_buildkit_mounts_and_target_stages_work(
    engine: Engine, opened: Opened, request: pytest.FixtureRequest, plugin: str
) -> None:
    """Cache mounts, $BUILDPLATFORM and COPY --chmod work; stages after the target are left out."""
    request.getfixturevalue(plugin)
    image = baked(opened, MOUNTS, target="small")
    assert printed(engine, image, "cat", "/made").strip() == WEB
    assert "no such file" in printed(engine, image, "ls", "/large").lower()
    config = engine.call("GET", f"/images/{image_store.id_on(engine, image)}/json")["Config"]
    assert config["Labels"]["pytest-ephemeral.key"] == image.key


@pytest.mark.usefixtures("with_buildx")
def test_build_secrets_are_in_no_layer_and_no_log(
    engine: Engine, opened: Opened, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A secret is available while its step runs, and is masked in the step's output."""
    monkeypatch.setenv("TOKEN", TOKEN)
    fresh = SECRET.replace(
        "RUN", f"ENV RUN={time.time_ns()}\nRUN", 1
    )  # a cached step prints nothing
    image = baked(opened, fresh, secrets={"token": "{env:TOKEN}"})
    assert printed(engine, image, "cat", "/made").strip() == str(len(TOKEN))
    with engine.stream("GET", f"/images/{image_store.id_on(engine, image)}/get") as answer:
        assert TOKEN.encode() not in answer.read()
    logs = [file.read_text() for file in tmp_path.rglob("*.log")]
    assert any("***" in text for text in logs)
    assert not any(TOKEN in text for text in logs)
    assert not any(TOKEN in str(value) for value in image.inputs.values())


@pytest.mark.usefixtures("without_buildx")
def test_build_secrets_without_buildx_are_refused(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error names the plugin to install."""
    monkeypatch.setenv("TOKEN", TOKEN)
    with pytest.raises(ConfigurationError, match=r"secrets need.*docker-buildx"):
        baked(opened, SECRET, secrets={"token": "{env:TOKEN}"})


@pytest.mark.parametrize("plugin", ["with_buildx", "without_buildx"])
def test_a_failed_build_step_is_named(
    engine: Engine, opened: Opened, request: pytest.FixtureRequest, plugin: str
) -> None:
    """The error has the step, its last output and its exit code, and no image is left."""
    request.getfixturevalue(plugin)
    failing = "FROM {base}\nRUN --mount=type=cache,target=/c echo the reason >&2; exit 3\n"
    with pytest.raises(BakeError) as caught:
        baked(opened, failing)
    said = str(caught.value)
    assert "its Dockerfile failed at [" in said
    assert "RUN --mount=type=cache" in said
    assert "the reason" in said
    assert "exit code: 3" in said
    assert WEB not in str(engine.call("GET", "/images/json"))


@pytest.mark.usefixtures("with_buildx")
def test_an_unavailable_dockerfile_frontend_is_explained(opened: Opened) -> None:
    """The error names the ``# syntax`` line as the cause, and says to remove it."""
    unreachable = "# syntax=localhost:1/docker/dockerfile:1.4\n" + HERE_DOCUMENT
    with pytest.raises(BakeError, match=r"`# syntax=…`.* remove that line"):
        baked(opened, unreachable)


def test_here_documents_work_or_are_explained(
    engine: Engine, opened: Opened, without_buildx: None
) -> None:
    """The newest engine reads them; for an old one, the error names the syntax line that helps."""
    if engine.call("GET", "/version")["Version"].startswith("20."):
        with pytest.raises(BakeError, match="syntax=docker/dockerfile:1"):
            baked(opened, HERE_DOCUMENT)
    else:
        assert printed(engine, baked(opened, HERE_DOCUMENT), "cat", "/made").strip() == "here"
