"""The commands, configurations and links of the pages work."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final
from xml.etree import ElementTree as ET

import pytest

from examples.walkthrough import ROOT, Walk, blocks
from pytest_ephemeral import config

DOCS = ROOT / "docs"
SVG: Final = "{http://www.w3.org/2000/svg}"
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *(ROOT / "examples").glob("*/README.md"),
    *(page for page in sorted(DOCS.rglob("*.md")) if "_build" not in page.parts),
]

#: A TOML block with such a table is a configuration.
SHOWS_ONE = re.compile(r"^\[(images|templates)\.", re.MULTILINE)


@pytest.fixture
def walk(tmp_path: Path) -> Iterator[Walk]:
    """A reader in an empty folder; environments that are left are destroyed in the end."""
    folder = tmp_path / "here"
    folder.mkdir()
    walk = Walk(folder, tmp_path / "machine")
    yield walk
    if walk.left():
        walk.run("pytest-ephemeral down --all")


@pytest.mark.parametrize(
    "page",
    [
        ROOT / "README.md",
        DOCS / "tutorial" / "first-environment.md",
        DOCS / "how-to" / "migrate" / "popen.md",
    ],
    ids=lambda page: page.stem,
)
def test_all_commands_of_a_page_work(page: Path, walk: Walk) -> None:
    """Every file is written and every command run as shown, and no environment is left."""
    walk.follow(page)
    assert any(command.startswith("pytest --ephemeral-env") for command in walk.seen)
    assert walk.left() == []


def configurations() -> Iterator[Any]:
    """Every block of the pages that is a configuration with images or templates."""
    for page in PAGES:
        for number, block in enumerate(blocks(page)):
            if block.language == "toml" and SHOWS_ONE.search(block.text):
                yield pytest.param(block.text, id=f"{page.stem}-{number}")


@pytest.mark.parametrize("text", list(configurations()))
def test_documented_configurations_are_valid(text: str, tmp_path: Path) -> None:
    """No page shows an unknown key, or a template of a missing image."""
    file = tmp_path / "ephemeral.toml"
    file.write_text(text)
    read = config.load(file)
    assert read.images or read.templates


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_are_valid(page: Path) -> None:
    """Every relative link leads to a file of the project, and to a heading in it."""
    for target in re.findall(r"\]\((?!https?://|mailto:)([^)\s]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), f"{page.name} links to {target}"
        if heading:
            assert heading in headings(file), f"{page.name} links to {target}"


def headings(page: Path) -> set[str]:
    """A page's headings as links spell them."""
    found = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", text.lower()).replace(" ", "-") for text in found}


def test_the_index_lists_all_pages() -> None:
    """A page outside the table of contents could not be found."""
    index = (DOCS / "index.md").read_text().split()
    pages = {str(p.relative_to(DOCS).with_suffix("")) for p in PAGES if p.is_relative_to(DOCS)}
    assert pages - {"index"} <= set(index)


def test_the_terminal_cast_shows_the_readme_example(tmp_path: Path) -> None:
    """It is drawn from real runs of the README's files: one passes, and one fails."""
    spec = importlib.util.spec_from_file_location("cast", ROOT / "docs" / "images" / "cast.py")
    assert spec is not None
    assert spec.loader is not None
    cast = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(cast)
    (tmp_path / "project").mkdir()
    frames = cast.record(tmp_path / "project")
    lines = [line for _, line, _ in frames]
    assert [line for line in lines if " passed in " in line or " failed in " in line]
    assert [at for at, _, _ in frames] == sorted(at for at, _, _ in frames)
    for drawn in (cast.draw(frames), (ROOT / "docs" / "images" / "first-run.svg").read_text()):
        texts = [text.text or "" for text in ET.fromstring(drawn).iter(f"{SVG}text")]
        assert texts.count("$ pytest --ephemeral-env") == 2
        for part in ("1 passed in", "1 failed in", "its log during this test:", "run it again:"):
            assert sum(part in text for text in texts) == 1, part
