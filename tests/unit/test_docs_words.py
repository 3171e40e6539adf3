"""The documentation uses one word for each thing, and its tables match the code."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_ephemeral import errors
from unit.test_imports import LAYERS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
GLOSSARY = (DOCS / "reference" / "glossary.md").read_text()
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    ROOT / "examples" / "shop" / "README.md",
    *sorted(page for page in DOCS.rglob("*.md") if "_build" not in page.parts),
]

#: Excluded words in other projects' own names.
ALLOWED = r"dns[ -]backends?|rollout undo"

#: The endings of inflected words: checksums, registries, sandboxed, catalogues.
ENDINGS = r"(?:e?s|e?d|ing|'s)?"

#: The first parts of words that are also written as two.
SPLIT = {
    word: word[:cut]
    for word, cut in (
        ("backend", 4),
        ("blueprint", 4),
        ("checksum", 5),
        ("cutover", 3),
        ("fingerprint", 6),
        ("rollout", 4),
        ("sandbox", 4),
    )
}

#: Excluded phrases, each with the plain form to write instead.
PHRASES = {
    r"\btear(s|ing)? (them |it |all )*down\b|\btorn down\b": "destroy, clean up",
    r"\bfor certain\b": "always",
    r"\b(a person's|somebody's) yes\b": "manual approval",
    r"\btalk goes to\b": "progress goes to",
    r"\bverbs?\b(?! for functions)": "command",
    r"\bhas a twin\b": "can also be set as",
    r"\bon \w+ whole\b": "fully supported on",
    r"\bmap of the house\b": "architecture",
    r"\bsigns? of life\b": "heartbeat",
    r"\bgoes? on with\b": "continue",
    r"\bfor want of\b": "without, for lack of",
    r"\bhears? of\b": "receives",
    r"\bis none (for|of|there)\b": "is not a …, is missing",
    r"\b(is|are|have|has) it not\b": "does not list it",
    r"\bnothing is to be\b": "… is forbidden",
    r"\bwhatever there is\b": "an unknown …",
    r"\bthis user may not\b": "permission denied",
    r"\bis the beginning of\b": "matches",
    r"\b(speaks?|has|have) no more of\b": "no longer has",
    r"\b(is|are) told of\b": "receives",
}


def terms() -> Iterator[tuple[str, str]]:
    """Every word that the glossary excludes, with the correct term."""
    rows = re.findall(r"^\| ([a-z ]+) \| .+ \|(.*)\|$", GLOSSARY, re.MULTILINE)
    for term, others in rows[1:]:
        for other in filter(None, (word.strip() for word in others.split(","))):
            yield other, term


def pattern(word: str) -> str:
    """A pattern for a word in all forms, as one word or two, also across a line end."""
    parts = re.split(r"[ -]", word.lower())
    *first, last = (re.escape(part) for part in parts)
    last = rf"(?:{last[:-1]}ies|{last})" if last.endswith("y") else last
    if word in SPLIT:
        first, last = [SPLIT[word]], last.removeprefix(SPLIT[word])
    return r"\b" + r"[\s-]*".join([*first, last]) + ENDINGS + r"\b"


def prose(page: Path) -> str:
    """A page's text without code, and without the glossary's table of excluded words."""
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL)
    if page.name == "glossary.md":
        text = re.sub(r"^\|.*\|$", "", text, flags=re.MULTILINE)
    return text.lower()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_no_excluded_words(page: Path) -> None:
    """The glossary has one term for each thing."""
    assert len(list(terms())) > 5
    text = re.sub(ALLOWED, "", prose(page))
    for other, term in terms():
        assert not re.search(pattern(other), text), f"{other!r}: write {term!r}"


@pytest.mark.parametrize(
    "sibling",
    [
        *("image\nregistries", "image-registry", "back-end", "back ends", "check-sums"),
        *("finger prints", "garbage-collection", "blue-print", "artefacts", "sandboxed"),
        *("time-to-live", "roll-out", "cut-over", "content\nhashes", "catalogues", "drivers"),
    ],
)
def test_inflected_forms_of_words_are_excluded(sibling: str) -> None:
    """Plurals, hyphens and line ends do not hide a word."""
    assert any(re.search(pattern(other), f"every {sibling} here") for other, _ in terms())


@pytest.mark.parametrize("word", ["drives", "manifestation", "keys", "back", "a driveway", "hash"])
def test_similar_words_are_not_excluded(word: str) -> None:
    """Words that only begin in the same way are allowed."""
    assert not any(re.search(pattern(other), f"every {word} here") for other, _ in terms())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages_use_no_excluded_phrases(page: Path) -> None:
    """A reader should understand every sentence at once."""
    if page.name in {"leaks.md", "aws.md", "providers-aws.md", "providers-containers.md"}:
        return
    for phrase, plain in PHRASES.items():
        assert not re.search(phrase, prose(page)), f"{phrase}: write {plain!r}"


def messages() -> Iterator[tuple[str, str]]:
    """The package's strings of three or more words, without docstrings, with their places."""
    for file in sorted((ROOT / "pytest_ephemeral").rglob("*.py")):
        tree = ast.parse(file.read_text())
        docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
        for node in ast.walk(tree):
            text = node.value if isinstance(node, ast.Constant) else None
            if isinstance(text, str) and id(node) not in docs and len(text.split()) >= 3:
                yield f"{file.name}:{node.lineno}", text.lower()


