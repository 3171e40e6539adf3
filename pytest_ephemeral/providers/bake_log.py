"""The output of a bake, and the environment variables that it has, for every baker.

All output goes to the bake's log and to its ``live`` function. The last lines are in the error.
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
from pytest_ephemeral.errors import BEFORE_LOG, BakeError, ConfigurationError
from pytest_ephemeral.masking import bake_secrets, mask
from pytest_ephemeral.providers.protocol import BakeJob
from pytest_ephemeral.tables import Recipe

#: Variables that every install script has: proxies and package indexes of this machine.
PACKAGE_SOURCES: Final = ("*_proxy", "*_PROXY", "PIP_*", "UV_*", "npm_config_*")

_LAST_LINES: Final = 15

#: The most characters of a line in messages and progress; only the log has longer lines.
_LONGEST: Final = 4000

#: Escape sequences for colours, which engines and programs print for terminals.
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


def passed_variables(recipe: Recipe, allowed: Iterable[str] = ()) -> dict[str, str]:
    """The environment variables of this process to pass to an install script.

    Args:
        recipe: The recipe; its ``pass-env`` has names of variables.
        allowed: Patterns of further names, as in ``fnmatch``.

    Raises:
        ConfigurationError: A variable in ``pass-env`` is not set.
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
    """The values to mask in logs: those of ``pass-env``, and passwords in URLs of variables."""
    return bake_secrets(recipe.pass_env, os.environ)


class BakeLog:
    """Writes the output of a bake to its log, with secrets masked; a context manager.

    Args:
        job: The bake.
        secrets: Values to mask besides those of ``passed_secrets``.
    """

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
        """Write output; it may end within a line, whose rest comes with the next call."""
        first, *others = text.split("\n")
        self._unfinished.append(first)
        for beginning in others:
            self.write_line("".join(self._unfinished))
            self._unfinished = [beginning]

    def write_line(self, line: str) -> None:
        """Write one line, without its line end."""
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
            what: The failure, such as ``its Dockerfile failed at Step 3/5 …``.
            remedy: What to do, starting with a separator; may be empty.
        """
        return BakeError(
            f"the image {self._job.recipe.name!r} could not be baked: "
            f"{mask(what, self._secrets)}{remedy}. {self._quote()}"
        )

    def _quote(self) -> str:
        self._finish_line()
        if not self._last:
            return f"It printed nothing. The log: {self._job.log}"
        return f"{BEFORE_LOG}\n{self.last_lines()}\nThe whole log: {self._job.log}"

    def last_lines(self) -> str:
        """The last lines of the output, indented."""
        self._finish_line()
        return "\n".join(f"    {line}" for line in self._last) or "    (it printed nothing)"

    def _finish_line(self) -> None:
        self.write("\n" if any(self._unfinished) else "")
