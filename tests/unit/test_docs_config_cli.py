"""Every configuration key and every option has an entry on its reference page."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_ephemeral import cli, schema

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
CONFIGURATION = (REFERENCE / "configuration.md").read_text()
COMMAND_LINE = (REFERENCE / "command-line.md").read_text()

#: The heading of each configuration table. Those of other providers are on any reference page.
SECTIONS = {
    "": "## Top level",
    "Artifacts": "## `[artifacts]`",
    "LocalRecipe": "## `[images.NAME]`",
    "LocalTemplate": "## `[templates.NAME]`",
    "Ready": "### `ready`",
    "Promotion": "## `[promotion.NAME]`",
    "Webhook": "## `[[webhook]]`",
}


def section(page: str, heading: str) -> str:
    """The text under a heading, up to the next heading of any level."""
    _, found, rest = page.partition(f"\n{heading}\n")
    assert found, f"no section {heading!r}"
    return re.split(r"^#+ ", rest, maxsplit=1, flags=re.MULTILINE)[0]


def keys() -> Iterator[tuple[str, str]]:
    """The keys of every table, with the table's name."""
    document = schema.schema()
    for name, table in {"": document, **document["$defs"]}.items():
        yield from ((name, key) for key in table["properties"])


@pytest.mark.parametrize(("table", "key"), list(keys()))
def test_every_key_is_documented(table: str, key: str) -> None:
    """Each has a row in the reference table."""
    heading = SECTIONS.get(table)
    pages = "".join(page.read_text() for page in REFERENCE.glob("*.md"))
    place = pages if heading is None else section(CONFIGURATION, heading)
    assert f"\n| `{key}` |" in place


def test_every_documented_key_exists() -> None:
    """A removed key must be removed from the page, too."""
    known = {(table, key) for table, key in keys()}
    for table, heading in SECTIONS.items():
        for key in re.findall(r"^\| `([a-z-]+)` \|", section(CONFIGURATION, heading), re.MULTILINE):
            assert (table, key) in known


def commands(
    parser: argparse.ArgumentParser, name: str = ""
) -> Iterator[tuple[str, argparse.ArgumentParser]]:
    """Every command with its parser; nested ones are named like ``images prune``."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for word, inner in action.choices.items():
                yield f"{name} {word}".strip(), inner
                yield from commands(inner, f"{name} {word}".strip())


PARSER = cli.build_parser()
SHARED = {option for action in PARSER._actions for option in action.option_strings}


@pytest.mark.parametrize(
    ("name", "parser"), [pytest.param(*one, id=one[0]) for one in commands(PARSER)]
)
def test_every_command_and_option_is_documented(name: str, parser: argparse.ArgumentParser) -> None:
    """Options are under their command's heading, except for the global ones."""
    if name == "artifact":
        return  # it only has subcommands
    place = section(COMMAND_LINE, f"## `{name}`")
    own = {option for action in parser._actions for option in action.option_strings} - SHARED
    for option in own:
        assert f"`{option}" in place


def test_global_options_are_documented() -> None:
    """They are documented once, in a section of their own."""
    place = section(COMMAND_LINE, "## Global options")
    for option in SHARED:
        assert f"`{option}" in place


def test_every_documented_command_exists() -> None:
    """A removed or renamed command must not stay on the page."""
    headings = set(re.findall(r"^## `(.+)`$", COMMAND_LINE, re.MULTILINE))
    assert headings == {name for name, _ in commands(PARSER)} - {"artifact"}


@pytest.mark.parametrize("name", [name for name, _ in commands(PARSER)])
def test_every_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The help has more lines than the usage alone."""
    assert cli.main([*name.split(), "--help"]) == 0
    assert len(capsys.readouterr().out.splitlines()) > 5
