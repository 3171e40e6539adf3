"""Environments: their URLs, and commands in them."""

from __future__ import annotations

import pytest

from pytest_ephemeral.errors import NothingMatchedError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.endpoints import make_endpoints
from support.environments import make_environment


@pytest.fixture
def environment() -> Environment:
    """An environment with two endpoints."""
    return make_environment(endpoints=make_endpoints("127.0.0.1", {"http": 8080, "admin": 8443}))


@pytest.mark.parametrize(
    ("name", "path", "url"),
    [
        ("http", "", "http://127.0.0.1:8080/"),
        ("http", "/", "http://127.0.0.1:8080/"),
        ("http", "/hello", "http://127.0.0.1:8080/hello"),
        ("http", "hello/", "http://127.0.0.1:8080/hello/"),
        ("http", "?q=1", "http://127.0.0.1:8080/?q=1"),
        ("admin", "//x", "https://127.0.0.1:8443/x"),
    ],
)
def test_url_for_joins_endpoint_and_path(
    environment: Environment, name: str, path: str, url: str
) -> None:
    """There is always exactly one slash between them."""
    assert environment.url_for(name, path) == url


@pytest.mark.parametrize("argv", ["ls -l", b"ls"])
def test_run_refuses_a_command_string(environment: Environment, argv: object) -> None:
    """Its characters would be used as arguments."""
    with pytest.raises(TypeError, match=r'run: argv is a list, such as \["ls", "-l"\], not'):
        environment.run(argv)  # type: ignore[arg-type]


def test_an_unknown_endpoint_gets_a_suggestion(environment: Environment) -> None:
    """The message suggests the most similar endpoint."""
    with pytest.raises(NothingMatchedError, match="Did you mean 'http'"):
        environment.url_for("htp", "/x")
