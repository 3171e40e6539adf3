"""The HTTP artifact repository, with servers that behave differently or fail."""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path

import pytest

from pytest_ephemeral.artifacts import http as http_repository
from pytest_ephemeral.artifacts import open_repository
from pytest_ephemeral.artifacts.http import HttpRepository
from pytest_ephemeral.errors import (
    ArtifactError,
    ConfigurationError,
    StoreError,
    UnavailableError,
    UnlistedError,
)
from stores import http_server
from stores.http_server import Files

WHEEL = "shop-1.4.2-py3-none-any.whl"
BASIC = "Basic YW5uYTpnZWhlaW0="  # anna:geheim


@pytest.fixture
def repository(http: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HttpRepository:
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(http_repository, "_BACKOFF", 0.01)
    return HttpRepository(f"{http.url}/builds")


def build_file(folder: Path, content: bytes = b"wheel" * 1000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / WHEEL
    file.write_bytes(content)
    return file


def entries(http: Files) -> list[str]:
    """The entries that a server holds."""
    return [path for path in http.content if "/entries/" in path]


def blob(http: Files) -> str:
    """The one blob that a server holds."""
    (path,) = [path for path in http.content if "/blobs/" in path]
    return path


def test_the_server_has_blobs_digests_and_entries(repository, http, tmp_path):
    """The layout is that of a folder, with one more file by which the digest is found."""
    digest = repository.push(build_file(tmp_path)).digest.removeprefix("sha256:")
    assert sorted(http.content) == [
        f"/builds/blobs/sha256/{digest}/{WHEEL}",
        f"/builds/digests/{digest}.json",
        "/builds/entries/shop/1.4.2.json",
    ]


def test_listing_is_unsupported_over_http(repository, tmp_path):
    """The errors say so, and name a full digest or name@version as alternatives."""
    artifact = repository.push(build_file(tmp_path))
    with pytest.raises(UnlistedError, match=r"has no list.*name@version"):
        repository.entries()
    with pytest.raises(ArtifactError, match=r"all 64 digits, or name@version"):
        repository.find(artifact.digest[:20], tmp_path)


# -- immutable versions ------------------------------------------------------------------------


@pytest.mark.parametrize("conditions", [True, False])
@pytest.mark.parametrize("overwriting", [True, False])
def test_a_version_is_immutable(repository, http, tmp_path, conditions, overwriting):
    """This holds for servers with and without conditions, and with and without overwriting."""
    http.conditions, http.overwriting = conditions, overwriting
    kept = repository.push(build_file(tmp_path / "a"))
    assert repository.push(build_file(tmp_path / "b")) == kept
    with pytest.raises(ArtifactError, match="is already"):
        repository.push(build_file(tmp_path / "c", b"other"))
    assert repository.find("shop@1.4.2", tmp_path) == kept
    assert repository.fetch(kept).read_bytes() == b"wheel" * 1000


@pytest.mark.parametrize("overwriting", [True, False])
def test_a_concurrent_push_wins(repository, http, tmp_path, monkeypatch, overwriting):
    """The server supports conditions, or it forbids overwriting."""
    http.overwriting, http.conditions = overwriting, overwriting
    faster = HttpRepository(repository.url)
    put = http_repository.HttpBlobStore._put

    def later(blobs, path, *arguments):
        if blobs is repository._blobs and path.startswith("entries/"):
            faster.push(build_file(tmp_path / "faster", b"faster"))
        return put(blobs, path, *arguments)

    monkeypatch.setattr(http_repository.HttpBlobStore, "_put", later)
    with pytest.raises(ArtifactError, match="is already"):
        repository.push(build_file(tmp_path / "slower", b"slower"))
    assert faster.fetch(faster.find("shop@1.4.2", tmp_path)).read_bytes() == b"faster"


def test_a_repeated_push_uploads_nothing(repository, http, tmp_path):
    """Every test run pushes the match of its glob."""
    repository.push(build_file(tmp_path))
    http.seen.clear()
    repository.push(build_file(tmp_path))
    entry = "/builds/entries/shop/1.4.2.json"
    assert http.seen == [f"HEAD {entry}", f"HEAD {blob(http)}", f"GET {entry}"]


# -- faults ------------------------------------------------------------------------------------


@pytest.mark.parametrize("counting", [True, False])
def test_an_incomplete_upload_is_detected_and_repaired(repository, http, tmp_path, counting):
    """The push fails without an entry, and the next push repairs the blob."""
    http.counting = counting
    http.faults.append(("PUT", "/blobs/", "cut"))
    with pytest.raises(StoreError, match="arrived incomplete"):
        repository.push(build_file(tmp_path))
    assert entries(http) == []
    assert repository.fetch(repository.push(build_file(tmp_path))).read_bytes() == b"wheel" * 1000


@pytest.mark.parametrize("counting", [True, False])
def test_a_blob_with_other_bytes_is_replaced(repository, http, tmp_path, counting):
    """An existing blob is used only if its digest matches."""
    http.counting = counting
    repository.push(build_file(tmp_path))
    place = blob(http)
    http.content = {place: b"wheeL" * 1000}
    repository.push(build_file(tmp_path))
    assert http.content[place] == b"wheel" * 1000


def test_a_push_restores_a_missing_blob(repository, http, tmp_path):
    """The error has the command that uploads it again."""
    artifact = repository.push(build_file(tmp_path))
    del http.content[blob(http)]
    with pytest.raises(ArtifactError, match=r"is gone.*artifact push"):
        repository.fetch(artifact)
    repository.push(build_file(tmp_path))
    assert repository.fetch(artifact).read_bytes() == b"wheel" * 1000


def test_a_changed_blob_is_refused(repository, http, tmp_path):
    """The error has the artifact and both digests, and no copy is left."""
    artifact = repository.push(build_file(tmp_path))
    http.content[blob(http)] = b"wheeL" * 1000
    with pytest.raises(ArtifactError, match=r"shop@1\.4\.2 .* no longer what was pushed") as caught:
        repository.fetch(artifact)
    assert str(caught.value).count("sha256:") == 2
    assert not list((tmp_path / "state").rglob("*.whl"))


def test_an_interrupted_download_is_restarted(repository, http, tmp_path):
    """The whole file is fetched, and no partial copy is left."""
    artifact = repository.push(build_file(tmp_path))
    http.faults += [("GET", "/blobs/", "cut")] * 2
    assert repository.fetch(artifact).read_bytes() == b"wheel" * 1000
    copies = tmp_path / "state" / "artifacts"
    assert [path.name for path in copies.rglob("*") if path.is_file()] == [WHEEL]


def test_an_upload_with_a_lost_response_succeeds(repository, http, tmp_path):
    """The repeated upload is refused, and the server's content is found to match."""
    http.faults += [("PUT", "/blobs/", "lost"), ("PUT", "/entries/", "lost")]
    artifact = repository.push(build_file(tmp_path))
    assert repository.fetch(artifact).read_bytes() == b"wheel" * 1000


def test_requests_to_a_busy_server_are_retried(repository, http, tmp_path):
    """After a few attempts, the error has the server's status."""
    http.faults += [("PUT", "/blobs/", "503"), ("GET", "/entries/", "502")]
    repository.push(build_file(tmp_path))
    http.faults += [("GET", "/entries/", "503")] * 4
    with pytest.raises(StoreError, match=r"answered 503 Service Unavailable"):
        repository.find("shop@1.4.2", tmp_path)


def test_an_unreachable_server_is_named(tmp_path, monkeypatch):
    """The error has its URL."""
    monkeypatch.setattr(http_repository, "_BACKOFF", 0.01)
    repository = HttpRepository("http://127.0.0.1:9/builds")
    with pytest.raises(StoreError, match=r"http://127\.0\.0\.1:9/builds can't be reached"):
        repository.find("shop@1.4.2", tmp_path)


def test_a_refusal_of_the_server_is_reported(repository, http, tmp_path):
    """Here the server forbids overwriting an incomplete upload."""
    http.overwriting = False
    file = build_file(tmp_path)
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    http.content[f"/builds/blobs/sha256/{digest}/{WHEEL}"] = b"half"
    with pytest.raises(StoreError, match=r"403 Forbidden.*no overwriting here"):
        repository.push(file)


def test_an_upload_does_not_follow_a_redirect(repository, http, tmp_path):
    """A followed PUT becomes a GET; the error has the target without its signature."""
    http.faults.append(("PUT", "/blobs/", "307"))
    http.location = "https://elsewhere.test/builds?signature=secret"
    with pytest.raises(StoreError, match=r"moved to https://elsewhere\.test/builds") as caught:
        repository.push(build_file(tmp_path))
    assert "secret" not in str(caught.value)


# -- credentials -------------------------------------------------------------------------------


def test_user_and_password_come_from_variables(repository, http, tmp_path, monkeypatch):
    """Every request has them."""
    http.authorization = BASIC
    monkeypatch.setenv("PYTEST_EPHEMERAL_REPOSITORY_USER", "anna")
    monkeypatch.setenv("PYTEST_EPHEMERAL_REPOSITORY_PASSWORD", "geheim")
    assert repository.fetch(repository.push(build_file(tmp_path))).name == WHEEL
    assert set(http.sent) == {BASIC}


def test_a_token_comes_from_a_variable(repository, http, tmp_path, monkeypatch):
    """The token takes precedence over a netrc file."""
    http.authorization = "Bearer t0ken"
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login anna password geheim\n")
    monkeypatch.setenv("PYTEST_EPHEMERAL_REPOSITORY_TOKEN", "t0ken")
    repository.push(build_file(tmp_path))
    assert set(http.sent) == {"Bearer t0ken"}


def test_credentials_come_from_netrc_otherwise(repository, http, tmp_path):
    """They are found by the server's host name."""
    http.authorization = BASIC
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login anna password geheim\n")
    repository.push(build_file(tmp_path))
    assert entries(http)


def test_missing_credentials_are_reported(repository, http, tmp_path):
    """The error names the variables and the netrc file, and nothing is uploaded."""
    http.authorization = BASIC
    with pytest.raises(UnavailableError, match=r"401.*REPOSITORY_USER.*_TOKEN.*netrc"):
        repository.push(build_file(tmp_path))
    assert http.content == {}


def test_a_user_without_a_password_is_an_error(repository, tmp_path, monkeypatch):
    """The error names the missing variable."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_REPOSITORY_USER", "anna")
    with pytest.raises(UnavailableError, match="PASSWORD is not"):
        repository.push(build_file(tmp_path))


def test_wrong_credentials_are_not_shown(repository, http, tmp_path, monkeypatch, caplog):
    """They are neither in the error, nor in what libraries log at level DEBUG."""
    caplog.set_level(logging.DEBUG)
    http.authorization = "Basic other"
    monkeypatch.setenv("PYTEST_EPHEMERAL_REPOSITORY_USER", "anna")
    monkeypatch.setenv("PYTEST_EPHEMERAL_REPOSITORY_PASSWORD", "geheim")
    with pytest.raises(UnavailableError) as caught:
        repository.push(build_file(tmp_path))
    for said in (str(caught.value), repr(caught.value.__cause__), caplog.text):
        assert "geheim" not in said
        assert BASIC not in said


def test_credentials_are_not_sent_to_a_redirect_target(repository, http, tmp_path, monkeypatch):
    """A download may be redirected to another server, such as a cloud's storage."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_REPOSITORY_TOKEN", "t0ken")
    artifact = repository.push(build_file(tmp_path))
    with http_server.serving() as elsewhere:
        elsewhere.content = {f"{blob(http)}?signature=secret": http.content[blob(http)]}
        http.faults.append(("GET", "/blobs/", "307"))
        http.location = f"{elsewhere.url}{blob(http)}?signature=secret"
        assert repository.fetch(artifact).read_bytes() == b"wheel" * 1000
        assert elsewhere.sent == [None]


@pytest.mark.parametrize("user", ["anna:geheim@", "anna@"])
def test_credentials_in_the_url_are_refused(tmp_path, user):
    """They would be visible there; the error does not repeat the password."""
    with pytest.raises(ConfigurationError, match="REPOSITORY_PASSWORD") as caught:
        open_repository(f"https://{user}nexus.test/builds", tmp_path)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://", "https:///x", "https://host/x?y", "https://host/#x"])
def test_an_invalid_url_is_a_configuration_error(tmp_path, url):
    """The error shows the form of a valid URL."""
    with pytest.raises(ConfigurationError, match="https://HOST/PATH"):
        open_repository(url, tmp_path)
