"""Find the environments that the selected tests need, by their fixtures, before they run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final, NamedTuple

import pytest
from _pytest import skipping  # pytest has no other way to ask whether a test will be skipped
from _pytest.unittest import TestCaseFunction

from pytest_ephemeral.broker.protocol import Key, Scope
from pytest_ephemeral.errors import closest
from pytest_ephemeral.pytest_plugin import markers
from pytest_ephemeral.pytest_plugin.fixtures import ATTRIBUTE, Declaration

#: The message for a marker that can't set the template of its test.
UNREACHED: Final = (
    "its ephemeral_env marker can't reach the fixture (pytest parametrizes neither "
    "unittest.TestCase nor request.getfixturevalue): declare a fixture of that template with "
    "pytest_ephemeral.environment_fixture, and use that"
)

TOO_LATE: Final = (
    "its ephemeral_env marker was put on after its fixtures had been chosen, or names several "
    "templates for one parameter: mark the function, its class or its module; or one template in "
    "pytest.param(..., marks=...)"
)

NO_DEFAULT: Final = (
    "it names no template, and there is no default one. Name one by "
    '@pytest.mark.ephemeral_env("NAME"), pytest --ephemeral-template NAME, or default-template in '
    "ephemeral.toml"
)

NO_TEMPLATES: Final = "there are no templates: add a [templates.NAME] table to ephemeral.toml"


class Need(NamedTuple):
    """A test's need of an environment; the template is None for the default one."""

    template: str | None
    scope: Scope
    instance: str


def needs_of(item: pytest.Item) -> list[Need]:
    """The environments that a test's fixtures need, as far as known before it runs."""
    info = getattr(item, "_fixtureinfo", None)
    names = getattr(item, "fixturenames", ())
    definitions = {} if info is None else info.name2fixturedefs
    return [_need(item, *found) for found in _environment_fixtures(names, definitions)]


def late_needs(item: pytest.Item) -> list[Need]:
    """The environments that a test has requested by ``request.getfixturevalue``."""
    request = getattr(item, "_request", None)
    if request is None:
        return []
    names = set(request.fixturenames) - set(getattr(item, "fixturenames", ()))
    manager = item.session._fixturemanager  # noqa: SLF001 - pytest has no other way to ask
    definitions = {name: manager.getfixturedefs(name, item) or () for name in sorted(names)}
    return [_need(item, *found) for found in _environment_fixtures(names, definitions)]


def marker_unreachable(item: pytest.Item) -> str:
    """Why a test's marker can't set the template of its fixtures.

    Returns:
        The reason and advice; empty if it can, or there is no marker.
    """
    marker = markers.nearest(item)
    if marker is None:
        return ""
    try:
        names = markers.templates(marker)
    except markers.MarkerError as error:
        return str(error)
    parameter = _parameter(item)
    if parameter in names or not names:
        return ""
    asks = markers.TEMPLATE_FIXTURE in getattr(item, "fixturenames", ())
    return TOO_LATE if asks and not isinstance(item, TestCaseFunction) else UNREACHED


def asks_late(item: pytest.Item) -> bool:
    """Whether the code of a test requests an environment by ``request.getfixturevalue``."""
    code = getattr(getattr(item, "function", None), "__code__", None)
    if code is None or "getfixturevalue" not in code.co_names:
        return False
    named = [constant for constant in code.co_consts if isinstance(constant, str)]
    manager = item.session._fixturemanager  # noqa: SLF001 - pytest has no other way to ask
    return any(_leads_to_environment(manager, name, item, set()) for name in named)


def _leads_to_environment(manager: Any, name: str, item: pytest.Item, seen: set[str]) -> bool:
    """Whether a fixture, or one that it uses, has an environment of the test's template."""
    if name in seen:
        return False
    seen.add(name)
    for definition in manager.getfixturedefs(name, item) or ():
        declaration = getattr(definition.func, ATTRIBUTE, None)
        if declaration is not None and declaration.template is None:
            return True
        if any(_leads_to_environment(manager, one, item, seen) for one in definition.argnames):
            return True
    return False


def problem(item: pytest.Item, known: Sequence[str], default: str | None) -> str:
    """Why a test can't get the environments that it needs, or empty.

    Args:
        item: A selected test.
        known: The names of all templates.
        default: The default template; None if there is none.
    """
    try:
        markers.rollback(markers.nearest(item))
    except markers.MarkerError as error:
        return f"{item.nodeid}: {error}"
    for name, source in _named(item):
        if known and name not in known:
            return f"{item.nodeid}: {source}: no template {name!r}.{closest(name, known)}"
    unnamed = any(need.template is None for need in needs_of(item))
    if unnamed and (reason := marker_unreachable(item)):
        return f"{item.nodeid}: {reason}"
    if unnamed and default is None:
        return f"{item.nodeid}: {NO_DEFAULT if known else NO_TEMPLATES}"
    return ""


def _named(item: pytest.Item) -> Iterator[tuple[str, str]]:
    """The templates that a test's marker and its fixtures name, each with what names it."""
    if parameter := _parameter(item):
        yield parameter, f"@pytest.mark.{markers.NAME}"
    info = getattr(item, "_fixtureinfo", None)
    names = () if info is None else item.fixturenames  # type: ignore[attr-defined]
    for declaration, definition in _environment_fixtures(names, info and info.name2fixturedefs):
        if declaration.template is not None:
            yield declaration.template, f"the fixture {definition.argname!r}"


def keys(found: Iterable[Need], default: str | None) -> list[Key]:
    """The keys of the environments for some needs, each once."""
    named = (
        Key(need.template or default or "", need.scope, need.instance)
        for need in found
        if need.template or default
    )
    return list(dict.fromkeys(named))


def cannot_run(item: pytest.Item) -> bool:
    """Whether a test is known to be skipped, or not to be run."""
    try:
        if skipping.evaluate_skip_marks(item) is not None:
            return True
        expected = skipping.evaluate_xfail_marks(item)
    except (Exception, pytest.fail.Exception):  # noqa: BLE001 - reported at the test's setup
        return False
    return expected is not None and not expected.run and not item.config.option.runxfail


def _environment_fixtures(
    names: Iterable[str], definitions: Any
) -> Iterator[tuple[Declaration, Any]]:
    """The environment fixtures among the fixtures of a test."""
    for name in names:
        for definition in reversed(definitions.get(name) or ()):
            declaration = getattr(definition.func, ATTRIBUTE, None)
            if declaration is not None:
                yield declaration, definition
            if declaration is not None or name not in definition.argnames:
                break  # the overridden fixture is not used


def _need(item: pytest.Item, declaration: Declaration, definition: Any) -> Need:
    template = declaration.template or _parameter(item)
    return Need(template, declaration.scope, _instance(item, declaration.scope, definition))


def _parameter(item: pytest.Item) -> str | None:
    callspec = getattr(item, "callspec", None)
    template: str | None = callspec and callspec.params.get(markers.TEMPLATE_FIXTURE)
    return template


def _instance(item: pytest.Item, scope: Scope, definition: Any) -> str:
    """The id of the node that the fixture's ``request.node`` will be."""
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
