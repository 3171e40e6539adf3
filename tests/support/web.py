"""Small web servers, and a client that uses no proxy."""

from __future__ import annotations

import socketserver
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, TypeVar

S = TypeVar("S", bound=socketserver.BaseServer)


class Handler(BaseHTTPRequestHandler):
    """A request handler that writes no log."""

    def answer(self, status: int, content: bytes = b"", **headers: str) -> None:
        """Send a whole response; ``_`` in a header's name is a hyphen."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: Any) -> None:
        """Write no log."""


def server_of(handler: Callable[..., BaseHTTPRequestHandler]) -> ThreadingHTTPServer:
    """A server on a free port of this machine."""
    return ThreadingHTTPServer(("127.0.0.1", 0), handler)


@contextmanager
def serving(server: S) -> Iterator[S]:
    """Serve in a thread until the end of the block."""
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def get(url: str) -> str:
    """The content of a URL, requested without a proxy."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return str(answer.read().decode())
