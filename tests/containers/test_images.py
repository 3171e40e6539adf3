"""Images in the store, on another engine and in a registry, and their removal."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from containers.project import WEB, Opened, up
from pytest_ephemeral.errors import (
    BakeError,
    EphemeralError,
    ImageChangedError,
    ImageMissingError,
)
from pytest_ephemeral.models import Image
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers import load
from pytest_ephemeral.providers.docker import endpoint, quarantine
from pytest_ephemeral.tables import Recipe
from support import engine_images, registry
from support.waiting import until


def test_another_engine_loads_the_image_from_the_store(opened: Opened, tmp_path: Path) -> None:
    """With neither the image nor its base on the engine, the loaded image has the same ID."""
    engine = endpoint.find()
    base = f"localhost:1/{WEB}:base"
    query = {"repo": base.rpartition(":")[0], "tag": "base"}
    engine.call("POST", f"/images/{engine_images.busybox()}/tag", query=query)
    dockerfile = f"FROM {base}\nLABEL test={tmp_path}\n"
    project = opened(dockerfile=dockerfile, keep="always").project
    recipe = project.config.recipe("web")
    baked = project.images.obtain(recipe, mode="missing", say=print)
    for name in (base, f"pytest-ephemeral/web:{baked.key[7:19]}"):
        engine.call("DELETE", f"/images/{name}")
    with pytest.raises(EphemeralError):
        engine.call("GET", f"/images/{baked.reference}/json")

    brought = project.images.obtain(recipe, mode="never", say=print)

    assert brought == baked
    found = engine.call("GET", f"/images/{baked.reference}/json")
    assert found["Id"] == baked.digest
    assert found["Config"]["Labels"]["pytest-ephemeral.key"] == baked.key


def test_packing_an_image_is_reproducible(opened: Opened, tmp_path: Path) -> None:
    """Equal archives let the store keep an image once."""
    image = opened().image("web")
    for name in ("one", "two"):
        load("docker").pack(image, tmp_path / name)  # type: ignore[attr-defined]
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_image_variants_share_layers_in_the_store(opened: Opened) -> None:
    """The base's layer is stored once, under the engine's digest, and pruned last."""
    made = f'provider = "docker"\nbase = "{engine_images.busybox()}"\n'
    more = "".join(
        f'[images.{name}]\n{made}install = ["head -c 20000 /dev/urandom > /{name}"]\n'
        for name in ("first", "second")
    )
    project = opened(more, keep="always").project
    stored, layers = [], []
    for name in ("first", "second"):
        recipe = project.config.recipe(name)
        image = project.images.obtain(recipe, mode="missing", say=print)
        found = endpoint.find().call("GET", f"/images/{image.reference}/json")
        layers.append({layer.removeprefix("sha256:") for layer in found["RootFS"]["Layers"]})
        stored.append({path.removeprefix("layers/") for path in project.store.paths("layers")})
    assert stored[0] <= layers[0]
    assert stored[0] & layers[1] == stored[0] - (layers[0] - layers[1])
    assert stored[1] - stored[0] == layers[1] - layers[0]
    project.images.prune(0, set())
    assert list(project.store.paths("layers")) == list(project.store.paths("images")) == []


def test_an_image_not_in_the_store_can_be_exported(opened: Opened, tmp_path: Path) -> None:
    """It is exported from the engine; after its removal there, an import restores it."""
    project = opened(keep="never").project
    image = project.images.obtain(project.config.recipe("web"), mode="missing", say=print)
    assert image.archive is None
    assert list(project.store.paths("images")) == []
    project.images.export(image, tmp_path / "bundle")
    endpoint.find().call("DELETE", f"/images/pytest-ephemeral/web:{image.key[7:19]}")
    with pytest.raises(ImageMissingError, match="neither here nor in the store"):
        project.images.obtain(project.config.recipe("web"), mode="never", say=print)
    assert project.images.import_(tmp_path / "bundle") == image
    assert project.images.obtain(project.config.recipe("web"), mode="never", say=print) == image


def test_an_archive_of_another_image_is_refused(opened: Opened, tmp_path: Path) -> None:
    """The ID of the loaded image does not match the record."""
    image = opened().image("web")
    load("docker").pack(image, tmp_path / "archive")  # type: ignore[attr-defined]
    other = msgspec.structs.replace(image, digest="sha256:" + "0" * 64)
    with pytest.raises(ImageChangedError, match="archive of the image"):
        load("docker").unpack(other, tmp_path / "archive")  # type: ignore[attr-defined]


def test_prune_removes_only_unused_baked_images(opened: Opened) -> None:
    """An image that an environment uses stays, and so does the base."""
    lifecycle = opened()
    environment = up(lifecycle)
    images = lifecycle.project.images
    assert images.prune(0, set()) == []
    lifecycle.destroy(environment)
    (removed,) = images.prune(0, set())
    engine = endpoint.find()
    with pytest.raises(EphemeralError):
        engine.call("GET", f"/images/{removed.reference}/json")
    assert engine.call("GET", f"/images/{engine_images.busybox()}/json")
    assert removed.key[7:19] not in str(engine.call("GET", "/images/json"))


def test_prune_keeps_foreign_tags_and_derived_images(opened: Opened) -> None:
    """A derived image has all labels of the baked image that it was built from."""
    lifecycle = opened()
    images, engine = lifecycle.project.images, endpoint.find()
    recipe = lifecycle.project.config.recipe("web")
    baked = images.obtain(recipe, mode="missing", say=print)
    named = {"repo": f"theirs/{WEB}", "tag": "named"}
    engine.call("POST", f"/images/{baked.reference}/tag", query=named)
    container = engine.call("POST", "/containers/create", body={"Image": baked.reference})["Id"]
    built = {"container": container, "repo": f"theirs/{WEB}", "tag": "built"}
    derived = engine.call("POST", "/commit", query=built, body={"Env": ["A=1"]})["Id"]
    engine.call("DELETE", f"/containers/{container}")
    try:
        until(lambda: images.obtain(recipe, mode="always", say=print).digest != baked.digest)
        quarantine.discard(endpoint.find(), baked.key)
        images.prune(0, set())
        for tag, id in (("named", baked.digest), ("built", derived)):
            assert engine.call("GET", f"/images/theirs/{WEB}:{tag}/json")["Id"] == id
    finally:
        for tag in ("built", "named"):
            engine.call("DELETE", f"/images/theirs/{WEB}:{tag}")


def test_another_engine_pulls_the_image_by_digest(opened: Opened) -> None:
    """The image is pulled by the pushed digest, and the store has no second copy.

    Errors name a registry that is down or has other bytes. A bake that can't push its image fails,
    and leaves no image.
    """
    base = engine_images.busybox()
    engine = endpoint.find()
    with registry.running() as pushed_to:
        repository = f"127.0.0.1:{pushed_to.server_port}/team/{WEB}"
        more = (
            f'[images.shared]\nprovider = "docker"\nbase = "{base}"\n'
            f'install = ["echo {WEB} > /it"]\n'
            f'registry = "{repository}"\nverify = ["grep {WEB} /it"]\n'
        )
        project = opened(more, keep="auto").project
        recipe = project.config.recipe("shared")
        baked = project.images.obtain(recipe, mode="missing", say=print)
        assert baked.handle["pull"].startswith(f"{repository}@sha256:")
        engine.call("DELETE", f"/images/pytest-ephemeral/shared:{baked.key[7:19]}")
        assert baked.archive is None
        with pytest.raises(EphemeralError):
            engine.call("GET", f"/images/{baked.reference}/json")

        assert project.images.obtain(recipe, mode="never", say=print) == baked

        assert engine.call("GET", f"/images/{baked.reference}/json")["Id"] == baked.digest
        engine.call("DELETE", f"/images/{baked.handle['pull']}")
        honest = dict(pushed_to.blobs)
        pushed_to.blobs.update({digest: data + b" " for digest, data in honest.items()})
        refused(project, recipe, baked)
        pushed_to.blobs = honest
        taken(opened, repository, pushed_to)
    refused(project, recipe, baked)
    with pytest.raises(BakeError, match=repository):
        project.images.obtain(recipe, mode="missing", say=print)
    names = [str(one["RepoTags"]) for one in engine.call("GET", "/images/json")]
    assert not any(f"/shared:{baked.key[7:19]}" in name for name in names)


def refused(project: Project, recipe: Recipe, baked: Image) -> None:
    """A stage that may not bake fails, and names the reference that can't be pulled."""
    with pytest.raises(ImageMissingError, match=f"can't be pulled by {baked.handle['pull']}: "):
        project.images.obtain(recipe, mode="never", say=print)


