"""The shop of examples/ in containers: the same acceptance tests, another template."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import engine_images
import pytest

from pytest_ephemeral.providers.docker import finding

SHOP = Path(__file__).parents[2] / "examples" / "shop"


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The example as it stands, on base images that need no registry; what it bakes is removed."""
    if why := engine_images.unavailable():
        pytest.skip(why)
    folder = tmp_path_factory.mktemp("example") / "shop"
    generated = shutil.ignore_patterns("dist", ".ephemeral", "__pycache__", ".pytest_cache")
    shutil.copytree(SHOP, folder, ignore=generated)
    for file, public, here in (
        ("Dockerfile", "python:3.12-slim", engine_images.python_for_shop()),
        ("compose.yaml", "redis:7", engine_images.redis()),
    ):
        text = (folder / file).read_text()
        assert public in text
        (folder / file).write_text(text.replace(public, here))
    wheel = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", "dist"]
    subprocess.run([*wheel, "."], cwd=folder, check=True)
    yield folder
    prune = "import pytest_ephemeral.cli as c; raise SystemExit(c.main())"
    argv = [sys.executable, "-c", prune, "images", "prune", "--keep", "0"]
    subprocess.run(argv, cwd=folder, check=True, capture_output=True)


@pytest.mark.timeout(600)
@pytest.mark.parametrize("template", ["staging-docker", "staging-compose"])
def test_the_acceptance_tests_pass_in_containers(shop: Path, template: str) -> None:
    """All that read and all that order; nothing of it is left on the engine."""
    argv = ["--ephemeral-env", "--ephemeral-template", template, "-v", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *argv, "-k", "browsing or ordering and not prices"],
        cwd=shop,
        env={**os.environ, "PYTEST_EPHEMERAL_STATE": str(shop.parent / "state")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"({template}" in done.stdout
    containers = finding.find().call("GET", "/containers/json", query={"all": True})
    assert [one for one in containers if f"pytest-ephemeral-{template}-" in str(one)] == []
