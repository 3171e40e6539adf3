"""Several engines: images baked on one and used on another, and TCP with TLS."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import socket
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from containers.certificates import Authority
from containers.project import WEB, Opened, compose, reopened, up
from pytest_ephemeral.errors import UnavailableError
from pytest_ephemeral.providers import load
from pytest_ephemeral.providers.docker import bases, endpoint, image_store
from pytest_ephemeral.providers.docker.engine import Engine
from support import compose_versions, engine_images, engines, registry, web


@pytest.fixture
def other(second_docker: Engine) -> Iterator[Engine]:
    """A second Docker engine, without images."""
    yield second_docker
    engines.forget_images(second_docker)


@pytest.fixture(scope="module")
def one_newest() -> Iterator[Engine]:
    """The newest Docker engine, whose image store uses other digests."""
    if why := engines.newest_unavailable():
        pytest.skip(f"without {why}")
    with engines.newest_dockerd() as engine:
        yield engine


@pytest.fixture
def newest(one_newest: Engine) -> Iterator[Engine]:
    """The newest Docker engine, without images."""
    yield one_newest
    engines.forget_images(one_newest)


# -- a later stage on another engine ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["other", "podman", "newest"])
def test_another_engine_runs_the_image_from_the_store(
    opened: Opened, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """The engine never had the image or its base, and gets the image with the same digest."""
    stage = request.getfixturevalue(kind)
    baking = opened(keep="always")
    baked = baking.image("web")
    layers = endpoint.find().call("GET", f"/images/{baked.digest}/json")["RootFS"]["Layers"]
    with engines.use(stage):
        lifecycle = reopened(tmp_path)
        assert image_store.find(stage, baked) is None
        environment = up(lifecycle)
        found = image_store.find(stage, baked)
        assert found is not None
        assert found["RootFS"]["Layers"] == layers
        assert configuration_of(stage, found) == baked.digest
        assert found["Config"]["Labels"]["pytest-ephemeral.key"] == baked.key
        assert environment.handle["engine"] == stage.address.url
        assert web.get(environment.url).strip() == "ok"
        lifecycle.destroy(environment)
        assert engines.list_resources(stage) == []
        load("docker").remove(baked)  # type: ignore[attr-defined]
    assert bases.find_local(endpoint.find(), baked.reference) is not None


@pytest.mark.parametrize("kind", ["other", "podman"])
def test_older_engines_run_an_image_of_the_newest_engine(
    opened: Opened, newest: Engine, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """The record has the digest that older engines use, which differs from the newest engine's."""
    with engines.use(newest):
        baked = opened(keep="always").image("web")
        assert baked.reference != baked.digest
    stage = request.getfixturevalue(kind)
    with engines.use(stage):
        lifecycle = reopened(tmp_path)
        environment = up(lifecycle)
        assert stage.call("GET", f"/images/{baked.digest}/json")["Os"] == "linux"
        assert web.get(environment.url).strip() == "ok"
        lifecycle.destroy(environment)
        load("docker").remove(baked)  # type: ignore[attr-defined]


def test_an_image_with_a_reused_tag_is_loaded_again(
    opened: Opened, newest: Engine, tmp_path: Path
) -> None:
    """Only its digest identifies a baked image, not its tag."""
    with engines.use(newest):
        lifecycle = opened(keep="always")
        baked = lifecycle.image("web")
        newest.call("DELETE", f"/images/{image_store.tag_of(baked)}")
        repository, _, tag = image_store.tag_of(baked).rpartition(":")
        query = {"repo": repository, "tag": tag}
        newest.call("POST", f"/images/{engine_images.busybox()}/tag", query=query)
        assert image_store.find(newest, baked) is None
        environment = up(reopened(tmp_path))
        container = newest.call("GET", f"/containers/{environment.handle['container']}/json")
        found = newest.call("GET", f"/images/{container['Image']}/json")
        assert found["Config"]["Labels"]["pytest-ephemeral.key"] == baked.key
        lifecycle.destroy(environment)


