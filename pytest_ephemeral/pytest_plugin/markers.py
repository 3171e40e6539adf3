"""The marker ``ephemeral_env``, and the parametrization of tests with it.

The templates are parameters of one internal session fixture, so that pytest itself orders tests by
template. With one template, the test's id is unchanged (pytest's ``HIDDEN_PARAM``); with several,
the template's name is part of the id.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import pytest
from _pytest.scope import Scope

NAME: Final = "ephemeral_env"
LINE: Final = (
    "ephemeral_env(*templates, rollback=None): the environment templates that a test runs "
    "against; the nearest marker wins, several templates parametrize the test; rollback is 'each' "
    "or 'failed': the environment is put back to how it was when it was ready, before every test, "
    "or after a failed one"
)

#: The internal fixture whose parameter is the test's template.
TEMPLATE_FIXTURE: Final = "_ephemeral_template"

#: The errors in markers, which are reported after collection.
PROBLEMS: Final = pytest.StashKey[list[str]]()


class MarkerError(Exception):
    """A marker is not valid."""


def parametrize(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test with the templates that its marker names."""
    marker = nearest(metafunc.definition)
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
    if names and TEMPLATE_FIXTURE in metafunc.fixturenames and (on or len(names) > 1):
        metafunc.parametrize(
            TEMPLATE_FIXTURE,
            names,
            indirect=True,
            scope="session",
            ids=names if len(names) > 1 else [pytest.HIDDEN_PARAM],
        )


def nearest(node: pytest.Item) -> pytest.Mark | None:
    """The nearest marker of a test: of its parameter, function, class or module, in this order.

    A class's own marker comes before its base's; ``get_closest_marker`` would return the base's
    (pytest#14329).
    """
    for at in reversed(node.listchain()):
        own = [mark for mark in at.own_markers if mark.name == NAME]
        if len(own) > 1 and isinstance(at, pytest.Class):
            own = [mark for mark in _in_order_of_resolution(at.obj) if mark in own] or own
        if own:
            callspec = getattr(at, "callspec", None)
            of_parameter = [mark for mark in own if callspec and mark in callspec.marks]
            return (of_parameter or own)[0]
    return None


def _in_order_of_resolution(kind: type) -> Iterator[pytest.Mark]:
    for one in kind.__mro__:
        found = one.__dict__.get("pytestmark", [])
        for mark in found if isinstance(found, list) else [found]:
            yield mark if isinstance(mark, pytest.Mark) else mark.mark


def choose(item: pytest.Item) -> None:
    """Set the template of a test from the marker of its parameter, if that has one."""
    callspec = getattr(item, "callspec", None)
    if callspec is None or TEMPLATE_FIXTURE not in getattr(item, "fixturenames", ()):
        return
    marker = next((mark for mark in callspec.marks if mark.name == NAME), None)
    if marker is None:
        return
    try:
        names = templates(marker)
    except MarkerError as error:
        item.config.stash.setdefault(PROBLEMS, []).append(f"{item.nodeid}: {error}")
        return
    if len(names) == 1:
        callspec.params[TEMPLATE_FIXTURE] = names[0]
        callspec.indices[TEMPLATE_FIXTURE] = 0
        callspec._arg2scope[TEMPLATE_FIXTURE] = Scope.Session  # noqa: SLF001 - as parametrize does


def templates(marker: pytest.Mark) -> tuple[str, ...]:
    """The templates that a marker names; none if it only has ``rollback``.

    Raises:
        MarkerError: It names no template, or one twice, or has other arguments.
    """
    names, rollback = _read(marker)
    if not names and rollback is None:
        raise MarkerError(f'@pytest.mark.{NAME}: name a template: {NAME}("staging")')
    for name in names:
        if not isinstance(name, str):
            raise MarkerError(
                f"@pytest.mark.{NAME}: a template's name is a str, not {name!r}: write "
                f'{NAME}("staging"), or {NAME}("staging", "other") for several'
            )
        if names.count(name) > 1:
            raise MarkerError(f"@pytest.mark.{NAME}: it names {name!r} twice")
    return names


def rollback(marker: pytest.Mark | None) -> str | None:
    """The ``rollback`` of a marker; None if it has none.

    Raises:
        MarkerError: The value is not valid.
    """
    when = None if marker is None else _read(marker)[1]
    if when not in (None, "each", "failed"):
        raise MarkerError(
            f'@pytest.mark.{NAME}: rollback is "each" (before every test) or "failed" (after a '
            f"test that failed), not {when!r}"
        )
    return when


def _read(marker: pytest.Mark) -> tuple[tuple[str, ...], str | None]:
    try:
        return _signature(*marker.args, **marker.kwargs)
    except TypeError as error:
        raise MarkerError(
            f'@pytest.mark.{NAME}: {error}. Write {NAME}("TEMPLATE") or '
            f'{NAME}("TEMPLATE", rollback="each")'
        ) from None


def _signature(*templates: str, rollback: str | None = None) -> tuple[tuple[str, ...], str | None]:
    """The marker's signature: Python itself checks the arguments of a call."""
    return templates, rollback


_signature.__name__ = NAME
_signature.__qualname__ = NAME
