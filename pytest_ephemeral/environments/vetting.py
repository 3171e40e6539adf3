"""Check that environments resumed from the same memory do not share secrets or identities."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment

#: What two machines must not have in common, and the command that prints it. An image can have
#: commands of its own in ``vet.d``; their output must differ, too.
PROBES: Final[Mapping[str, str]] = {
    "random numbers": "head -c 32 /dev/urandom | od -An -tx1",
    "UUIDs": "cat /proc/sys/kernel/random/uuid",
    "machine-id": "cat /etc/machine-id",
    "host keys": "cat /etc/ssh/ssh_host_*_key.pub 2>/dev/null || true",
    "vet.d": 'for it in /etc/pytest-ephemeral/vet.d/*; do [ ! -x "$it" ] || "$it"; done',
}

#: The largest allowed error of a clock in seconds, in addition to the time of the request.
_CLOCK: Final = 2.0
#: An error of fewer seconds is not reported.
_RIGHT: Final = 0.1

_PATIENCE: Final = 120.0


class Finding(msgspec.Struct, frozen=True):
    """The result of one check.

    Attributes:
        what: What was checked, such as ``UUIDs``.
        ok: Whether the check passed.
        detail: The details, for the user.
    """

    what: str
    ok: bool
    detail: str


def compare(clones: Sequence[Environment]) -> list[Finding]:
    """Compare environments that were resumed from the same memory.

    Args:
        clones: At least two environments; they are up.

    Raises:
        EphemeralError: A command can't be run in one of them.
    """
    found = [
        _differ(what, [_ask(one, command) for one in clones]) for what, command in PROBES.items()
    ]
    found.append(_differ("cookies", [" ".join(_cookies(one)) for one in clones]))
    found += [_check_clock(one) for one in clones]
    return found


def _differ(what: str, values: Sequence[str]) -> Finding:
    """Check that no two values are equal; empty values are not compared."""
    present = [value for value in values if value]
    if len(set(present)) == len(present):
        return Finding(what, ok=True, detail="differ" if present else "there are none")
    shown = present[0] if len(present[0]) <= 60 else f"{present[0][:60]}…"
    return Finding(what, ok=False, detail=f"both have {shown}")


def _check_clock(clone: Environment) -> Finding:
    before = time.time()
    told = float(_ask(clone, "date +%s.%N"))
    after = time.time()
    off = max(before - told, told - after, 0.0)
    what = f"clock of {clone.id}"
    return Finding(what, ok=off <= _CLOCK, detail=f"{off:.1f} s off" if off > _RIGHT else "right")


def _ask(clone: Environment, command: str) -> str:
    done = clone.run(["sh", "-c", command], timeout=_PATIENCE)
    if done.returncode != 0:
        raise EphemeralError(f"{clone.id}: `{command}` failed: {done.stderr.strip()}")
    return str(done.stdout.strip())


def _cookies(clone: Environment) -> Iterator[str]:
    """The cookies of a first response, which often have a session's only secret."""
    import requests

    if clone.url.startswith("http"):
        with suppress(requests.RequestException):
            given: Any = requests.get(clone.url, timeout=30).cookies
            yield from (f"{cookie.name}={cookie.value}" for cookie in given)
