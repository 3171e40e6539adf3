"""pytest-base-url's ``base_url`` (Playwright's and Selenium's too) is the environment's URL.

pytest-base-url verifies the URL in an autouse session fixture, so that every test would need an
environment. This module is registered as a plugin after it, so that its fixtures stand in for
those, and only tests that use ``base_url`` need one.
"""

from __future__ import annotations

from typing import Final

import pytest

#: What registers that fixture: pytest-base-url; and pytest-playwright from 0.10 on, without it.
PLUGINS: Final = ("base_url", "playwright-base-url")


def applies(config: pytest.Config) -> bool:
    """Whether there is a ``base_url`` that the user has left open."""
    if not any(map(config.pluginmanager.hasplugin, PLUGINS)):
        return False
    return not (config.getoption("base_url") or config.getini("base_url"))


@pytest.fixture(scope="session")
def base_url(ephemeral_url: str) -> str:
    """The URL of ``ephemeral_env``."""
    return ephemeral_url


@pytest.fixture(scope="session", autouse=True)
def _verify_url() -> None:
    """Nothing to verify: an environment is lent when it has answered."""
