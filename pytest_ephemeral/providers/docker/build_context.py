"""The build context of a Dockerfile: its files, their digest, and a tar of them.

``.dockerignore`` is read as in
https://docs.docker.com/build/concepts/context/#dockerignore-files: the last pattern that matches a
path, or a folder above it, decides.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Final

import msgspec

from pytest_ephemeral import files
from pytest_ephemeral.errors import ConfigurationError

if TYPE_CHECKING:
    import tarfile

IGNORE_FILE = ".dockerignore"

#: Ignored unless ``.dockerignore`` includes them again. They change with every test run, or differ
#: between clones of one commit, and so would change the image's key.
IGNORED: Final = (
    *(".git", ".ephemeral", "ephemeral.toml"),
    *("**/__pycache__", "**/.pytest_cache", "**/.hypothesis"),
)


class Context(msgspec.Struct, frozen=True):
    """The build context of a Dockerfile.

    Attributes:
        folder: The context's folder.
        dockerfile: The path of the Dockerfile, relative to the folder; it is never ignored.
    """

    folder: Path
    dockerfile: str

    @classmethod
    def at(cls, folder: Path, dockerfile: str) -> Context:
        """The context in a folder.

        Raises:
            ConfigurationError: There is no such folder or Dockerfile.
        """
        if not folder.is_dir():
            hint = ": clone a repository first, and name its folder" * (":/" in str(folder))
            raise ConfigurationError(f"context: {folder} is not a folder{hint}")
        if not (folder / dockerfile).is_file():
            raise ConfigurationError(
                f"there is no Dockerfile {folder / dockerfile}: `dockerfile` says where it is in "
                "the context"
            )
        return cls(folder, PurePosixPath(os.path.normpath(dockerfile)).as_posix())

    def dockerfile_text(self) -> str:
        """The text of the Dockerfile."""
        return (self.folder / self.dockerfile).read_text()

    def paths(self) -> list[str]:
        """The relative paths of all files, folders and links that are not ignored, sorted."""
        rules = _rules([*IGNORED, *self._ignore_file()])
        always = {self.dockerfile, IGNORE_FILE}
        return sorted(
            path for path in _walk(self.folder, "", rules) if path in always or _kept(path, rules)
        )

    def digest(self) -> str:
        """``sha256:…`` over paths, contents, link targets and executable bits; not over times."""
        total = hashlib.sha256()
        for path in self.paths():
            entry = self.folder / path
            mode = entry.lstat().st_mode
            if stat.S_ISLNK(mode):
                what = f"link {entry.readlink()}"
            elif stat.S_ISDIR(mode):
                what = "folder"
            elif stat.S_ISREG(mode):
                content = files.digest_of(files.chunks(entry))
                what = f"{'program' if mode & stat.S_IXUSR else 'file'} {content}"
            else:
                continue
            total.update(f"{path}\0{what}\0".encode(errors="surrogateescape"))
        return f"sha256:{total.hexdigest()}"

    def write(self, target: IO[bytes], extra: Mapping[str, Path]) -> None:
        """Write the context as a tar, owned by root, as the docker command does.

        Args:
            target: The file to write to.
            extra: Files from outside the context, by their paths in it.
        """
        import tarfile

        def set_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
            member.uid = member.gid = 0
            member.uname = member.gname = ""
            return member

        with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as tar:
            # Begin with a plain header: without one, BuildKit takes the tar for a Dockerfile.
            top = tarfile.TarInfo(".")
            top.type, top.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(top)
            for path in self.paths():
                tar.add(self.folder / path, path, recursive=False, filter=set_root)
            for path, file in extra.items():
                tar.add(file, path, filter=set_root)

    def _ignore_file(self) -> Sequence[str]:
        """The lines of ``Dockerfile.dockerignore`` beside the Dockerfile, or ``.dockerignore``."""
        for name in (f"{self.dockerfile}.dockerignore", IGNORE_FILE):
            try:
                return (self.folder / name).read_text().splitlines()
            except FileNotFoundError:
                continue
        return ()


class _Rule(msgspec.Struct, frozen=True):
    pattern: re.Pattern[str]
    keeps: bool


def _rules(lines: Sequence[str]) -> list[_Rule]:
    rules = []
    for line in lines:
        text = line.strip()
        if not text or text.startswith("#"):
            continue
        keeps = text.startswith("!")
        path = os.path.normpath(text.removeprefix("!").strip()).lstrip("/")
        if path != ".":
            rules.append(_Rule(_expression(path), keeps))
    return rules


def _expression(pattern: str) -> re.Pattern[str]:
    """A regular expression for a pattern, as Go's filepath.Match, with ``**`` for many folders.

    It matches all paths below a match, too.
    """
    text, at = "", 0
    tokens = re.compile(r"\*\*/|\*\*|\*|\?|\[[^]]+\]|\\.|.")
    while found := tokens.match(pattern, at):
        token, at = found[0], found.end()
        if token in _WILDCARDS:
            text += _WILDCARDS[token]
        elif token.startswith("["):
            text += token
        else:
            text += re.escape(token[-1])
    return re.compile(f"{text}(/.*)?", re.DOTALL)


_WILDCARDS = {"**/": "(.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}


def _kept(path: str, rules: Sequence[_Rule]) -> bool:
    for rule in reversed(rules):
        if rule.pattern.fullmatch(path):
            return rule.keeps
    return True


def _walk(folder: Path, below: str, rules: Sequence[_Rule]) -> Iterator[str]:
    """All paths; ignored folders are searched only if a pattern can include paths again."""
    returns = any(rule.keeps for rule in rules)
    with os.scandir(folder / below) as entries:
        for entry in list(entries):
            path = f"{below}/{entry.name}" if below else entry.name
            yield path
            if entry.is_dir(follow_symlinks=False) and (returns or _kept(path, rules)):
                yield from _walk(folder, path, rules)
