"""The board's server, with limits for sizes, connections and time.

At its limit of connections, waitress waits until one of them ends. Here, the oldest connection
without a complete request is closed instead. So idle connections can't block the server.
"""

from __future__ import annotations

from typing import Any, Final

from waitress.server import TcpWSGIServer

#: The largest body of a request in bytes. A decision has a name and a comment.
BODY: Final = 64 << 10
#: The largest header of a request in bytes.
HEADER: Final = 16 << 10
#: The number of connections at which a new one replaces the oldest idle one.
CONNECTIONS: Final = 100
#: Seconds without activity after which a connection is closed.
IDLE: Final = 10
#: Seconds in which a request must be complete, even if bytes keep arriving.
REQUEST: Final = 30

SETTINGS: Final[dict[str, Any]] = {
    "threads": 4,
    "ident": None,
    "max_request_body_size": BODY,
    "max_request_header_size": HEADER,
    "inbuf_overflow": 2 * BODY,  # more than a body: nothing is written to the disk
    "connection_limit": 2 * CONNECTIONS,
    "channel_timeout": IDLE,
    "cleanup_interval": 2,
}


class LimitedServer(TcpWSGIServer):  # type: ignore[misc] # waitress has no types
    """A waitress server that closes idle and slow connections."""

    def readable(self) -> bool:
        """Close the oldest idle connection at the limit, before a new one is accepted."""
        if len(self.active_channels) >= CONNECTIONS:
            idle = [one for one in self.active_channels.values() if not one.requests]
            for channel in sorted(idle, key=lambda one: one.creation_time)[:1]:
                channel.will_close = True
        return bool(super().readable())

    def maintenance(self, now: float) -> None:
        """Close connections that are idle, and those whose request takes too long."""
        super().maintenance(now)
        for channel in self.active_channels.values():
            if channel.request is None:
                channel.begun_at = None
            elif getattr(channel, "begun_at", None) is None:
                channel.begun_at = now
            elif now - channel.begun_at > REQUEST:
                channel.will_close = True
