"""Addresses for the networks of the engines that tests start.

Each test process owns a range by an abstract socket, which ends with the process.
"""

from __future__ import annotations

import atexit
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from socket import AF_UNIX, socket
from typing import Final

#: The second octets of the ranges to choose from; the first octet is 10.
_RANGES: Final = range(128, 224)

#: A rule of Podman that redirects a port to a container; the container's range.
_REDIRECTION: Final = re.compile(r"-A (NETAVARK-DN-.* --to-destination 10\.(\d+)\..*)")


@cache
def own_range() -> str:
    """The first half of all addresses of this process's networks, such as ``10.140``.

    Networks that overlap get each other's packets. So no other test process has the range, and no
    network of this machine uses it, not even one that a killed test run left behind.

    Raises:
        RuntimeError: All ranges are in use.
    """
    routes = _run("ip", "-4", "route")
    for number in _RANGES:
        with _owned(number) as owned:
            if owned and f"10.{number}." not in routes:
                atexit.register(owned.dup().close)
                return f"10.{number}"
    raise RuntimeError("no range of addresses is free for the networks of tests")


def remove_stale_redirections() -> None:
    """Remove the packet filter's rules that redirect ports to containers of killed test runs.

    A container that gets such a port later could not be reached.
    """
    for rule in _run("iptables-save", "-t", "nat").splitlines():
        if match := _REDIRECTION.fullmatch(rule):
            with _owned(int(match[2])) as owned:
                if owned:
                    _run("iptables", "--wait", "--table", "nat", "-D", *match[1].split())


@contextmanager
def _owned(number: int) -> Iterator[socket | None]:
    """Own a range within the block; None if another process owns it, or tests never use it."""
    with socket(AF_UNIX) as own:
        try:
            own.bind(f"\0pytest-ephemeral-addresses-{number}")
        except OSError:
            yield None
        else:
            yield own if number in _RANGES else None


def _run(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout
