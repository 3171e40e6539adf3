"""Pack a folder as an artifact, reproducibly: the same content gives the same bytes.

Files that version control ignores are left out, and so are caches and virtual environments.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Final

from pytest_ephemeral.errors import ArtifactError

if TYPE_CHECKING:
    import tarfile

    from pathspec import GitIgnoreSpec

#: Ignore files, in the syntax of gitignore.
IGNORE_FILES: Final = (".gitignore", ".ephemeralignore")

#: Folders and files that are never part of an artifact.
_ALWAYS: Final = frozenset(
    {".git", ".hg", ".svn", ".ephemeral", ".venv", "venv", ".tox", ".nox", "__pycache__"}
    | {".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis", "node_modules", ".DS_Store"}
)


def pack(folder: Path, destination: BinaryIO) -> None:
    """Write a folder's content as an uncompressed tar archive.

    The order of the files, their owners, times and permissions (except the executable bit) don't
    depend on the machine, so the digest changes only with the content.

    Args:
        folder: The folder.
        destination: The stream to write the archive to.

    Raises:
        ArtifactError: The folder is empty, all of it is ignored, or a file can't be read.
    """
    import tarfile

    found = False
    try:
        with tarfile.open(fileobj=destination, mode="w", format=tarfile.PAX_FORMAT) as archive:
            for path in content(folder):
                found = True
                _add(archive, path, str(path.relative_to(folder)))
    except OSError as error:
        raise ArtifactError(f"{folder} can't be packed as an artifact: {error}") from error
    if not found:
        raise ArtifactError(f"the artifact {folder} is an empty folder, or all of it is ignored")


def content(folder: Path) -> Iterator[Path]:
    """The files and symbolic links of a source tree that are not ignored, in a fixed order."""
    yield from _walk(folder, [])


def _walk(folder: Path, outer: list[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    rules = [*outer, *_rules(folder)]
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        is_folder = entry.is_dir() and not entry.is_symlink()
        if entry.name in _ALWAYS or _is_ignored(entry, rules, is_folder=is_folder):
            continue
        if is_folder:
            yield from _walk(entry, rules)
        elif entry.is_symlink() or entry.is_file():
            yield entry


def _rules(folder: Path) -> Iterator[tuple[Path, GitIgnoreSpec]]:
    for name in IGNORE_FILES:
        file = folder / name
        if file.is_file():
            from pathspec import GitIgnoreSpec

            yield folder, GitIgnoreSpec.from_lines(file.read_text(errors="replace").splitlines())


def _is_ignored(path: Path, rules: list[tuple[Path, GitIgnoreSpec]], *, is_folder: bool) -> bool:
    """Whether a path is ignored: the innermost ignore file with a matching rule decides."""
    for folder, spec in reversed(rules):
        relative = path.relative_to(folder).as_posix() + ("/" if is_folder else "")
        verdict = spec.check_file(relative).include
        if verdict is not None:
            return bool(verdict)
    return False


def _add(archive: tarfile.TarFile, path: Path, name: str) -> None:
    import tarfile

    entry = tarfile.TarInfo(name)
    if path.is_symlink():
        entry.type, entry.linkname = tarfile.SYMTYPE, str(path.readlink())
        archive.addfile(entry)
        return
    status = path.stat()
    entry.size = status.st_size
    entry.mode = 0o755 if status.st_mode & 0o100 else 0o644
    with path.open("rb") as stream:
        archive.addfile(entry, stream)
