"""The errors in the output of a compose command, without its progress.

Compose 2 prints a line for each step of each container, network and volume, and the error at the
end or between two steps. docker-compose 1.29 prints each error twice: for the container, and for
its service.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

from pytest_ephemeral.providers.docker import errors

_LAST_LINES: Final = 20

#: Lines of progress, of either version.
_PROGRESS: Final = re.compile(
    r"(Network|Container|Volume|Image|Secret|Config|Service) \S+ |"
    r"\S+ (Pulling|Pulled|Error|Warning|Interrupted|Skipped)\b|"
    r"(Creating|Recreating|Starting|Restarting|Stopping|Removing|Pulling|Building) |"
    r".* \.\.\. (done|error)$"
)

#: Warnings, and a line of docker-compose 1.29 after all errors.
_NOISE: Final = re.compile(r"WARNING: |.*level=warning|Encountered errors while ")

#: An error of docker-compose 1.29 about a container or a service.
_ABOUT: Final = re.compile(r"ERROR: for (\S+) +(.*)")

#: Other errors are consequences of this one.
_FIRST: Final = "dependency failed to start"


def quote(progress: str, names: Mapping[str, str]) -> str:
    """The errors, in one line, with advice.

    Args:
        progress: The command's standard error.
        names: The services of containers, by id; ids in the output are replaced by them.
    """
    for id, name in names.items():
        progress = progress.replace(id[:12], name)
    lines = [line.strip() for line in progress.splitlines() if line.strip()]
    lines = [line for line in lines if not _NOISE.match(line)] or lines
    lines = [line for line in lines if not _PROGRESS.match(line)] or lines
    lines = [errors.shorten(line) for line in _each_once(lines)]
    lines = [line for line in lines if line.startswith(_FIRST)][:1] or lines[-_LAST_LINES:]
    text = "; ".join(lines).replace(":; ", ": ")
    return (text or "it printed no error") + errors.find_remedy(text)


def _each_once(lines: Iterable[str]) -> list[str]:
    """The lines, and of those about a container and its service only the latter."""
    texts: dict[str, str] = {}
    for line in lines:
        about = _ABOUT.match(line)
        reason = about[2] if about else line.removeprefix("ERROR: ")
        texts[reason] = f"{about[1]}: {reason}" if about else reason
    return list(texts.values())
