"""The marker ``ephemeral_env``, and the tests it parametrizes.

The templates reach the fixtures as parameters of one internal session fixture, so that pytest
itself orders tests by template. One template leaves the test's id as it is (pytest's
``HIDDEN_PARAM``); of several, the template's name is the id.
"""

from __future__ import annotations

from typing import Final

import pytest

NAME: Final = "ephemeral_env"
LINE: Final = (
    "ephemeral_env(*templates): the environment templates that a test runs against; "
    "the nearest marker wins, several templates parametrize the test"
)

#: The internal fixture whose parameter a test's template is.
TEMPLATE_FIXTURE: Final = "_ephemeral_template"

#: What was wrong with markers, told when collection is over.
PROBLEMS: Final = pytest.StashKey[list[str]]()


class MarkerError(Exception):
    """A marker is not written as it should be."""


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Run a test once against each of the templates that its marker names."""
    marker = metafunc.definition.get_closest_marker(NAME)
    if marker is None:
        return
    on = metafunc.config.option.ephemeral_env
    try:
        names = templates(marker)
    except MarkerError as error:
        text = f"{metafunc.definition.nodeid}: {error}"
        if not on:
            raise pytest.Collector.CollectError(text) from None
        metafunc.config.stash.setdefault(PROBLEMS, []).append(text)
        return
    if TEMPLATE_FIXTURE in metafunc.fixturenames and (on or len(names) > 1):
        metafunc.parametrize(
            TEMPLATE_FIXTURE,
            names,
            indirect=True,
            scope="session",
            ids=names if len(names) > 1 else [pytest.HIDDEN_PARAM],
        )


def templates(marker: pytest.Mark) -> tuple[str, ...]:
    """The templates that a marker names.

    Raises:
        MarkerError: It names none, names one twice, or is called in another way.
    """
    try:
        names = _signature(*marker.args, **marker.kwargs)
    except TypeError as error:
        raise MarkerError(f"@pytest.mark.{NAME}: {error}") from None
    if not names:
        raise MarkerError(f'@pytest.mark.{NAME}: name a template: {NAME}("staging")')
    for name in names:
        if not isinstance(name, str):
            raise MarkerError(f"@pytest.mark.{NAME}: a template's name is a str, not {name!r}")
        if names.count(name) > 1:
            raise MarkerError(f"@pytest.mark.{NAME}: it names {name!r} twice")
    return names


def _signature(*templates: str) -> tuple[str, ...]:
    """How the marker is called; Python itself complains of any other way."""
    return templates


_signature.__name__ = NAME
_signature.__qualname__ = NAME
