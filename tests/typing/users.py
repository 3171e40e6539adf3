"""A user's conftest.py and tests, fully annotated."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from subprocess import CompletedProcess

import msgspec
import pytest
import requests

import pytest_ephemeral
from pytest_ephemeral import (
    Endpoint,
    Environment,
    EphemeralError,
    Template,
    environment_fixture,
)

shop = environment_fixture("staging", scope="module")
anything = environment_fixture()


def pytest_ephemeral_publish_url(environment: Environment, url: str) -> None:
    """A hook may leave out some of its arguments."""
    print(environment.id, url)


def pytest_ephemeral_modify_template(template: Template) -> Template | None:
    """A template is changed by making a new one."""
    return msgspec.structs.replace(template, env={**template.env, "LANGUAGE": "de"})


@pytest.fixture
def admin_url(shop: Environment) -> str:
    """A fixture that uses an environment fixture."""
    return shop.url_for("admin", "/login")


def test_an_environment_has_typed_attributes(
    ephemeral_env: Environment, ephemeral_url: str
) -> None:
    """Attributes and methods have their documented types."""
    endpoints: Mapping[str, Endpoint] = ephemeral_env.endpoints
    first: Endpoint = endpoints["http"]
    host: str = first.host
    port: int = first.port
    expires_at: datetime | None = ephemeral_env.expires_at
    text: str = ephemeral_env.logs()
    done: CompletedProcess[str] = ephemeral_env.run(["ls", "-l"], timeout=5)
    version: str = pytest_ephemeral.__version__
    print(host, port, expires_at, text, done.stdout, version, ephemeral_url)


def test_ephemeral_http_is_a_requests_session(ephemeral_http: requests.Session) -> None:
    """The responses have the types of requests."""
    answer: requests.Response = ephemeral_http.get("/basket", timeout=5)
    print(answer.status_code)


def test_errors_are_caught_by_their_base_class(ephemeral_env: Environment) -> None:
    """``EphemeralError`` has an exit status."""
    try:
        ephemeral_env.url_for("nothing")
    except EphemeralError as error:
        status: int = error.exit_status
        assert status
