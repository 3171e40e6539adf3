"""The house style: short files and functions, unique class names, verbs as function names."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from unit.test_imports import ROOT

TESTS = Path(__file__).parents[1]

LONGEST_FILE = 350
LONGEST_FUNCTION = 40

#: Verbs that end like participles.
VERBS = {"bring", "embed", "exceed", "feed", "need", "ping", "proceed", "put", "seed", "succeed"}
IRREGULAR = {"bound", "given", "held", "known", "left", "made", "said", "seen", "sent", "shown"}
IRREGULAR |= {"built", "found", "kept", "lent", "looked", "taken", "told", "written"}
NOUNS = {"missing", "passed", "pending", "matching", "running", "shared"}  # before a noun


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """Every module of the package."""
    for path in sorted(ROOT.rglob("*.py")):
        yield path.relative_to(ROOT), ast.parse(path.read_text())


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef]:
    """All functions and methods of a module, those within functions too."""
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def all_trees() -> Iterator[tuple[Path, ast.Module]]:
    """Every module of the package and of the tests."""
    yield from trees()
    for path in sorted(TESTS.rglob("*.py")):
        yield path.relative_to(TESTS.parent), ast.parse(path.read_text())


def test_files_are_short() -> None:
    """The limit is the same for the package and the tests."""
    files = [*ROOT.rglob("*.py"), *TESTS.rglob("*.py")]
    lengths = {str(path): len(path.read_text().splitlines()) for path in files}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_names_of_test_modules_are_unique() -> None:
    """pytest can't collect two modules of one name from folders without ``__init__.py``."""
    named = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        if not (path.parent / "__init__.py").exists():
            named[path.name].append(str(path.relative_to(TESTS)))
    assert [paths for paths in named.values() if len(paths) > 1] == []


def test_functions_fit_on_a_screen() -> None:
    """The docstring counts, too."""
    long = {
        f"{path}: {node.name}": lines
        for path, tree in all_trees()
        for node in functions(tree)
        if node.end_lineno and (lines := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert long == {}


def test_class_names_are_unique() -> None:
    """A class name means the same class in every module."""
    places = defaultdict(list)
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(str(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_public_functions_are_named_by_verbs() -> None:
    """A participle does not say what a function does."""
    named = {
        f"{path}: {node.name}"
        for path, tree in trees()
        for node in functions(tree)
        if not node.name.startswith("_") and _is_participle(node)
    }
    assert named == set()


def _is_participle(node: ast.FunctionDef) -> bool:
    first, *rest = node.name.split("_")
    if any(ast.unparse(one).endswith("property") for one in node.decorator_list):
        return False
    if first in VERBS or (first in NOUNS and rest):
        return False
    return first in IRREGULAR or first.endswith(("ed", "ing"))
