"""What the shop's acceptance tests share."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from pytest_ephemeral import Environment, environment_fixture

#: A shop before its first product, fresh for every test that asks for it.
empty_shop = environment_fixture("staging-empty", scope="function")


def pytest_configure() -> None:
    """Make a key for this run alone; ephemeral.toml hands it to the shop as ``{env:SHOP_KEY}``."""
    os.environ.setdefault("SHOP_KEY", secrets.token_urlsafe())


def pytest_ephemeral_publish_url(environment: Environment, url: str, config: pytest.Config) -> None:
    """Tell whoever wants to look at the shop, while it is up, where it is."""
    board = Path(config.rootpath) / "dist" / "environments.txt"
    board.parent.mkdir(exist_ok=True)
    with board.open("a") as lines:
        lines.write(f"{environment.created_at:%Y-%m-%d %H:%M:%S}  {environment.id}  {url}\n")


@pytest.fixture(scope="session")
def http() -> Iterator[requests.Session]:
    """Somebody who looks around: no key, no cookies, and straight to the shop, past any proxy."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


@pytest.fixture(scope="session")
def manager() -> Iterator[requests.Session]:
    """Somebody who has the shop's key."""
    with requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = f"Bearer {os.environ['SHOP_KEY']}"
        yield session
