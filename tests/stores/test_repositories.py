"""Tests that artifact repositories of every kind must pass."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_ephemeral.artifacts import open_repository
from pytest_ephemeral.errors import ArtifactError
from support import victims

WHEEL = "shop-1.4.2-py3-none-any.whl"


def built(folder: Path, name: str = WHEEL, content: bytes = b"wheel") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_bytes(content)
    return file


def test_pushing_the_same_content_twice_makes_one_entry(repository, tmp_path):
    """The second push returns the entry of the first one."""
    first = repository.push(built(tmp_path / "a"))
    assert repository.push(built(tmp_path / "b")) == first
    assert repository.find("shop@1.4.2", tmp_path) == first
    assert (first.name, first.version, first.filename, first.size) == ("shop", "1.4.2", WHEEL, 5)


def test_a_version_is_immutable(repository, tmp_path):
    """Other bytes under the same name and version are refused, naming both digests."""
    kept = repository.push(built(tmp_path / "a"))
    with pytest.raises(ArtifactError, match="is already") as caught:
        repository.push(built(tmp_path / "b", content=b"other"))
    assert kept.digest in str(caught.value)
    assert str(caught.value).count("sha256:") == 2
    assert repository.find("shop@1.4.2", tmp_path) == kept
    assert repository.fetch(kept).read_bytes() == b"wheel"


def test_name_and_version_can_be_given(repository, tmp_path):
    """Some file names have neither; an invalid name is refused."""
    artifact = repository.push(built(tmp_path, "out.bin"), name="shop", version="2.0")
    assert repository.find("shop@2.0", tmp_path) == artifact
    with pytest.raises(ArtifactError, match="is not a valid artifact name"):
        repository.push(built(tmp_path), name="../shop")


def test_a_glob_finds_and_pushes_its_one_match(repository, tmp_path):
    """The glob is relative to the root; copies of the same bytes are one match."""
    built(tmp_path / "dist")
    built(tmp_path / "dist", "shop-1.4.2-1-py3-none-any.whl")
    artifact = repository.find("dist/shop-*.whl", tmp_path)
    assert repository.find("shop@1.4.2", tmp_path) == artifact
    assert repository.find(str(tmp_path / "dist" / "*.whl"), Path("/")) == artifact


def test_a_glob_with_several_matches_is_refused(repository, tmp_path):
    """The error names all matches, and none is pushed."""
    built(tmp_path / "dist")
    built(tmp_path / "dist", "shop-1.5.0-py3-none-any.whl", b"newer")
    with pytest.raises(ArtifactError, match="2 different files") as caught:
        repository.find("dist/*.whl", tmp_path)
    assert WHEEL in str(caught.value)
    assert "shop-1.5.0" in str(caught.value)
    with pytest.raises(ArtifactError, match="no artifact"):
        repository.find("shop@1.5.0", tmp_path)


def test_a_rebuilt_version_gets_a_local_version(repository, tmp_path):
    """A match with other bytes gets a local version, and the published version stays."""
    published = repository.push(built(tmp_path / "dist"))
    again = built(tmp_path / "dist", content=b"built again")
    local = repository.find("dist/*.whl", tmp_path)
    assert local.version == f"1.4.2+{local.digest[7:19]}"
    assert repository.fetch(local).read_bytes() == again.read_bytes()
    assert repository.find("shop@1.4.2", tmp_path) == published
    assert repository.find("dist/*.whl", tmp_path) == local


def test_a_glob_without_a_match_lists_the_folder(repository, tmp_path):
    """The error also suggests a build command, or says that the folder does not exist."""
    built(tmp_path / "dist", "README.txt")
    with pytest.raises(ArtifactError, match=r"README\.txt.*python -m build"):
        repository.find("dist/shop-*.whl", tmp_path)
    with pytest.raises(ArtifactError, match="does not exist"):
        repository.find("nowhere/shop-*.whl", tmp_path)


def test_an_unknown_version_is_an_error(repository, tmp_path):
    """The error has the command that pushes it."""
    repository.push(built(tmp_path))
    with pytest.raises(ArtifactError, match=r"no artifact shop@1\.4\.3.*artifact push"):
        repository.find("shop@1.4.3", tmp_path)


def test_a_digest_finds_its_artifact(repository, tmp_path):
    """The name and the version are not needed."""
    artifact = repository.push(built(tmp_path))
    repository.push(built(tmp_path, "other", b"other"))
    assert repository.find(artifact.digest, tmp_path) == artifact
    with pytest.raises(ArtifactError, match="no artifact sha256:0000"):
        repository.find(f"sha256:{'0' * 64}", tmp_path)


@pytest.mark.parametrize("size", [0, 20 << 20], ids=["nothing", "large"])
def test_files_of_any_size_are_stored_unchanged(repository, tmp_path, size):
    """They keep their bytes and their file names, which pip needs."""
    content = bytes(range(256)) * (size // 256)
    artifact = repository.push(built(tmp_path, content=content))
    assert artifact.size == size
    file = repository.fetch(artifact)
    assert (file.name, file.read_bytes()) == (WHEEL, content)


def test_filenames_may_have_url_special_characters(repository, tmp_path):
    """The name has a space, a percent sign, a plus, a hash and a question mark."""
    name = "shop 100%+x#1?.bin"
    artifact = repository.push(built(tmp_path, name), name="shop", version="1.0+local")
    assert repository.find("shop@1.0+local", tmp_path) == artifact
    assert repository.fetch(artifact).name == name


def test_the_url_opens_the_repository_from_any_folder(repository, tmp_path):
    """Opened by its URL, it has what was pushed before."""
    artifact = repository.push(built(tmp_path))
    again = open_repository(repository.url, Path("/"))
    assert again.url == repository.url
    assert again.find("shop@1.4.2", tmp_path) == artifact


def test_one_of_many_concurrent_pushes_decides(repository, tmp_path):
    """Of eight pushes by several processes, one is kept, and all others get an error."""
    with victims.pool(4) as pool:
        told = pool.starmap(_push_file, [(repository.url, tmp_path / str(n), n) for n in range(8)])
    assert [text for text in told if "is already" not in text] == ["kept"]
    kept = repository.find("shop@1.4.2", tmp_path)
    assert repository.fetch(kept).read_bytes() == f"wheel {told.index('kept')}".encode()


# -- repositories with a listing --------------------------------------------------------------


def test_artifacts_are_listed_by_name_and_time(listing, tmp_path):
    """They are sorted by name, and then by the time of their push."""
    second = listing.push(built(tmp_path, "shop-2.0.tar.gz"))
    first = listing.push(built(tmp_path, "shop-1.0.tar.gz"))
    other = listing.push(built(tmp_path, "other-1.0.tar.gz"))
    assert listing.entries() == [other, second, first]


def test_an_unknown_version_is_reported_with_a_suggestion(listing, tmp_path):
    """The suggestion differs in one character."""
    listing.push(built(tmp_path))
    with pytest.raises(ArtifactError, match=r"Did you mean 'shop@1\.4\.2'"):
        listing.find("shop@1.4.3", tmp_path)


def test_a_unique_digest_prefix_finds_its_artifact(listing, tmp_path):
    """A prefix of several artifacts, or of none, is an error."""
    artifact = listing.push(built(tmp_path))
    assert listing.find(artifact.digest[:14], tmp_path) == artifact
    listing.push(built(tmp_path, "other", b"other"))
    with pytest.raises(ArtifactError, match="several artifacts"):
        listing.find("sha256:", tmp_path)
    with pytest.raises(ArtifactError, match="artifact list"):
        listing.find("sha256:nope", tmp_path)


def _push_file(url: str, folder: Path, number: int) -> str:
    try:
        open_repository(url, Path("/")).push(built(folder, content=f"wheel {number}".encode()))
    except ArtifactError as error:
        return str(error)
    return "kept"
