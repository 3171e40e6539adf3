"""The example shop in containers, with the same acceptance tests and another template."""

from __future__ import annotations

import json
import os
import re
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_ephemeral.providers.docker import containers, endpoint
from support import compose_versions, engine_images, processes
from support.processes import PROGRAM
from support.shop import build_wheel, copy_shop
from support.waiting import until


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The example with base images that need no registry; the baked images are removed."""
    engine_images.require()
    folder = copy_shop(tmp_path_factory.mktemp("example") / "shop")
    for file, public, here in (
        ("Dockerfile", "python:3.12-slim", engine_images.python_for_shop()),
        ("compose.yaml", "redis:7", engine_images.redis()),
    ):
        text = (folder / file).read_text()
        assert public in text
        (folder / file).write_text(text.replace(public, here))
    build_wheel(folder)
    yield folder
    run(folder, PROGRAM, "images", "prune", "--keep", "0")


def run(shop: Path, *argv: str | Path) -> str:
    """The output of a command in the shop's folder, with a state folder of its own."""
    prefixes = shop.parent / "prefixes"
    prefixes.mkdir(mode=0o700, exist_ok=True)
    environ = {
        **os.environ,
        "PYTEST_EPHEMERAL_STATE": str(shop.parent / "state"),
        "PYTEST_EPHEMERAL_PREFIX_ROOT": str(prefixes),
        "SHOP_KEY": "letmein",
    }
    return processes.run(*argv, folder=shop, environ=environ, timeout=500).stdout


@pytest.mark.timeout(600)
@pytest.mark.parametrize("template", ["staging-docker", "staging-compose"])
def test_the_acceptance_tests_pass_in_containers(shop: Path, template: str) -> None:
    """All of them pass, and no container is left on the engine."""
    report = shop / "dist" / "report.json"
    argv = ["--ephemeral-env", "--ephemeral-template", template, "-p", "no:cacheprovider"]
    with compose_versions.with_plugin():
        pytest_ = [sys.executable, "-m", "pytest", f"--ephemeral-report={report}"]
        assert "16 passed" in run(shop, *pytest_, *argv)
    environments = json.loads(report.read_bytes())["environments"]
    assert template in {one["template"] for one in environments}
    for environment in environments:  # the watchdog may still be removing the last one
        label = {"label": [f"pytest-ephemeral.id={environment['id']}"]}
        query = {"all": True, "filters": label}
        until(
            lambda q=query: not endpoint.find().call("GET", "/containers/json", query=q), within=5
        )


@pytest.mark.timeout(600)
def test_the_shop_uses_a_real_redis(shop: Path) -> None:
    """The packing room waits on Redis, and an order notifies it; launched by Compose 1."""
    with compose_versions.without_plugin():
        up = run(shop, PROGRAM, "up", "staging-compose", "--json")
    environment = json.loads(up)["environment"]
    id = environment["id"]
    try:
        query = {"filters": {"label": [f"pytest-ephemeral.id={id}"]}}
        engine = endpoint.find()
        redis = next(
            one["Id"]
            for one in engine.call("GET", "/containers/json", query=query)
            if one["Labels"]["com.docker.compose.service"] == "redis"
        )

        def told(*asked: str) -> str:
            return containers.run(engine, redis, ["redis-cli", *asked], timeout=20).stdout

        assert "redis_version" in told("info", "server")
        assert until(lambda: re.search(r"cmd=(\w*pop|subscribe)", told("client", "list")))
        before = commands(told)
        body = json.dumps({"customer": "Ada", "basket": {"assam": 1}}).encode()
        order = urllib.request.Request(f"{environment['url']}api/orders", body)
        order.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(order, timeout=10) as answer:
            number = json.load(answer)["id"]
        until(lambda: commands(told) > before)
        url = f"{environment['url']}api/orders/{number}"
        until(lambda: b"packed_at" in urllib.request.urlopen(url, timeout=10).read())
    finally:
        run(shop, PROGRAM, "down", id)


def commands(told: Callable[..., str]) -> int:
    """The number of pushes and publications that Redis has counted."""
    found = re.search(r"cmdstat_(?:\wpush|publish):calls=(\d+)", told("info", "commandstats"))
    return int(found[1]) if found else 0
