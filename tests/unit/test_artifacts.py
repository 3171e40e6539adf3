"""Names of artifacts, and the folder repository; tests/stores tests all repositories."""

import errno
from pathlib import Path

import pytest

from pytest_ephemeral.artifacts import open_repository
from pytest_ephemeral.artifacts import repository as repositories
from pytest_ephemeral.artifacts.naming import name_and_version
from pytest_ephemeral.artifacts.repository import StoredRepository
from pytest_ephemeral.errors import ArtifactError, ConfigurationError
from pytest_ephemeral.store import open_store

WHEEL = "shop-1.4.2-py3-none-any.whl"


@pytest.fixture
def repository(tmp_path: Path) -> StoredRepository:
    return StoredRepository(open_store("repository", tmp_path))


def built(folder: Path, name: str = WHEEL, content: bytes = b"wheel") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / name
    file.write_bytes(content)
    return file


@pytest.mark.parametrize(
    ("filename", "said"),
    [
        (WHEEL, ("shop", "1.4.2")),
        ("Shop_Web-1.4.2-1-cp311-cp311-linux_x86_64.whl", ("shop-web", "1.4.2")),
        ("shop-1.4.2.tar.gz", ("shop", "1.4.2")),
        ("shop-web-1.4.2+local.zip", ("shop-web", "1.4.2+local")),
        ("shop", ("shop", "0123456789ab")),
        ("shop-linux.tar.gz", ("shop-linux", "0123456789ab")),
    ],
)
def test_name_and_version_come_from_the_filename(filename, said):
    """Other files than wheels and sdists get their stem and their digest."""
    assert name_and_version(Path(filename), "sha256:0123456789abcdef") == said


def test_fetch_refuses_a_changed_artifact(repository, tmp_path, monkeypatch):
    """A verified local copy is still used; without it, the error names the artifact."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    artifact = repository.push(built(tmp_path))
    copy = repository.fetch(artifact)
    (file,) = (tmp_path / "repository" / "blobs").rglob(WHEEL)
    file.write_bytes(b"wheeL")
    assert repository.fetch(artifact).read_bytes() == b"wheel"
    copy.unlink()
    with pytest.raises(ArtifactError, match=r"shop@1\.4\.2 .* no longer what was pushed") as caught:
        repository.fetch(artifact)
    assert file.parent.name in str(caught.value)
    file.unlink()
    with pytest.raises(ArtifactError, match="artifact push"):
        repository.fetch(artifact)


def test_an_unwritable_state_folder_is_reported(repository, tmp_path, monkeypatch):
    """The artifact is not blamed, because it can be read."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", "/proc/nowhere")
    with pytest.raises(ConfigurationError, match="state folder /proc/nowhere can't be written"):
        repository.fetch(repository.push(built(tmp_path)))


def test_a_full_disk_error_mentions_tmpdir(repository, tmp_path, monkeypatch):
    """An upload needs a temporary copy, and TMPDIR can move it to another disk."""

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(repositories.shutil, "copyfile", fail)
    with pytest.raises(ArtifactError, match=r"disk is full.*TMPDIR"):
        repository.push(built(tmp_path))


def test_a_broken_entry_is_reported_by_file(repository, tmp_path):
    """The error names the entry's file."""
    repository.push(built(tmp_path))
    entry = tmp_path / "repository/entries/shop/1.4.2.json"
    entry.write_text("{")
    with pytest.raises(ArtifactError, match=r"1\.4\.2\.json can't be read"):
        repository.find("shop@1.4.2", tmp_path)


def test_unsupported_repository_urls_are_refused(tmp_path):
    """The error lists the supported forms; a relative folder is under the root."""
    assert open_repository("artifacts", tmp_path).url == str(tmp_path / "artifacts")
    with pytest.raises(ConfigurationError, match=r"ftp://x.*s3://bucket/prefix.*https://"):
        open_repository("ftp://x", tmp_path)