def test_messages_use_no_excluded_phrases() -> None:
    """Errors, help and progress are read more often than the pages."""
    found = list(messages())
    assert len(found) > 1000
    for place, text in found:
        for phrase, plain in PHRASES.items():
            assert not re.search(phrase, text), f"{place}: {text!r}: write {plain!r}"


def test_glossary_terms_are_unique_and_sorted() -> None:
    """Readers look terms up by eye."""
    found = re.findall(r"^\| ([a-z ]+) \|", GLOSSARY, re.MULTILINE)[1:]
    assert found == sorted(set(found))


def test_the_documented_layers_match_the_import_test() -> None:
    """architecture.md shows LAYERS, module by module."""
    page = (DOCS / "explanation" / "architecture.md").read_text()
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", page, re.MULTILINE)
    assert [int(number) for number, _ in rows] == list(range(1, len(LAYERS) + 1))
    assert [sorted(re.findall(r"`([\w.]+)`", modules)) for _, modules in rows] == [
        sorted(layer) for layer in LAYERS
    ]


def test_paths_in_contributing_exist() -> None:
    """The table "to change … go to …" must not name a removed file or folder."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    section = page.partition("## To change")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (?!to change|---)(.+?) \| (.+) \|$", section, re.MULTILINE)
    assert len(rows) >= 12
    for _, place in rows:
        for path in re.findall(r"`([a-z_/.]+(?:\.py|/))`", place):
            assert (ROOT / "pytest_ephemeral" / path).exists(), path


def test_every_error_is_on_the_troubleshooting_page() -> None:
    """Every error class has a row with cause and cure, and there are no other rows."""
    page = (DOCS / "reference" / "troubleshooting.md").read_text().partition("## By error")[2]
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| (.+?) \|$", page, re.MULTILINE)
    known = {
        name
        for name, one in vars(errors).items()
        if isinstance(one, type) and issubclass(one, errors.EphemeralError)
    }
    assert {name for name, _, _ in rows} == known - {"EphemeralError"}
    assert all(cause.strip() and cure.strip() for _, cause, cure in rows)


def test_every_environment_variable_is_documented() -> None:
    """These are our own variables, and those of other tools that we read."""
    page = (DOCS / "reference" / "environment-variables.md").read_text()
    publishers = (DOCS / "reference" / "publishers.md").read_text()
    read = set()
    for file in (ROOT / "pytest_ephemeral").rglob("*.py"):
        read |= set(re.findall(r"environ(?:\.get\(|\[)\"([A-Z_]+)\"", file.read_text()))
    internal = {"SHELL", "STATE", "XDG_RUNTIME_DIR", "GREETING"}  # GREETING: of the test kit
    ci = {name for name in read if name.startswith(("CI_", "GITHUB_", "BITBUCKET_", "BASH_"))}
    for name in read - internal - ci:
        assert name in page or name in publishers, name


def test_the_compatibility_page_matches_the_package_metadata() -> None:
    """The page has the versions of Python and pytest that the package requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    page = (DOCS / "reference" / "compatibility.md").read_text()
    python = project["requires-python"].removeprefix(">=")
    assert f"| Python | {python} or newer |" in page
    (pytest_bound,) = (one for one in project["dependencies"] if one.startswith("pytest>="))
    assert f"| pytest | {pytest_bound.removeprefix('pytest>=')} or newer |" in page
