"""``build`` and ``sources`` of a recipe: build the artifact when its sources have changed."""

from __future__ import annotations

import collections
import hashlib
import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from pytest_ephemeral import files
from pytest_ephemeral.artifacts.folder import content
from pytest_ephemeral.artifacts.naming import find_files
from pytest_ephemeral.errors import BakeError, ConfigurationError
from pytest_ephemeral.tables import Recipe

#: The folder with the records of the last builds, in the configuration's folder.
FOLDER: Final = ".ephemeral/builds"

_LINES: Final = 20

#: Output folders of builds. They have no sources.
_OUTPUTS: Final = frozenset({"dist", "build"})
#: The suffixes of a wheel's sources, for recipes without ``build``.
_PYTHON: Final = frozenset({".py", ".toml", ".cfg"})


def build_if_changed(
    recipe: Recipe, root: Path, say: Callable[[str], None], live: Callable[[str], None]
) -> None:
    """Run a recipe's ``build`` if its sources have changed, or its artifact is missing.

    Builds of one project run one after the other, because most of them write to the same folders.
    After waiting for another process, the sources are compared again.

    Args:
        recipe: The recipe. Without ``build``, nothing happens.
        root: The configuration's folder, in which the command runs with this process's variables.
        say: Receives progress.
        live: Receives each line of the command's output.

    Raises:
        BakeError: The command failed.
        ConfigurationError: No file matches ``sources``.
    """
    if recipe.build is None or recipe.artifact is None:
        return
    digest = _digest(recipe, root)
    if _is_built(recipe, root, digest):
        return
    (root / FOLDER).mkdir(parents=True, exist_ok=True)
    with files.hold_lock(root / FOLDER / "lock", lambda: say("waiting for another build here")):
        if not _is_built(recipe, root, digest):
            say(f"building {recipe.artifact}: {recipe.build}")
            _build(recipe, root, digest, live)


def _is_built(recipe: Recipe, root: Path, digest: str) -> bool:
    last = _read(recipe, root)
    return last.get("sources") == digest and (root / last.get("file", "")).is_file()


def _build(recipe: Recipe, root: Path, digest: str, live: Callable[[str], None]) -> None:
    _run(recipe, root, live)
    built = find_files(recipe.artifact or "", root)
    if not built:
        raise BakeError(
            f"the build command of the image {recipe.name!r} made no file that matches "
            f"{recipe.artifact!r}: `{recipe.build}`"
        )
    newest = max(built, key=lambda file: file.stat().st_mtime_ns)
    stamp = {"sources": digest, "file": str(newest.relative_to(root))}
    files.replace(_stamp(recipe, root), [json.dumps(stamp).encode()])


def find_built(recipe: Recipe, root: Path) -> str | None:
    """The recipe's artifact: the file that the last build made, or else its pattern."""
    last = _read(recipe, root).get("file", "") if recipe.build is not None else ""
    return last if last and (root / last).is_file() else recipe.artifact


def warn_if_stale(recipe: Recipe, root: Path, say: Callable[[str], None]) -> None:
    """Warn if a wheel is older than the project's sources, and the recipe has no ``build``."""
    if recipe.build is not None or not (recipe.artifact or "").endswith(".whl"):
        return
    for wheel in find_files(recipe.artifact or "", root):
        project = wheel.parent.parent if wheel.parent.name in _OUTPUTS else root
        if not (project / "pyproject.toml").exists() and not (project / "setup.py").exists():
            continue
        built = wheel.stat().st_mtime
        for file in _sources(project):
            if file.suffix in _PYTHON and file.name != "ephemeral.toml":
                if "tests" in file.parts or file.lstat().st_mtime <= built:
                    continue
                say(
                    f"warning: {wheel.name} is older than {file.relative_to(root)}: build it "
                    "again, or let `build` and `sources` in its recipe do that"
                )
                return


def _run(recipe: Recipe, root: Path, live: Callable[[str], None]) -> None:
    last: collections.deque[str] = collections.deque(maxlen=_LINES)
    with subprocess.Popen(
        ["/bin/sh", "-ec", recipe.build or ""],
        cwd=root,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    ) as process:
        for line in process.stdout or ():
            last.append(line.rstrip())
            live(line.rstrip())
    if process.returncode != 0:
        output = "".join(f"\n  {line}" for line in last)
        raise BakeError(
            f"the build command of the image {recipe.name!r} exited with {process.returncode}: "
            f"`{recipe.build}`{output}"
        )


def _digest(recipe: Recipe, root: Path) -> str:
    """One digest over the command and the content of all sources."""
    total = hashlib.sha256((recipe.build or "").encode())
    ours = set(find_files(recipe.artifact or "", root))
    found = False
    for pattern in recipe.sources:
        for source in sorted(root.glob(pattern)) if pattern != "." else [root]:
            for file in _sources(source) if source.is_dir() else [source]:
                if file in ours or file.name == "ephemeral.toml":
                    continue
                found = True
                total.update(f"{file.relative_to(root)}\0".encode())
                link = file.is_symlink()
                content = str(file.readlink()) if link else files.digest_of(files.chunks(file))
                total.update(content.encode())
    if not found:
        raise ConfigurationError(
            f"images.{recipe.name}.sources: nothing in {root} matches {', '.join(recipe.sources)}"
        )
    return total.hexdigest()


def _sources(folder: Path) -> Iterator[Path]:
    for file in content(folder):
        parts = file.relative_to(folder).parts
        if not any(part in _OUTPUTS or part.endswith(".egg-info") for part in parts[:-1]):
            yield file


def _stamp(recipe: Recipe, root: Path) -> Path:
    return root / FOLDER / f"{recipe.name}.json"


def _read(recipe: Recipe, root: Path) -> dict[str, str]:
    """The last build: its file, and the digest of its sources."""
    try:
        found = json.loads(_stamp(recipe, root).read_bytes())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
