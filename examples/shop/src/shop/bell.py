"""The bell in the packing room: rung with each order, so that nobody has to look for one.

It hangs on a Redis server where there is one; without, the packing room looks every now and then.
"""

from __future__ import annotations

import contextlib
import socket

#: The list that rings the bell.
KEY = "shop:bell"


def ring(redis: str) -> None:
    """Say that there is an order; a bell that is broken keeps nobody from ordering.

    Args:
        redis: ``host:port``; empty where there is no bell.
    """
    if redis:
        with contextlib.suppress(OSError):
            _ask(redis, 5, "RPUSH", KEY, "order")


def wait(redis: str, seconds: int) -> None:
    """Wait until it rings, and no longer than some seconds."""
    _ask(redis, seconds + 5, "BLPOP", KEY, str(seconds))


def _ask(redis: str, patience: float, *words: str) -> None:
    """Say a command in Redis's protocol, and hear the beginning of its answer."""
    host, _, port = redis.rpartition(":")
    command = f"*{len(words)}\r\n" + "".join(f"${len(word)}\r\n{word}\r\n" for word in words)
    with socket.create_connection((host, int(port)), timeout=patience) as connection:
        connection.sendall(command.encode())
        if connection.recv(1) == b"-":
            raise OSError(f"{redis} refused {words[0]}")
