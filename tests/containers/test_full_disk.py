"""Full disks: that of an engine, and that of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from containers.project import WEB, Opened, compose, left, refusal, up
from pytest_ephemeral.errors import BakeError, EphemeralError, LaunchError, StoreError
from pytest_ephemeral.providers import load
from pytest_ephemeral.providers.docker import archive, endpoint
from pytest_ephemeral.providers.docker.engine import Engine
from support import engine_images, engines
from support.waiting import idle_clock

#: Writes more than fits on the disk.
FILL = "dd if=/dev/zero of=/big bs=1M count=99"

ODD = """
[templates.odd]
image = "{image}"
port = 8080
volumes = ["/data"]
command = "{command}"
"""

#: Seconds within which the failure is reported; the readiness timeout is 60 s.
PROMPT = 20.0


@pytest.fixture(scope="module")
def small() -> Iterator[Engine]:
    """An engine with a disk of its own of 64 MiB."""
    engines.require("dockerd")
    with engines.dockerd(disk="64m") as engine:
        yield engine


@pytest.fixture
def small_engine(small: Engine) -> Iterator[Engine]:
    """The small engine as the current one; only its base image is left in the end."""
    with engines.use(small):
        base = engine_images.busybox()
        yield small
    assert engines.list_resources(small) == []
    images = small.call("GET", "/images/json")
    assert [one["RepoTags"] for one in images] == [[base]]


@pytest.fixture
def fill(small: Engine) -> Iterator[Callable[[], None]]:
    """A function that fills the small engine's disk."""
    file = Path(small.call("GET", "/info")["DockerRootDir"], "filler")
    yield lambda: fill_file(file)
    file.unlink(missing_ok=True)


def fill_file(file: Path) -> None:
    with suppress(OSError), file.open("wb", buffering=0) as target:
        while target.write(bytes(1 << 16)):
            pass


def prompt_refusal(lifecycle: object, template: str = WEB) -> EphemeralError:
    """The error of a failed launch, which comes soon and names the full disk."""
    clock = idle_clock()
    error = refusal(lifecycle, template)  # type: ignore[arg-type]
    assert clock() < PROMPT
    assert "no space" in str(error).lower()
    assert "docker system df" in str(error)
    return error


# -- the engine's disk -----------------------------------------------------------------------------


def test_a_build_step_that_fills_the_disk_is_named(small_engine: Engine, opened: Opened) -> None:
    """The bake fails with an error that has the step."""
    error = prompt_refusal(opened(dockerfile="FROM {base}\nRUN " + FILL + "\n"))
    assert isinstance(error, BakeError)
    assert f"RUN {FILL}" in str(error)


def test_an_install_script_that_fills_the_disk_is_reported(
    small_engine: Engine, opened: Opened
) -> None:
    """The error has the exit status, although the engine can't store the script's output."""
    image = (
        f'[images.odd]\nprovider = "docker"\nbase = "{engine_images.busybox()}"\n'
        f'install = ["{FILL}"]\n'
    )
    error = prompt_refusal(opened(image + ODD.format(image="odd", command="true")), "odd")
    assert isinstance(error, BakeError)
    assert "its install script failed: it exited with status 1" in str(error)


@pytest.mark.parametrize("where", ["/big", "/data/big"])
def test_an_application_that_fills_the_disk_is_reported(
    small_engine: Engine, opened: Opened, where: str
) -> None:
    """Its exit is reported soon, although the engine continues to list it as running."""
    command = FILL.replace("/big", where) + " || exit 3"
    error = prompt_refusal(opened(ODD.format(image="web", command=command)), "odd")
    assert isinstance(error, LaunchError)
    assert "exited with status 3" in str(error)


def test_launching_on_a_full_disk_fails_clearly(
    small_engine: Engine, opened: Opened, fill: Callable[[], None]
) -> None:
    """The engine has no space to create a container."""
    lifecycle = opened()
    lifecycle.image("web")
    fill()
    assert isinstance(prompt_refusal(lifecycle), LaunchError)