def configuration_of(engine: Engine, found: Mapping[str, Any]) -> str:
    """The digest of an image's configuration, computed from its saved archive."""
    with engine.stream("GET", f"/images/{found['Id']}/get") as answer:
        archive = io.BytesIO(answer.read())
    with tarfile.open(fileobj=archive) as tar:
        listing = tar.extractfile("manifest.json")
        assert listing is not None
        config = tar.extractfile(json.load(listing)[0]["Config"])
        assert config is not None
        return f"sha256:{hashlib.sha256(config.read()).hexdigest()}"


@pytest.mark.parametrize("kind", ["other", "newest"])
def test_another_engine_pulls_the_image_by_digest(
    opened: Opened, request: pytest.FixtureRequest, tmp_path: Path, kind: str
) -> None:
    """The image is pulled by the pushed digest, without an archive in the store."""
    with registry.running() as pushed_to:
        repository = f"127.0.0.1:{pushed_to.server_port}/team/{WEB}"
        more = (
            f'[images.shared]\nprovider = "docker"\nbase = "{engine_images.busybox()}"\n'
            f'install = ["echo {WEB} > /it"]\nregistry = "{repository}"\n'
            f'[templates.shared]\nimage = "shared"\nport = 8080\nready = {{ http = "/" }}\n'
        )
        project = opened(more, keep="auto").project
        recipe = project.config.recipe("shared")
        baked = project.images.obtain(recipe, mode="missing", say=print)
        assert baked.archive is None
        stage = request.getfixturevalue(kind)
        with engines.use(stage):
            lifecycle = reopened(tmp_path)
            environment = up(lifecycle, "shared")
            assert environment.run(["cat", "/it"]).stdout == f"{WEB}\n"
            found = bases.find_local(stage, baked.handle["pull"])
            assert found is not None
            assert configuration_of(stage, found) == baked.digest
            lifecycle.destroy(environment)
            load("docker").remove(baked)  # type: ignore[attr-defined]
            assert image_store.find(stage, baked) is None


def test_podman_bakes_the_same_image_settings_as_docker(opened: Opened, podman: Engine) -> None:
    """The image has its own labels and command, not those of the install script's container."""
    with engines.use(podman):
        recipe = f'provider = "docker"\nbase = "{engine_images.busybox()}"\ninstall = ["true"]'
        project = opened(f"[images.installed{WEB}]\n{recipe}\n").project
        wanted = project.config.recipe(f"installed{WEB}")
        image = project.images.obtain(wanted, mode="missing", say=print)
        found = bases.find_local(podman, image.reference)
        assert found is not None
        config = found["Config"]
        assert config["Labels"]["pytest-ephemeral.key"] == image.key
        assert not config["Labels"]["pytest-ephemeral.id"]
        assert "bake" not in str(config["Cmd"])
        assert f"PREFIX=/opt/installed{WEB}" in config["Env"]
        listed = podman.call("GET", "/images/json")
        assert "-baking/" not in str([one["RepoTags"] for one in listed])
        project.images.prune(0, set())
        assert bases.find_local(podman, image.reference) is None


# -- TCP with TLS ----------------------------------------------------------------------------------


class Secured(NamedTuple):
    """An engine that accepts only clients with a certificate of its authority.

    Attributes:
        engine: The engine by its Unix socket, for inspection.
        url: Its TCP address.
        ours: A folder with valid certificates.
        strangers: A folder with certificates of another authority.
    """

    engine: Engine
    url: str
    ours: Path
    strangers: Path


PEM = ("ca", "cert", "key")


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secured]:
    """A secured engine on loopback."""
    engines.require("dockerd")
    folder = tmp_path_factory.mktemp("tls")
    authority = Authority("engines")
    server = authority.issue(folder / "server", "engine", "127.0.0.1")
    ours = authority.issue(folder / "ours", "tester")
    strangers = Authority("strangers").issue(folder / "strangers", "tester")
    with socket.create_server(("127.0.0.1", 0)) as free:
        url = f"tcp://127.0.0.1:{free.getsockname()[1]}"
    shown = [f"--tls{kind}={server}/{kind.removeprefix('ca')}.pem" for kind in ("cert", "key")]
    with engines.dockerd(
        "-H", url, "--tlsverify", f"--tlscacert={server}/ca.pem", *shown
    ) as engine:
        yield Secured(engine, url, ours, strangers)


