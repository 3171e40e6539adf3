"""Which environment a test used, in the reports of others: JUnit XML, pytest-html, Allure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_ephemeral import urls

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment

_LINKED = pytest.StashKey[set[str]]()


def properties(environment: Environment) -> list[tuple[str, object]]:
    """What JUnit XML says of an environment, as properties of the test case."""
    found = [
        ("ephemeral_environment", environment.id),
        ("ephemeral_template", environment.template),
        ("ephemeral_image", " ".join(image.key for image in environment.images)),
        ("ephemeral_url", urls.hide_password(environment.url)),
    ]
    return [(name, value) for name, value in found if value]


def add(item: pytest.Item, report: pytest.TestReport, used: Iterable[Environment]) -> None:
    """Tell which environments a test used, each of them once.

    Reports travel from xdist's workers to the controller, and carry all of it with them; JUnit XML
    is written from the last one of each test.

    Args:
        item: The test, between two of its phases.
        report: Of the phase that has just ended.
        used: What it has been lent so far.
    """
    linked = item.stash.setdefault(_LINKED, set())
    for environment in used:
        if environment.id in linked:
            continue
        linked.add(environment.id)
        item.user_properties.extend(properties(environment))
        report.user_properties.extend(properties(environment))
        if environment.url:
            _link(item.config, report, environment)


def _link(config: pytest.Config, report: pytest.TestReport, environment: Environment) -> None:
    url = urls.hide_password(environment.url)
    if config.pluginmanager.hasplugin("html"):
        extras = config.pluginmanager.getplugin("html").extras
        known = getattr(report, "extras", [])
        report.extras = [*known, extras.url(url, name=environment.id)]  # type: ignore[attr-defined]
    if config.pluginmanager.hasplugin("allure_listener"):
        import allure

        dynamic: Any = allure.dynamic  # it has no annotations
        dynamic.link(url, name=environment.id)
