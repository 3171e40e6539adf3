"""Artifacts that are folders, and artifacts that are built when their sources change."""

from __future__ import annotations

import io
import os
import queue
import shutil
import tarfile
import threading
from functools import partial
from pathlib import Path

import pytest

from pytest_ephemeral.artifacts import folder as folders
from pytest_ephemeral.artifacts import open_repository
from pytest_ephemeral.errors import ArtifactError, BakeError, ConfigurationError
from pytest_ephemeral.images import artifact_build
from pytest_ephemeral.providers.local.tables import LocalRecipe
from support.lacks import skip_without


def packed(folder: Path) -> bytes:
    stream = io.BytesIO()
    folders.pack(folder, stream)
    return stream.getvalue()


def names(folder: Path) -> list[str]:
    with tarfile.open(fileobj=io.BytesIO(packed(folder))) as archive:
        return archive.getnames()


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A working copy with files of tools, such as .git and node_modules."""
    root = tmp_path / "shop"
    for name in ("src/shop.py", "src/deep/a.txt", ".git/config", "node_modules/x.js"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return root


def test_equal_content_packs_to_equal_bytes(project: Path, tmp_path: Path) -> None:
    """Times, permissions and the order of writing do not matter."""
    first = packed(project)
    other = tmp_path / "elsewhere"
    for name in ("src/deep/a.txt", "src/shop.py"):
        (other / name).parent.mkdir(parents=True, exist_ok=True)
        (other / name).write_text(name)
        os.utime(other / name, (1, 1))
        (other / name).chmod(0o600)
    assert packed(other) == first
    (other / "src" / "shop.py").write_text("changed")
    assert packed(other) != first


def test_gitignore_files_are_respected(project: Path) -> None:
    """This includes nested files, negations and folders. Files of tools are never packed."""
    (project / ".gitignore").write_text("*.log\n/build/\nsrc/deep/*\n!src/deep/a.txt\n")
    (project / "src" / ".gitignore").write_text("secret.py\n!kept.log\n")
    for name in (
        "a.log",
        "src/kept.log",
        "src/secret.py",
        "build/x",
        "src/deep/b.txt",
        "src/build/y",
    ):
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text("")
    assert names(project) == [
        ".gitignore",
        "src/.gitignore",
        "src/build/y",
        "src/deep/a.txt",
        "src/kept.log",
        "src/shop.py",
    ]


def test_packed_files_match_git(project: Path) -> None:
    """The files are those that git would add."""
    import subprocess

    if shutil.which("git") is None:
        skip_without("git", "apt-get install git")
    (project / ".gitignore").write_text("*.log\n!keep.log\nnode_modules/\n/src/deep\n")
    for name in ("a.log", "keep.log", "src/x.log"):
        (project / name).write_text("")
    (project / ".git" / "config").unlink()
    (project / ".git").rmdir()
    git = ["git", "-C", str(project)]
    subprocess.run([*git, "init", "-q"], check=True)
    listed = subprocess.run(
        [*git, "ls-files", "--others", "--exclude-standard"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert names(project) == sorted(listed)


def test_packing_preserves_links_and_executable_bits(project: Path) -> None:
    """Links are not followed, so no file outside of the folder is packed."""
    (project / "run").write_text("#!/bin/sh\n")
    (project / "run").chmod(0o755)
    (project / "out").symlink_to("/etc/passwd")
    with tarfile.open(fileobj=io.BytesIO(packed(project))) as archive:
        assert archive.getmember("run").mode == 0o755
        assert archive.getmember("out").linkname == "/etc/passwd"


def test_a_folder_is_pushed_under_its_name(project: Path, tmp_path: Path) -> None:
    """The same content is the same artifact, and a change makes another version."""
    repository = open_repository("artifacts", tmp_path)
    first = repository.find("shop", tmp_path)
    assert (first.name, first.filename) == ("shop", "shop.tar")
    assert repository.find("shop", tmp_path) == first
    (project / "src" / "shop.py").write_text("2")
    assert repository.find("shop", tmp_path).version != first.version
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="empty folder"):
        repository.find("empty", tmp_path)


def recipe(**changes: object) -> LocalRecipe:
    settings = {
        "name": "shop",
        "provider": "local",
        "artifact": "dist/*.txt",
        "build": "mkdir -p dist; n=$(ls dist | wc -l); cat src/*.py > dist/v$n.txt; echo made $n",
        "sources": ["src", "*.cfg"],
    }
    return LocalRecipe(**(settings | changes))  # type: ignore[arg-type]


def built(root: Path, **changes: object) -> list[str]:
    said: list[str] = []
    artifact_build.build_if_changed(recipe(**changes), root, said.append, said.append)
    return said


def test_the_artifact_is_built_only_when_a_source_changes(project: Path) -> None:
    """The file that was built last is the artifact; older files stay."""
    assert "made 0" in built(project)
    assert built(project) == []
    assert artifact_build.find_built(recipe(), project) == "dist/v0.txt"
    (project / "src" / "shop.py").write_text("changed")
    assert "made 1" in built(project)
    assert artifact_build.find_built(recipe(), project) == "dist/v1.txt"
    assert (project / "dist" / "v0.txt").exists()
    (project / "dist" / "v1.txt").unlink()
    assert built(project)


@pytest.mark.parametrize(("other", "builds"), [("shop", 1), ("worker", 2)])
def test_builds_of_one_project_do_not_overlap(project: Path, other: str, builds: int) -> None:
    """The second build waits for the first; for the same image, it then has nothing to do."""
    os.mkfifo(project / "gate")
    gated = "echo begun >> log; test -e dist || read line < gate; mkdir -p dist; date > dist/v.txt"
    threads = []
    for name, sign in (("shop", "building dist/"), (other, "waiting for another build")):
        said: queue.Queue[str] = queue.Queue()
        wanted = recipe(name=name, build=gated)
        build = partial(artifact_build.build_if_changed, wanted, project, said.put, said.put)
        threads.append(threading.Thread(target=build))
        threads[-1].start()
        assert sign in said.get(timeout=60)
    (project / "gate").write_text("go\n")
    for thread in threads:
        thread.join(60)
    assert (project / "log").read_text().count("begun") == builds


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"build": "echo no compiler; exit 3"}, "exited with 3: .*no compiler"),
        ({"build": "true"}, "made no file that matches"),
    ],
)
def test_a_failed_build_is_reported_with_its_output(
    project: Path, changes: dict[str, str], said: str
) -> None:
    """The message has the last lines of output, or says that no file was made."""
    with pytest.raises(BakeError, match=f"(?s){said}"):
        built(project, **changes)


def test_missing_sources_are_an_error(project: Path) -> None:
    """Otherwise, no change would ever start a build."""
    with pytest.raises(ConfigurationError, match=r"images.shop.sources: nothing .* matches lib"):
        built(project, sources=["lib"])


def test_a_stale_wheel_causes_a_warning(project: Path) -> None:
    """A recipe without ``build`` would test old code."""
    (project / "pyproject.toml").write_text("")
    (project / "dist").mkdir()
    wheel = project / "dist" / "shop-1-py3-none-any.whl"
    wheel.write_text("")
    said: list[str] = []
    plain = recipe(build=None, sources=[], artifact="dist/*.whl")
    artifact_build.warn_if_stale(plain, project, said.append)
    assert said == []
    os.utime(wheel, (1, 1))
    artifact_build.warn_if_stale(plain, project, said.append)
    assert "is older than" in said[0]