@pytest.fixture(params=["variables", "context"])
def chosen(
    request: pytest.FixtureRequest,
    secured: Secured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Secured:
    """The secured engine, given by variables or by the current context of the docker command."""
    if request.param == "variables":
        named(monkeypatch, secured.url, secured.ours)
    else:
        folder = tmp_path / "docker"
        digest = hashlib.sha256(b"far").hexdigest()
        meta = folder / "contexts" / "meta" / digest
        meta.mkdir(parents=True)
        described = {"Name": "far", "Endpoints": {"docker": {"Host": secured.url}}}
        (meta / "meta.json").write_text(json.dumps(described))
        shutil.copytree(secured.ours, folder / "contexts" / "tls" / digest / "docker")
        (folder / "config.json").write_text('{"currentContext": "far"}')
        for name in ("DOCKER_HOST", "DOCKER_TLS_VERIFY", "DOCKER_CERT_PATH"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("DOCKER_CONFIG", str(folder))
    return secured


def named(monkeypatch: pytest.MonkeyPatch, url: str, certificates: Path | None) -> None:
    monkeypatch.setenv("DOCKER_HOST", url)
    if certificates is not None:
        monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
        monkeypatch.setenv("DOCKER_CERT_PATH", str(certificates))


def test_an_environment_runs_over_tls(chosen: Secured, opened: Opened) -> None:
    """An image is baked, and an environment launched, used and destroyed, over TLS."""
    lifecycle = opened()
    environment = up(lifecycle)
    assert environment.handle["engine"] == chosen.url
    assert web.get(environment.url).strip() == "ok"
    assert environment.run(["echo", "hi"]).stdout == "hi\n"
    assert len(engines.list_resources(chosen.engine)) == 3
    lifecycle.destroy(environment)
    assert engines.list_resources(chosen.engine) == []


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_compose_runs_over_tls(
    secured: Secured,
    opened: Opened,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    version: str,
) -> None:
    """The compose command gets the same address and certificates."""
    wanted = compose_versions.with_plugin if version == "v2" else compose_versions.without_plugin
    with wanted():
        named(monkeypatch, secured.url, secured.ours)
        text = f"services: {{web: {{image: '{engine_images.busybox()}'}}}}\n"
        (tmp_path / "compose.yaml").write_text(text)
        lifecycle = opened(compose("web") + 'ready = { http = "/" }\n')
        environment = up(lifecycle, "odd")
        assert web.get(environment.url).strip() == "ok"
        lifecycle.destroy(environment)
        assert engines.list_resources(secured.engine) == []


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ("authority", "certificate that can't be trusted"),
        ("certificate", "accept (our|the) certificate"),
        ("key", "key values mismatch"),
        ("nothing", "no such folder"),
        ("plain", "speaks TLS only: set DOCKER_TLS_VERIFY=1"),
        ("host", "can't be trusted.*must name that host"),
    ],
)
def test_a_wrong_certificate_is_explained_in_one_line(
    secured: Secured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    wrong: str,
    said: str,
) -> None:
    """The line has the fault and the folder of the certificate; `doctor` reports the same."""
    folder = tmp_path / "certificates"
    shutil.copytree(secured.ours, folder)
    strange = {"authority": ["ca.pem"], "certificate": ["cert.pem", "key.pem"], "key": ["key.pem"]}
    for name in strange.get(wrong, ()):
        shutil.copy(secured.strangers / name, folder / name)
    url = secured.url.replace("127.0.0.1", "localhost") if wrong == "host" else secured.url
    where = tmp_path / "nowhere" if wrong == "nothing" else folder
    named(monkeypatch, url, None if wrong == "plain" else where)
    with pytest.raises(UnavailableError, match=said) as caught:
        load("docker").reach()  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)
    assert url in str(caught.value)
    check = load("docker").doctor()[0]
    assert not check.ok
    assert re.search(said, f"{check.detail}: {check.hint}")
    assert wrong in {"plain", "host"} or str(where) in str(caught.value)