def taken(opened: Opened, repository: str, pushed_to: registry.Registry) -> None:
    """A reference by a tag is pulled once, and pinned to the digest of the tag."""
    tag = next(name for name in pushed_to.manifests if not name.startswith("sha256:"))
    more = f'[images.taken]\nprovider = "docker"\nreference = "{repository}:{tag}"\n'
    project = opened(more).project
    image = project.images.obtain(project.config.recipe("taken"), mode="missing", say=print)
    digest = hashlib.sha256(pushed_to.manifests[tag][1]).hexdigest()
    assert image.inputs["content"] == f"sha256:{digest}"
    assert image.handle["pull"] == f"{repository}@sha256:{digest}"
    endpoint.find().call("DELETE", f"/images/{image.reference}", query={"force": True})
    again = project.images.obtain(project.config.recipe("taken"), mode="never", say=print)
    assert again == image
    endpoint.find().call("DELETE", f"/images/{image.reference}", query={"force": True})


def test_generated_files_do_not_change_the_image_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files that pytest and the store write beside the Dockerfile cause no second image."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "Dockerfile").write_text(f"FROM {engine_images.busybox()}\nEXPOSE 8080\n")
    (folder / "ephemeral.toml").write_text(
        f'[images.{WEB}]\nprovider = "docker"\ncontext = "."\n\n'
        f'[templates.staging]\nimage = "{WEB}"\nport = 8080\n'
    )
    (folder / "test_it.py").write_text("def test_it(ephemeral_url): assert ephemeral_url\n")
    for mode in ("missing", "never"):
        argv = ["-m", "pytest", "--ephemeral-env", "--ephemeral-bake", mode]
        done = subprocess.run(
            [sys.executable, *argv], cwd=folder, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout
    assert len(Project.open(None, folder).images.prune(0, set())) == 1


@pytest.mark.parametrize("provider", ["local", "docker"])
def test_install_scripts_behave_the_same_on_all_providers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, provider: str
) -> None:
    """``$PREFIX`` is a folder, and a failed command is named, whichever provider bakes."""
    if provider == "docker":
        engine_images.require()
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    (tmp_path / "shop-1.0.bin").write_text("shop")
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "settings").write_text("blue")
    base = f'base = "{engine_images.busybox()}"' if provider == "docker" else ""
    (tmp_path / "ephemeral.toml").write_text(
        f'[images.installed]\nprovider = "{provider}"\n{base}\nartifact = "shop-*.bin"\n'
        """files = ["deploy/*"]\n"""
        """install = ['cp "$ARTIFACT" deploy/settings "$PREFIX"', 'mkdir "$PREFIX/bin"']\n"""
        """verify = ['test "$(cat "$PREFIX/shop-1.0.bin")" = shop', 'test -d "$PREFIX/bin"']\n"""
    )
    images = Project.open(tmp_path / "ephemeral.toml", tmp_path).images
    recipe = Project.open(tmp_path / "ephemeral.toml", tmp_path).config.recipe("installed")
    first = images.obtain(recipe, mode="missing", say=print)
    (tmp_path / "deploy" / "settings").write_text("green")
    second = images.obtain(recipe, mode="missing", say=print)
    assert first.inputs["files"] != second.inputs["files"]
    failing = msgspec.structs.replace(recipe, install=["true", "(exit 3)", "echo not reached"])
    with pytest.raises(
        BakeError, match=r"install script failed: `\(exit 3\)` exited with"
    ) as caught:
        images.obtain(failing, mode="missing", say=print)
    assert "not reached" not in str(caught.value)
    images.prune(0, set())


def test_the_python_of_the_base_image_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is found by its version in the base; if it is missing, the error says so."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    (tmp_path / "ephemeral.toml").write_text(
        f'[images.there]\nprovider = "docker"\nbase = "{engine_images.python()}"\npython = "3.11"\n'
        """install = ['python -c "import sys; print(sys.version_info[:2])" > $PREFIX/python']\n"""
        """verify = ['grep "(3, 11)" $PREFIX/python']\n"""
        f'[images.missing]\nprovider = "docker"\nbase = "{engine_images.busybox()}"\n'
        """python = "3.11"\ninstall = ["echo not reached > $PREFIX/it"]\n"""
    )
    project = Project.open(tmp_path / "ephemeral.toml", tmp_path)
    image = project.images.obtain(project.config.recipe("there"), mode="missing", say=print)
    assert image.inputs["python"] == "3.11"
    project.images.prune(0, set())
    with pytest.raises(BakeError, match=r"images.missing.python: there is no python3.11 on PATH"):
        project.images.obtain(project.config.recipe("missing"), mode="missing", say=print)