def test_compose_on_a_full_disk_fails_clearly(
    small_engine: Engine, opened: Opened, fill: Callable[[], None], tmp_path: Path
) -> None:
    """The error has the compose command's message, without its progress."""
    text = f"services: {{web: {{image: '{engine_images.busybox()}'}}}}\n"
    (tmp_path / "compose.yaml").write_text(text)
    lifecycle = opened(compose("web"))
    fill()
    error = prompt_refusal(lifecycle, "odd")
    assert isinstance(error, LaunchError)
    assert "..." not in str(error)


def test_baking_on_a_full_disk_fails_clearly(
    small_engine: Engine, opened: Opened, fill: Callable[[], None]
) -> None:
    """The engine has no space for the build context."""
    lifecycle = opened()
    fill()
    assert isinstance(prompt_refusal(lifecycle), BakeError)


def test_saving_an_image_on_a_full_disk_fails_clearly(
    small_engine: Engine, opened: Opened, fill: Callable[[], None], tmp_path: Path
) -> None:
    """The engine writes an archive to its own disk first; an incomplete one is not accepted."""
    image = opened().image("web")
    fill()
    with pytest.raises(BakeError, match=r"can't be saved: .*no space left"):
        load("docker").pack(image, tmp_path / "archive")  # type: ignore[attr-defined]


def test_a_truncated_archive_is_refused(
    small_engine: Engine, opened: Opened, tmp_path: Path
) -> None:
    """An engine may stop in the middle of an archive without an error."""
    image = opened().image("web")
    file = tmp_path / "archive"
    load("docker").pack(image, file)  # type: ignore[attr-defined]
    whole = file.read_bytes()
    for size in (0, len(whole) // 2, len(whole) - 20_000):
        file.write_bytes(whole[:size])
        with pytest.raises(BakeError, match="incomplete"):
            archive.check(image, file)


# -- the store's disk ------------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Path]:
    """The project's store, on a disk of its own that is too small for an image."""
    engines.require("mount")
    with engines.disk_of(tmp_path / ".ephemeral", "1m"):
        yield tmp_path / ".ephemeral"


def test_a_store_too_small_for_the_archive_prevents_the_bake(store: Path, opened: Opened) -> None:
    """The bake fails, as later stages could not get the image, and leaves nothing."""
    lifecycle = opened(keep="always")
    error = refusal(lifecycle)
    assert isinstance(error, StoreError)
    assert "the disk is full. Make room" in str(error)
    assert lifecycle.project.images.catalog.entries() == []
    assert sorted([file.name for file in store.rglob("*") if file.is_file()]) == [
        ".gitignore",
        ".lock",
    ]
    query = {"filters": {"label": [f"test={store.parent}"]}}
    images = endpoint.find().call("GET", "/images/json", query=query)
    assert [one for one in images if "pytest-ephemeral/" in str(one["RepoTags"])] == []


def test_a_full_store_prevents_the_launch(store: Path, opened: Opened) -> None:
    """An environment that can't be recorded is not launched."""
    lifecycle = opened()
    fill_file(store / "filler")
    error = refusal(lifecycle)
    assert isinstance(error, StoreError)
    assert "the disk is full. Make room" in str(error)


def test_environments_can_be_destroyed_with_a_full_store(tmp_path: Path, opened: Opened) -> None:
    """Destroy needs no space in the store, and removes the environment and its record."""
    engines.require("mount")
    with engines.disk_of(tmp_path / ".ephemeral", "8m"):
        lifecycle = opened()
        environment = up(lifecycle)
        fill_file(tmp_path / ".ephemeral" / "filler")
        lifecycle.destroy(environment)
        assert left(environment.id) == []
        assert lifecycle.project.ledger.entries() == []
        lifecycle.project.images.prune(0, set())
