"""Set pytest-base-url's ``base_url`` (also of Playwright and Selenium) to the environment's URL.

pytest-base-url verifies the URL in an autouse session fixture, so every test would need an
environment. This module is registered as a plugin after it, and its fixtures override those. So
only tests that use ``base_url`` need an environment.
"""

from __future__ import annotations

from typing import Final

import pytest

#: The plugins that register the fixture: pytest-base-url, and pytest-playwright 0.10 and newer.
PLUGINS: Final = ("base_url", "playwright-base-url")


def applies(config: pytest.Config) -> bool:
    """Whether there is a ``base_url`` fixture, and the user has not set a URL."""
    if not any(map(config.pluginmanager.hasplugin, PLUGINS)):
        return False
    return not (config.getoption("base_url") or config.getini("base_url"))


@pytest.fixture(scope="session")
def base_url(ephemeral_url: str) -> str:
    """The URL of ``ephemeral_env``."""
    return ephemeral_url


@pytest.fixture(scope="session", autouse=True)
def _verify_url() -> None:
    """Override pytest-base-url's check: an environment has answered before it is lent."""
