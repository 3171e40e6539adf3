"""What a reader may rely on: short files and functions, one class for each name, verbs."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from unit.test_imports import ROOT

TESTS = Path(__file__).parents[1]

LONGEST_FILE = 350
LONGEST_FUNCTION = 40

#: Words that end as participles do, and are verbs or nouns.
VERBS = {"bring", "embed", "exceed", "feed", "need", "ping", "proceed", "put", "seed", "succeed"}
IRREGULAR = {"bound", "given", "held", "known", "left", "made", "said", "seen", "sent", "shown"}
IRREGULAR |= {"built", "found", "kept", "lent", "looked", "taken", "told", "written"}
NOUNS = {"missing", "passed", "pending", "matching", "running", "shared"}  # of what follows them


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
    """No module has more lines than a reader keeps in mind, and no file of tests has."""
    files = [*ROOT.rglob("*.py"), *TESTS.rglob("*.py")]
    lengths = {str(path): len(path.read_text().splitlines()) for path in files}
    assert {path: lines for path, lines in lengths.items() if lines > LONGEST_FILE} == {}


def test_names_of_test_modules_are_unique() -> None:
    """pytest collects no two modules of one name, where their folders are no packages."""
    named = defaultdict(list)
    for path in sorted(TESTS.rglob("test_*.py")):
        if not (path.parent / "__init__.py").exists():
            named[path.name].append(str(path.relative_to(TESTS)))
    assert [paths for paths in named.values() if len(paths) > 1] == []


def test_functions_fit_on_a_screen() -> None:
    """No function is longer than a screen, its docstring included."""
    long = {
        f"{path}: {node.name}": lines
        for path, tree in all_trees()
        for node in functions(tree)
        if node.end_lineno and (lines := node.end_lineno - node.lineno + 1) > LONGEST_FUNCTION
    }
    assert long == {}


def test_class_names_are_unique() -> None:
    """A name that is read in one module means the same class in every other."""
    places = defaultdict(list)
    for path, tree in trees():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name.lstrip("_")].append(str(path))
    assert {name: found for name, found in places.items() if len(found) > 1} == {}


def test_public_functions_are_named_by_verbs() -> None:
    """No public function or method is named by a participle: it says what it does."""
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
