"""The reference pages of fixtures and hooks match the code completely."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import msgspec
import pytest

import pytest_ephemeral
from pytest_ephemeral import hookspecs
from pytest_ephemeral.models import Environment
from pytest_ephemeral.pytest_plugin import fixtures, markers, options, plugin

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
FIXTURES = (REFERENCE / "fixtures.md").read_text()
HOOKS = (REFERENCE / "hooks.md").read_text()


def rows(heading: str) -> dict[str, list[str]]:
    """The table rows under a heading: the text of the first cell, and the other cells."""
    text = re.split(rf"^## {re.escape(heading)}$", FIXTURES, flags=re.MULTILINE)[1]
    text = re.split(r"^## ", text, maxsplit=1, flags=re.MULTILINE)[0]
    found = re.findall(r"^\| `([^`]+)` \|(.*)\|$", text, re.MULTILINE)
    return {name: [cell.strip() for cell in cells.split("|")] for name, cells in found}


def test_every_option_and_its_ini_key_is_documented():
    """Each row has the option's value, ini key, choices and default."""
    documented = rows("Options")
    expected = {f"--{one.name} {one.metavar}": one for one in options.OPTIONS}
    assert set(documented) == {"--ephemeral-env", *expected}
    for name, option in expected.items():
        meaning, twin, default = documented[name]
        assert twin == (f"`{option.key}`" if option.ini else "")
        assert all(f"`{choice}`" in meaning for choice in option.choices)
        if option.default:
            assert default == f"`{option.default}`"


def test_every_fixture_is_documented():
    """Each row has the scope of the fixture."""
    documented = rows("Fixtures")
    public = {name for name in plugin.__all__ if not name.startswith("_")}
    assert set(documented) == {*public, "base_url"}
    for name in public:
        definition = getattr(plugin, name)
        scope = definition._fixture_function_marker.scope
        assert documented[name][0] == scope


def test_environment_fixture_is_documented():
    """The page has the exact signature and all scopes."""
    declare = pytest_ephemeral.environment_fixture
    parameters = inspect.signature(declare).parameters.values()
    assert [(one.name, one.default) for one in parameters] == [
        ("template", None),
        ("scope", "session"),
        ("name", None),
    ]
    assert 'environment_fixture(template=None, *, scope="session", name=None)' in FIXTURES
    for scope in fixtures.SCOPES:
        assert f"`{scope}`" in FIXTURES


def test_the_marker_is_documented():
    """The page has the signature that ``pytest --markers`` prints."""
    signature = markers.LINE.partition(":")[0]
    assert f"@pytest.mark.{signature}" in FIXTURES


def test_the_environment_class_is_documented():
    """The table has all attributes and methods, and no others."""
    documented = rows("`Environment`")
    methods = {f"{name}" for name, one in vars(Environment).items() if inspect.isfunction(one)} - {
        name for name in vars(Environment) if name.startswith("_")
    }
    attributes = {field.name for field in msgspec.structs.fields(Environment)}
    attributes |= {name for name, one in vars(Environment).items() if isinstance(one, property)}
    attributes -= {"more_images"}  # ``images`` includes them
    assert {name.partition("(")[0] for name in documented} == attributes | methods


@pytest.mark.parametrize("name", [name for name in vars(hookspecs) if name.startswith("pytest_")])
def test_every_hook_is_documented(name):
    """Each hook has a heading and its exact signature."""
    parameters = inspect.signature(getattr(hookspecs, name)).parameters
    assert f"\n## `{name}`\n\n    {name}({', '.join(parameters)})\n" in HOOKS


def test_every_documented_hook_exists():
    """No heading names a hook that does not exist."""
    assert set(re.findall(r"^## `(\w+)`$", HOOKS, re.MULTILINE)) == {
        name for name in vars(hookspecs) if name.startswith("pytest_")
    }


@pytest.mark.parametrize("block", re.findall(r"```python\n(.*?)```", FIXTURES + HOOKS, re.DOTALL))
def test_documented_examples_run(block):
    """Readers copy the examples, so they must run."""
    exec(compile(block, "example", "exec"), {})
