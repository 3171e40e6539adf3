"""What a bake prints: into its log from the first byte, to whoever looks on, into the error."""

from __future__ import annotations

import os
import re
import time
from collections import deque
from types import TracebackType
from typing import IO, Final, Self

from pytest_ephemeral.errors import BakeError
from pytest_ephemeral.interpolation import mask
from pytest_ephemeral.providers.docker import remedies
from pytest_ephemeral.providers.protocol import BakeJob

_LAST_LINES: Final = 15

#: The engine paints red what a build prints to its standard error.
_COLOURS: Final = re.compile(r"\x1b\[[0-9;]*m")


class Output:
    """Takes what a bake prints, in pieces of any size, and masks what it was passed in secret."""

    def __init__(self, job: BakeJob) -> None:
        self._job = job
        self._secrets = [value for name in job.recipe.pass_env if (value := os.environ.get(name))]
        self._last: deque[str] = deque(maxlen=_LAST_LINES)
        self._begun = ""
        self._started = time.monotonic()
        self._log: IO[str] | None = None

    def __enter__(self) -> Self:
        self._job.log.parent.mkdir(parents=True, exist_ok=True)
        self._log = self._job.log.open("a", encoding="utf-8", errors="replace", buffering=1)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.write("\n" if self._begun else "")
        if self._log is not None:
            self._log.close()

    def write(self, text: str) -> None:
        """Take a piece."""
        *lines, self._begun = (self._begun + text).split("\n")
        for line in lines:
            self._take(mask(_COLOURS.sub("", line).rstrip("\r"), self._secrets))

    def failure(self, what: str) -> BakeError:
        """The error for a bake that did not work.

        Args:
            what: What went wrong, such as ``its Dockerfile failed at Step 3/5 …``.
        """
        self.write("\n" if self._begun else "")
        said = "\n".join(f"    {line}" for line in self._last) or "    (it printed nothing)"
        what += remedies.remedy(f"{what}\n{said}")
        return BakeError(
            f"the image {self._job.recipe.name!r} is not baked: {mask(what, self._secrets)}. "
            f"It printed last:\n{said}\nThe whole log: {self._job.log}"
        )

    def _take(self, line: str) -> None:
        if line.strip():
            self._last.append(line)
        if self._log is not None:
            self._log.write(line + "\n")
        if self._job.live is not None:
            self._job.live(f"{time.monotonic() - self._started:6.1f} s  {line}")
