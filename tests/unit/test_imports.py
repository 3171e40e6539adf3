"""Imports between layers, and the modules that a plain pytest run must not load."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import pytest_ephemeral
from support.processes import run_python

ROOT = Path(pytest_ephemeral.__file__).parent
PACKAGE = "pytest_ephemeral"

#: From the lowest layer up: a module imports from its own layer and lower ones. A package's name
#: includes all of its modules that are not named.
LAYERS = [
    ["errors"],
    ["durations", "masking", "text", "urls"],
    ["models", "tables"],
    [
        "aws",
        "aws_retries",
        "ci",
        "discovery",
        "files",
        "hookspecs",
        "inheritance",
        "interpolation",
        "labels",
        "machine",
        "proxies",
        "reading",
        "template_checks",
    ],
    ["store"],
    ["providers"],
    ["config", "schema", "artifacts", "images", "ledger"],
    ["project"],
    ["environments"],
    ["publishers", "promotion"],
    ["broker"],
    ["pytest_plugin", "cli", "testing"],
]

#: These do not import each other, and no other module imports them.
HOSTS = {"pytest_plugin", "cli", "testing"}

#: The only late import of a higher layer: an environment's methods load its provider when called.
LATE = {("models", "providers")}

EXPENSIVE = ["boto3", "docker", "requests", "rich", "msgspec", "asyncio"]
ONLY_THE_PLUGINS = {"pytest", "_pytest", "xdist"}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module, by its name without the package's."""
    for path in sorted(ROOT.rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(part for part in parts if part != "__init__")
        if name:
            yield name, path


def imported(path: Path) -> Iterator[tuple[str, bool]]:
    """What a module imports, and whether that happens at its own import."""
    tree = ast.parse(path.read_text())
    late = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) or _for_types(node)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node not in late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, path)
            of_ours = module == PACKAGE  # the imported names are modules
            names = [alias.name for alias in node.names] if of_ours else [""]
            yield from ((f"{module}.{name}".strip("."), node not in late) for name in names)


def mentioned(path: Path) -> Iterator[str]:
    """Every module that a module's imports may refer to."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, path)
            submodules = [f"{module}.{alias.name}" for alias in node.names]
            known = [name for name in submodules if (ROOT.parent / _as_path(name)).exists()]
            yield from known if len(known) == len(submodules) else [module, *known]


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    """The absolute name of the module that is imported from."""
    if not node.level:
        return str(node.module)
    folder = path.parents[node.level - 1].relative_to(ROOT.parent)
    return ".".join([*folder.parts, *filter(None, [node.module])])


def _as_path(module: str) -> str:
    return module.replace(".", "/") + ".py"


def _for_types(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def part(name: str) -> str:
    """The most specific name in LAYERS that includes a module."""
    known = {known for names in LAYERS for known in names}
    while name not in known:
        assert "." in name, f"{name} has no place in the house: give it one in LAYERS"
        name = name.rpartition(".")[0]
    return name


def height(name: str) -> int:
    return next(at for at, names in enumerate(LAYERS) if part(name) in names)


@pytest.mark.parametrize(("name", "path"), [pytest.param(*one, id=one[0]) for one in modules()])
def test_imports_never_go_to_a_higher_layer(name: str, path: Path) -> None:
    """Lower layers can be read, tested and used without the higher ones."""
    for module, _ in imported(path):
        if not module.startswith(f"{PACKAGE}."):
            continue
        other = module.removeprefix(f"{PACKAGE}.")
        if part(name) == part(other) or (part(name), part(other)) in LATE:
            continue
        assert height(other) <= height(name), f"{name} imports {other}, which is above it"
        assert part(other) not in HOSTS, f"{name} imports {other}: nothing imports a host"


def test_imports_are_not_circular() -> None:
    """This includes late imports, except for those in LATE."""
    known = {f"{PACKAGE}.{name}": name for name, _ in modules()}
    graph = {
        name: {known[module] for module in mentioned(path) if module in known} - {name}
        for name, path in modules()
    }
    for package, needed in graph.items():  # a package may import its own modules
        needed -= {name for name in needed if name.startswith(f"{package}.")}
    for above, below in LATE:
        graph[above] -= {name for name in graph[above] if part(name) == below}
    while leaves := [name for name, needed in graph.items() if not needed & graph.keys()]:
        for name in leaves:
            del graph[name]
    circle = {name: sorted(needed & graph.keys()) for name, needed in graph.items()}
    assert circle == {}, "what remains is in a circle, or imports one"


@pytest.mark.parametrize(("name", "path"), [pytest.param(*one, id=one[0]) for one in modules()])
def test_only_the_plugin_imports_pytest(name: str, path: Path) -> None:
    """The command line, the watchdog and all providers work without pytest."""
    tops = {module.partition(".")[0] for module, _ in imported(path)}
    assert part(name) in {"pytest_plugin", "testing"} or not tops & ONLY_THE_PLUGINS


@pytest.mark.parametrize(("name", "path"), [pytest.param(*one, id=one[0]) for one in modules()])
def test_large_libraries_are_imported_lazily(name: str, path: Path) -> None:
    """A user of local environments should not wait for boto3, or need it."""
    early = {module.partition(".")[0] for module, now in imported(path) if now}
    assert not early & {"boto3", "botocore", "docker", "requests", "rich"}


def test_the_plugin_loads_no_expensive_module() -> None:
    """pytest loads the plugin in every run on a machine that has it installed."""
    code = (
        "import json, sys, pytest; before = set(sys.modules);"
        "import pytest_ephemeral.pytest_plugin.plugin;"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    loaded = {name.partition(".")[0] for name in json.loads(run_python(code))}
    assert not loaded & set(EXPENSIVE)


def test_a_worker_loads_no_broker_modules() -> None:
    """xdist starts many workers at once, and the imports of each delay the others."""
    code = (
        "import sys, pytest, pytest_ephemeral.pytest_plugin.plugin;"
        "from pytest_ephemeral.pytest_plugin import session, worker;"
        "print(*sys.modules)"
    )
    ours = {"broker", "run", "backend", "entries", "server", "relay"}
    loaded = set(run_python(code).split())
    assert not loaded & {"msgspec", *(f"{PACKAGE}.broker.{name}" for name in ours)}


@pytest.mark.parametrize(("name", "path"), [pytest.param(*one, id=one[0]) for one in modules()])
def test_modules_read_no_environment_variables_at_import(name: str, path: Path) -> None:
    """Such a value is read too early, and a test can't change it."""
    for node in _executed_at_import(ast.parse(path.read_text())):
        if isinstance(node, ast.Attribute):
            assert ast.unparse(node) not in {"os.environ", "os.getenv"}, f"line {node.lineno}"


def _executed_at_import(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes of a module, without the bodies of its functions and of a main program."""
    if isinstance(node, ast.If) and "__name__" in ast.unparse(node.test):
        return
    children = ast.iter_child_nodes(node)
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
        children = iter([node.args, *getattr(node, "decorator_list", [])])
    for child in children:
        yield child
        yield from _executed_at_import(child)
