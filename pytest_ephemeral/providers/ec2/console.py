"""The output of an environment's processes, read from its instances' consoles.

EC2 limits ``GetConsoleOutput`` closely, so what was read is kept for a few seconds.
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

#: Seconds for which a console that was read is not read again.
FRESH: Final = 5.0

#: The number of all lines of boots before the last: an instance numbers its lines anew then.
_EARLIER: Final = 0


class Consoles:
    """The consoles of one region's instances, each read at most once in a few seconds.

    Args:
        client: Of EC2.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._reads: dict[str, threading.Lock] = {}
        self._read: dict[str, tuple[float, str]] = {}

    def read(self, instance: str, *, now: bool = False) -> str:
        """The text of a console.

        Args:
            instance: Its instance's id.
            now: Read it in any case.
        """
        with self._reads.setdefault(instance, threading.Lock()):
            at, text = self._read.get(instance, (-math.inf, ""))
            if now or time.monotonic() - at > FRESH:
                text = output(self._client, instance)
                self._read[instance] = (time.monotonic(), text)
            return text

    def recall(self, instance: str) -> str:
        """What was read last; makes no call."""
        return self._read.get(instance, (0.0, ""))[1]

    def forget(self, instance: str) -> None:
        """Forget what was read: the instance has booted anew, and numbers its lines from 1."""
        with self._reads.setdefault(instance, threading.Lock()):
            self._read.pop(instance, None)


def output(client: Any, instance: str) -> str:
    """All that EC2 has of an instance's console: the last 64 KB, as new as EC2 has it.

    ``Latest`` is for instances on the Nitro system; others have what was there minutes ago.
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
    """The processes' output, as it stands on the consoles of an environment's instances.

    Args:
        consoles: Their text, in the order of the instances.
        own: Whether the boot script started the processes, and numbers their lines. If not, all
            that is on the consoles is the log.
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
                        part[:] = [(_EARLIER, said) for _, said in part]
                    part.append((line.number, line.text))

    def add(self, name: str, text: str) -> None:
        """Add a text without numbered lines, as a part of its own."""
        self._parts[name] = list(enumerate(text.splitlines(), start=1))

    def mark(self) -> str:
        """Where it ends now."""
        return json.dumps({part: lines[-1][0] for part, lines in self._parts.items() if lines})

    def text(self, since: str | None, until: str | None, tail: int | None) -> str:
        """What was printed; of several processes, each line says whose it is."""
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
        """Everything, by process."""
        return {
            part: "".join(f"{line}\n" for _, line in lines) for part, lines in self._parts.items()
        }


def _numbers(mark: str | None) -> dict[str, int]:
    return json.loads(mark) if mark else {}
