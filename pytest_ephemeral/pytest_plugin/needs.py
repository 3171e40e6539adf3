"""What the selected tests need: read off their fixtures before the first of them runs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import pytest

from pytest_ephemeral.errors import closest
from pytest_ephemeral.pytest_plugin import markers
from pytest_ephemeral.pytest_plugin.fixtures import ATTRIBUTE, Scope, Spec

#: What is asked for by a marker that can't reach the test.
UNREACHED: Final = (
    "its ephemeral_env marker can't reach the fixture (pytest parametrizes neither "
    "unittest.TestCase nor request.getfixturevalue): declare a fixture of that template with "
    "pytest_ephemeral.environment_fixture, and use that"
)

NO_TEMPLATE: Final = (
    "it names no template, and there is no default one: pytest --ephemeral-template NAME, "
    "default-template in ephemeral.toml, or the marker ephemeral_env"
)


class Key(NamedTuple):
    """Which environment: fixtures of the same template, scope and instance share one.

    Attributes:
        template: The template's name.
        scope: How long it serves.
        instance: The node it serves (a module, a test); empty for the session.
    """

    template: str
    scope: Scope
    instance: str


class Wish(NamedTuple):
    """That a test uses an environment; its template is None where only the default can tell."""

    template: str | None
    scope: Scope
    instance: str


def wishes(item: pytest.Item) -> list[Wish]:
    """The environments that a test's fixtures ask for, as far as that is known beforehand."""
    info = getattr(item, "_fixtureinfo", None)
    names = getattr(item, "fixturenames", ())
    definitions = {} if info is None else info.name2fixturedefs
    return [_wish(item, *found) for found in _lending(names, definitions)]


def late_wishes(item: pytest.Item) -> list[Wish]:
    """The environments that a test has got by ``request.getfixturevalue``."""
    request = getattr(item, "_request", None)
    if request is None:
        return []
    names = set(request.fixturenames) - set(getattr(item, "fixturenames", ()))
    manager = item.session._fixturemanager  # noqa: SLF001 - pytest has no other way to ask
    definitions = {name: manager.getfixturedefs(name, item) or () for name in sorted(names)}
    return [_wish(item, *found) for found in _lending(names, definitions)]


def asks_in_vain(item: pytest.Item) -> bool:
    """Whether the test's marker names templates that pytest can't hand to its fixtures."""
    marked = item.get_closest_marker(markers.NAME) is not None
    return marked and _parameter(item) is None


def problem(item: pytest.Item, known: Sequence[str], default: str | None) -> str:
    """Why a test can't get the environments it asks for; empty when it can.

    Args:
        item: A selected test.
        known: The templates there are.
        default: The one of tests that name none; None when that can't be told.
    """
    named = [_parameter(item), *(wish.template for wish in wishes(item))]
    for name in named:
        if name is not None and known and name not in known:
            return f"{item.nodeid}: no template {name!r}.{closest(name, known)}"
    unnamed = any(wish.template is None for wish in wishes(item))
    if unnamed and asks_in_vain(item):
        return f"{item.nodeid}: {UNREACHED}"
    if unnamed and default is None:
        return f"{item.nodeid}: {NO_TEMPLATE}"
    return ""


def keys(found: Iterable[Wish], default: str | None) -> list[Key]:
    """The environments of some wishes, each once."""
    named = (
        Key(wish.template or default or "", wish.scope, wish.instance)
        for wish in found
        if wish.template or default
    )
    return list(dict.fromkeys(named))


def is_skipped(item: pytest.Item) -> bool:
    """Whether it is known already that the test will be skipped."""
    if item.get_closest_marker("skip") is not None:
        return True
    return any(
        condition is True for mark in item.iter_markers("skipif") for condition in mark.args[:1]
    )


def _lending(names: Iterable[str], definitions: Any) -> Iterator[tuple[Spec, Any]]:
    """The fixtures that lend an environment, among those of a test."""
    for name in names:
        for definition in reversed(definitions.get(name) or ()):
            spec = getattr(definition.func, ATTRIBUTE, None)
            if spec is not None:
                yield spec, definition
            if spec is not None or name not in definition.argnames:
                break  # what it overrides is not used


def _wish(item: pytest.Item, spec: Spec, definition: Any) -> Wish:
    template = spec.template or _parameter(item)
    return Wish(template, spec.scope, _instance(item, spec.scope, definition))


def _parameter(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    template: str | None = callspec and callspec.params.get(markers.TEMPLATE_FIXTURE)
    return template


def _instance(item: pytest.Item, scope: Scope, definition: Any) -> str:
    """The id of the node that ``request.node`` will be in the fixture."""
    node: pytest.Item | pytest.Collector | None = None
    if scope == "function":
        node = item
    elif scope == "class":
        node = item.getparent(pytest.Class) or item
    elif scope == "module":
        node = item.getparent(pytest.Module)
    elif scope == "package":
        packages = (one for one in item.listchain() if isinstance(one, pytest.Package))
        node = next((one for one in packages if one.nodeid == definition.baseid), None)
    return "" if node is None else node.nodeid
