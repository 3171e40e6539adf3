"""Stores and repositories of every kind, for tests that all of them must pass."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_ephemeral import aws
from pytest_ephemeral.artifacts import Repository, open_repository
from pytest_ephemeral.store import Store, open_store
from stores import http_server
from stores.http_server import Files
from stores.s3_server import Server, serving


@pytest.fixture(scope="session")
def s3_server() -> Iterator[Server]:
    """An S3 server for all tests of a process."""
    with serving() as server:
        yield server


@pytest.fixture
def s3(s3_server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Server:
    """The S3 server, set in the variables of this process and its children."""
    for name, value in {
        "AWS_ENDPOINT_URL": s3_server.url,
        "AWS_ACCESS_KEY_ID": "AKIATEST",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_CONFIG_FILE": str(tmp_path / "no-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "no-credentials"),
        "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(name, value)
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    return s3_server


@pytest.fixture
def bucket(s3: Server) -> str:
    """The name of a new bucket for this test."""
    name = f"test-{secrets.token_hex(8)}"
    aws.client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture(params=["directory", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A store of each kind."""
    if request.param == "directory":
        return open_store("store", tmp_path)
    return open_store(f"s3://{request.getfixturevalue('bucket')}/team/shop", tmp_path)


@pytest.fixture
def http(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Files]:
    """An HTTP server that stores files, without credentials."""
    for name in ("USER", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"PYTEST_EPHEMERAL_REPOSITORY_{name}", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with http_server.serving() as files:
        yield files


@pytest.fixture(params=["directory", "s3", "http"])
def repository(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    """An artifact repository of each kind."""
    return _repository(request, tmp_path)


@pytest.fixture(params=["directory", "s3"])
def listing(request: pytest.FixtureRequest, tmp_path: Path) -> Repository:
    """An artifact repository of each kind that can list its artifacts."""
    return _repository(request, tmp_path)


def _repository(request: pytest.FixtureRequest, folder: Path) -> Repository:
    state = str(folder / "state")
    request.getfixturevalue("monkeypatch").setenv("PYTEST_EPHEMERAL_STATE", state)
    match request.param:
        case "s3":
            url = f"s3://{request.getfixturevalue('bucket')}/artifacts"
        case "http":
            url = f"{request.getfixturevalue('http').url}/builds/shop"
        case _:
            url = "artifacts"
    return open_repository(url, folder)
