"""The board's server, with limits for bodies, connections and time.

waitress accepts no more connections at its limit until some of them end. Here the oldest one that
has no complete request is closed instead, so that connections that send nothing shut nobody out.
"""

from __future__ import annotations

from typing import Any, Final

from waitress.server import TcpWSGIServer

#: Bytes of a request's body; a decision has a name and a comment.
BODY: Final = 64 << 10
#: Bytes of a request's header.
HEADER: Final = 16 << 10
#: Connections from which on the oldest idle one is closed for a new one.
CONNECTIONS: Final = 100
#: Seconds without any activity after which a connection is closed.
IDLE: Final = 10
#: Seconds in which a request must be complete, however steadily it drips in.
REQUEST: Final = 30

SETTINGS: Final[dict[str, Any]] = {
    "threads": 4,
    "ident": None,
    "max_request_body_size": BODY,
    "max_request_header_size": HEADER,
    "inbuf_overflow": 2 * BODY,  # never on the disk
    "connection_limit": 2 * CONNECTIONS,
    "channel_timeout": IDLE,
    "cleanup_interval": 2,
}


class LimitedServer(TcpWSGIServer):  # type: ignore[misc] # waitress has no types
    """A waitress server that closes what sends nothing, or too slowly."""

    def readable(self) -> bool:
        """Make room for a new connection before one is accepted."""
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
