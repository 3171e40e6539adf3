"""Fixtures of the conformance suite: a bench, its image, and a way to launch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, nullcontext
from pathlib import Path
from typing import Any

import bench as benches
import pytest
from bench import Bench, Launcher, Owner

from pytest_ephemeral import models, providers
from pytest_ephemeral.models import Environment, Image


@pytest.fixture(scope="module", params=sorted(benches.TABLE))
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    """One provider's bench, with whatever platform it brings along for as long as it is used."""
    found = benches.load(request.param)
    if why := found.unavailable():
        pytest.skip(f"without {why}")
    with getattr(found, "platform", nullcontext)():
        yield found


@pytest.fixture(scope="module")
def image(bench: Bench, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """The bench's image, baked into folders of its own."""
    root = tmp_path_factory.mktemp("conformance")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTEST_EPHEMERAL_STATE", str(root / "machine"))
        patch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(root / "trees"))
        baked = benches.bake(bench, root)
        yield baked
        providers.load(baked.provider).remove(baked)


@pytest.fixture
def provider(bench: Bench) -> Any:
    """The provider itself."""
    return providers.load(bench.template("web").provider)


@pytest.fixture
def launch(bench: Bench, image: Image) -> Iterator[Launcher]:
    """Launch environments that are destroyed behind the test."""
    with ExitStack() as cleanup:
        yield Launcher(bench, image, cleanup)


@pytest.fixture
def owner(
    request: pytest.FixtureRequest, bench: Bench, image: Image, provider: Any, tmp_path: Path
) -> Iterator[Owner]:
    """Let another process own an environment: the process, and the environment."""
    name = request.node.callspec.params["bench"]
    file = tmp_path / "image.json"
    file.write_bytes(models.encode(image))
    with ExitStack() as cleanup:

        def start(*, kind: str = "web", lifetime: float = 120.0, keep: bool = False) -> Any:
            script = str(Path(__file__).with_name("owner.py"))
            argv = [sys.executable, script, name, kind, str(file), str(lifetime)]
            process = cleanup.enter_context(
                subprocess.Popen(
                    argv + ["keep"] * keep,
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                )
            )
            cleanup.callback(process.kill)
            assert process.stdout is not None
            environment = models.decode(process.stdout.readline().encode(), Environment)
            cleanup.callback(provider.destroy, environment)
            return process, environment

        yield start
