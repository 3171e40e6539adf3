"""What a bake prints and what it may see: the same for every provider that bakes.

Output goes to the bake's log from its first byte, to whoever looks on, and, its last lines, into
the error.
"""

from __future__ import annotations

import os
import re
import time
from collections import deque
from collections.abc import Iterable
from fnmatch import fnmatchcase
from types import TracebackType
from typing import IO, Final, Self

from pytest_ephemeral import files
from pytest_ephemeral.errors import BakeError, ConfigurationError
from pytest_ephemeral.interpolation import bake_secrets, mask
from pytest_ephemeral.providers.protocol import BakeJob
from pytest_ephemeral.tables import Recipe

#: Variables that every install script sees: where this machine gets packages from.
PACKAGE_SOURCES: Final = ("*_proxy", "*_PROXY", "PIP_*", "UV_*", "npm_config_*")

_LAST_LINES: Final = 15

#: The number of characters of a line that are shown; only the log has longer ones.
_LONGEST: Final = 4000

#: Engines and programs paint what goes to a terminal.
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


def passed_variables(recipe: Recipe, allowed: Iterable[str] = ()) -> dict[str, str]:
    """The variables of this process that an install script sees.

    Args:
        recipe: Its ``pass-env`` names some.
        allowed: Patterns of names that are passed besides.

    Raises:
        ConfigurationError: One of ``pass-env`` is not set.
    """
    if missing := [name for name in recipe.pass_env if name not in os.environ]:
        raise ConfigurationError(
            f"the image {recipe.name!r} passes {', '.join(missing)} to its install script "
            "(pass-env), but that is not set here: set it, or remove it from pass-env"
        )
    patterns = tuple(allowed)
    return {
        name: value
        for name, value in os.environ.items()
        if name in recipe.pass_env or any(fnmatchcase(name, pattern) for pattern in patterns)
    }


def passed_secrets(recipe: Recipe) -> tuple[str, ...]:
    """What no log may show: the values of ``pass-env``, and the passwords in any URL."""
    return bake_secrets(recipe.pass_env, os.environ)


class BakeLog:
    """Takes what a bake prints, in pieces of any size, and masks secrets."""

    def __init__(self, job: BakeJob, secrets: Iterable[str] = ()) -> None:
        self._job = job
        self._secrets = (*passed_secrets(job.recipe), *secrets)
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._unfinished: list[str] = []
        self._started = time.monotonic()
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        self._file = files.open_private_log(self._job.log)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._finish_line()
        if self._file is not None:
            self._file.close()

    def write(self, text: str) -> None:
        """Take a piece of output, which need not end with a line."""
        first, *others = text.split("\n")
        self._unfinished.append(first)
        for beginning in others:
            self.write_line("".join(self._unfinished))
            self._unfinished = [beginning]

    def write_line(self, line: str) -> None:
        """Take one whole line."""
        line = mask(_COLOURS.sub("", line).rstrip("\r"), self._secrets)
        if self._file is not None:
            self._file.write(line + "\n")
        shown = line if len(line) <= _LONGEST else f"{line[:_LONGEST]} … (the log has all of it)"
        if line.strip():
            self._last.append(shown)
        if self._job.live is not None:
            self._job.live(f"{time.monotonic() - self._started:6.1f} s  {shown}")

    def failure(self, what: str, remedy: str = "") -> BakeError:
        """The error for a bake that failed.

        Args:
            what: What went wrong, such as ``its Dockerfile failed at Step 3/5 …``.
            remedy: What helps, with its separator; looked for by ``text``.
        """
        return BakeError(
            f"the image {self._job.recipe.name!r} could not be baked: "
            f"{mask(what, self._secrets)}{remedy}. "
            f"It printed last:\n{self.last_lines()}\nThe whole log: {self._job.log}"
        )

    def last_lines(self) -> str:
        """The last lines it printed, indented."""
        self._finish_line()
        return "\n".join(f"    {line}" for line in self._last) or "    (it printed nothing)"

    def _finish_line(self) -> None:
        self.write("\n" if any(self._unfinished) else "")
