"""The output of an environment's processes, read from its instances' consoles.

EC2 throttles ``GetConsoleOutput`` early, so an output is cached for a few seconds.
"""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pytest_ephemeral import aws, aws_retries
from pytest_ephemeral.providers.ec2 import user_data

#: Seconds for which a console's output is cached.
FRESH: Final = 5.0

#: Replaces the numbers of lines from earlier boots: each boot numbers its lines from 1.
_EARLIER: Final = 0


class Consoles:
    """The consoles of one region's instances, each read at most once in ``FRESH`` seconds.

    Args:
        client: An EC2 client.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._reads: dict[str, threading.Lock] = {}
        self._read: dict[str, tuple[float, str]] = {}

    def read(self, instance: str, *, now: bool = False) -> str:
        """The text of a console.

        Args:
            instance: The instance's id.
            now: Read it again, even if it was read a moment ago.
        """
        with self._reads.setdefault(instance, threading.Lock()):
            at, text = self._read.get(instance, (-math.inf, ""))
            if now or time.monotonic() - at > FRESH:
                text = output(self._client, instance)
                self._read[instance] = (time.monotonic(), text)
            return text

    def recall(self, instance: str) -> str:
        """The text that was last read, without a call; empty if there is none."""
        return self._read.get(instance, (0.0, ""))[1]

    def forget(self, instance: str) -> None:
        """Clear an instance's cached text: it has booted again, and numbers its lines from 1."""
        with self._reads.setdefault(instance, threading.Lock()):
            self._read.pop(instance, None)


def output(client: Any, instance: str) -> str:
    """EC2's newest copy of an instance's console: its last 64 KB; empty if EC2 throttles.

    Only instances on the Nitro system support ``Latest``; the output of others is minutes old.
    """
    from botocore.exceptions import ClientError

    for latest in ({"Latest": True}, {}):
        try:
            found = client.get_console_output(InstanceId=instance, **latest)
        except ClientError as error:
            if aws.code(error) in {"UnsupportedOperation", "InvalidParameterCombination"}:
                continue
            if aws.code(error) in {"InvalidInstanceID.NotFound", *aws_retries.THROTTLED}:
                return ""
            raise
        return str(found.get("Output", ""))
    return ""


class ConsoleLog:
    """The output of an environment's processes, read from the consoles of its instances.

    Args:
        consoles: The consoles' texts, in the order of the instances.
        own: Whether the boot script started the processes, and numbers their lines. If not, the
            whole console is the log.
        name: The name of a text without numbered lines.
    """

    def __init__(self, consoles: Sequence[str], *, own: bool, name: str = "console") -> None:
        self._parts: dict[str, list[tuple[int, str]]] = {}
        for place, text in enumerate(consoles):
            suffix = f"-{place + 1}" if place else ""
            if not own:
                numbered = enumerate(text.splitlines(), start=1)
                self._parts[f"{name}{suffix}"] = [(number, line) for number, line in numbered]
                continue
            for line in user_data.lines(text):
                if line.number:
                    part = self._parts.setdefault(line.part + suffix, [])
                    if part and line.number <= part[-1][0]:
                        part[:] = [(_EARLIER, text) for _, text in part]
                    part.append((line.number, line.text))

    def add(self, name: str, text: str) -> None:
        """Add a text without numbered lines, as a part of its own."""
        self._parts[name] = list(enumerate(text.splitlines(), start=1))

    def mark(self) -> str:
        """The number of each part's last line, as JSON; ``text`` takes it as a limit."""
        return json.dumps({part: lines[-1][0] for part, lines in self._parts.items() if lines})

    def text(self, since: str | None, until: str | None, tail: int | None) -> str:
        """The lines between two marks; with several parts, each line begins with its part's name.

        Args:
            since: The mark to begin after; None for the start.
            until: The mark to end at; None for the end.
            tail: How many lines of each part to return at most; None for all.
        """
        first, last = _numbers(since), _numbers(until)
        least = _EARLIER - 1 if since is None else _EARLIER
        shown = []
        for part, numbered in sorted(self._parts.items()):
            end = None if until is None else last.get(part, 0)
            lines = [
                line
                for number, line in numbered
                if number > first.get(part, least) and (end is None or number <= end)
            ]
            lines = lines if tail is None else lines[-tail:] if tail > 0 else []
            prefix = "" if len(self._parts) == 1 else f"{part} | "
            shown += [f"{prefix}{line}\n" for line in lines]
        return "".join(shown)

    def files(self) -> Mapping[str, str]:
        """The whole log, by part: one for each process of each instance."""
        return {
            part: "".join(f"{line}\n" for _, line in lines) for part, lines in self._parts.items()
        }


def _numbers(mark: str | None) -> dict[str, int]:
    return json.loads(mark) if mark else {}
