"""See whether environments that go on from one memory are as different as they have to be."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import msgspec

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment

#: What two machines must not have in common → the command that prints it in one. An image can
#: have commands of its own: what they print must differ, too.
PROBES: Final[Mapping[str, str]] = {
    "random numbers": "head -c 32 /dev/urandom | od -An -tx1",
    "UUIDs": "cat /proc/sys/kernel/random/uuid",
    "machine-id": "cat /etc/machine-id",
    "host keys": "cat /etc/ssh/ssh_host_*_key.pub 2>/dev/null || true",
    "vet.d": 'for it in /etc/pytest-ephemeral/vet.d/*; do [ ! -x "$it" ] || "$it"; done',
}

#: Seconds by which a clock may be off, beside what asking for it takes.
_CLOCK: Final = 2.0
#: A smaller offset is not reported.
_RIGHT: Final = 0.1

_PATIENCE: Final = 120.0


class Finding(msgspec.Struct, frozen=True):
    """What was found of one thing.

    Attributes:
        what: Such as ``UUIDs``.
        ok: Whether that is as it should be.
        detail: For people.
    """

    what: str
    ok: bool
    detail: str


def compare(clones: Sequence[Environment]) -> list[Finding]:
    """Compare environments that were resumed from the same memory.

    Args:
        clones: At least two; they are up.

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
    """Two that say nothing have nothing in common."""
    said = [value for value in values if value]
    if len(set(said)) == len(said):
        return Finding(what, ok=True, detail="differ" if said else "there are none")
    shown = said[0] if len(said[0]) <= 60 else f"{said[0][:60]}…"
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
    """The cookies that a first request is given: sessions are often told apart by nothing else."""
    import requests

    if clone.url.startswith("http"):
        with suppress(requests.RequestException):
            given: Any = requests.get(clone.url, timeout=30).cookies
            yield from (f"{cookie.name}={cookie.value}" for cookie in given)
