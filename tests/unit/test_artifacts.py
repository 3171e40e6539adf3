"""The artifact repository: content by digest, one meaning for every version."""

from pathlib import Path

import pytest

from pytest_ephemeral.artifacts import open_repository
from pytest_ephemeral.artifacts.directory import DirectoryRepository
from pytest_ephemeral.artifacts.naming import name_and_version
from pytest_ephemeral.errors import ArtifactError, ConfigurationError

WHEEL = "shop-1.4.2-py3-none-any.whl"


@pytest.fixture
def repository(tmp_path: Path) -> DirectoryRepository:
    return DirectoryRepository(tmp_path / "repository")


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
def test_the_filename_says_name_and_version(filename, said):
    """Wheels, sdists, and anything else by its stem and digest."""
    assert name_and_version(Path(filename), "sha256:0123456789abcdef") == said


def test_the_same_bytes_twice_are_one_entry(repository, tmp_path):
    """The second push gives the first one's entry back."""
    first = repository.push(built(tmp_path / "a"))
    assert repository.push(built(tmp_path / "b")) == first
    assert repository.entries() == [first]
    assert (first.name, first.version, first.filename, first.size) == ("shop", "1.4.2", WHEEL, 5)


def test_a_version_never_changes_its_meaning(repository, tmp_path):
    """Other bytes under the same name and version are refused, naming both digests."""
    kept = repository.push(built(tmp_path / "a"))
    with pytest.raises(ArtifactError, match="already stands for") as caught:
        repository.push(built(tmp_path / "b", content=b"other"))
    assert kept.digest in str(caught.value)
    assert str(caught.value).count("sha256:") == 2
    assert repository.entries() == [kept]


def test_name_and_version_can_be_given(repository, tmp_path):
    """For files whose names say nothing; what can't be a name is refused."""
    artifact = repository.push(built(tmp_path, "out.bin"), name="shop", version="2.0")
    assert repository.find("shop@2.0", tmp_path) == artifact
    with pytest.raises(ArtifactError, match="can't be an artifact's name"):
        repository.push(built(tmp_path), name="../shop")


def test_fetching_gives_the_file_under_its_own_name(repository, tmp_path):
    """pip goes by it."""
    file = repository.fetch(repository.push(built(tmp_path)))
    assert file.name == WHEEL
    assert file.read_bytes() == b"wheel"


def test_a_changed_file_is_refused_by_name(repository, tmp_path):
    """Naming the artifact, the file, and both digests."""
    artifact = repository.push(built(tmp_path))
    file = repository.fetch(artifact)
    file.write_bytes(b"wheeL")
    with pytest.raises(ArtifactError, match=r"shop@1\.4\.2 is no longer what was pushed") as caught:
        repository.fetch(artifact)
    assert str(file) in str(caught.value)
    file.unlink()
    with pytest.raises(ArtifactError, match="artifact push"):
        repository.fetch(artifact)


def test_a_glob_finds_and_pushes_its_one_match(repository, tmp_path):
    """Relative to the root; copies of the same bytes are one match."""
    built(tmp_path / "dist")
    built(tmp_path / "dist", "shop-1.4.2-1-py3-none-any.whl")
    artifact = repository.find("dist/shop-*.whl", tmp_path)
    assert repository.entries() == [artifact]
    assert repository.find(str(tmp_path / "dist" / "*.whl"), Path("/")) == artifact


def test_a_glob_with_several_matches_is_refused(repository, tmp_path):
    """All are named; none is guessed."""
    built(tmp_path / "dist")
    built(tmp_path / "dist", "shop-1.5.0-py3-none-any.whl", b"newer")
    with pytest.raises(ArtifactError, match="2 different files") as caught:
        repository.find("dist/*.whl", tmp_path)
    assert WHEEL in str(caught.value)
    assert "shop-1.5.0" in str(caught.value)
    assert repository.entries() == []


def test_building_again_needs_no_new_version(repository, tmp_path):
    """A glob's match whose version is taken gets a local version, and the published one stays."""
    published = repository.push(built(tmp_path / "dist"))
    again = built(tmp_path / "dist", content=b"built again")
    local = repository.find("dist/*.whl", tmp_path)
    assert local.version == f"1.4.2+{local.digest[7:19]}"
    assert repository.fetch(local).read_bytes() == again.read_bytes()
    assert repository.find("shop@1.4.2", tmp_path) == published
    assert repository.find("dist/*.whl", tmp_path) == local


def test_a_glob_without_a_match_says_what_is_there(repository, tmp_path):
    """What was looked for, what the folder holds, and what to run."""
    built(tmp_path / "dist", "README.txt")
    with pytest.raises(ArtifactError, match=r"README\.txt.*python -m build"):
        repository.find("dist/shop-*.whl", tmp_path)
    with pytest.raises(ArtifactError, match="there is no folder"):
        repository.find("nowhere/shop-*.whl", tmp_path)


def test_an_unknown_version_names_the_closest(repository, tmp_path):
    """What was meant is one character away."""
    repository.push(built(tmp_path))
    with pytest.raises(ArtifactError, match=r"Did you mean 'shop@1\.4\.2'"):
        repository.find("shop@1.4.3", tmp_path)


def test_the_beginning_of_a_digest_is_enough(repository, tmp_path):
    """As long as it is one artifact's only."""
    artifact = repository.push(built(tmp_path))
    assert repository.find(artifact.digest[:14], tmp_path) == artifact
    repository.push(built(tmp_path, "other", b"other"))
    with pytest.raises(ArtifactError, match="several artifacts"):
        repository.find("sha256:", tmp_path)
    with pytest.raises(ArtifactError, match="artifact list"):
        repository.find("sha256:nope", tmp_path)


def test_a_broken_entry_is_named(repository, tmp_path):
    """And what to do about it."""
    repository.push(built(tmp_path))
    entry = tmp_path / "repository/entries/shop/1.4.2.json"
    entry.write_text("{")
    with pytest.raises(ArtifactError, match=r"1\.4\.2\.json can't be read"):
        repository.find("shop@1.4.2", tmp_path)


def test_only_folders_are_repositories_so_far(tmp_path):
    """Another kind of URL is a configuration error."""
    assert open_repository("artifacts", tmp_path).url == str(tmp_path / "artifacts")
    with pytest.raises(ConfigurationError, match="ftp://x"):
        open_repository("ftp://x", tmp_path)
