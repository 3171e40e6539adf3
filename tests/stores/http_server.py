"""An HTTP server that stores files, as raw artifact repositories do.

It can require credentials, ignore conditions, forbid overwriting, return checksums, and fail.
"""

from __future__ import annotations

import hashlib
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from support import web


@dataclass
class Files:
    """The files of a server, and its behaviour.

    Attributes:
        url: Its URL.
        content: Files by path.
        authorization: The header that it requires; empty for none.
        conditions: Whether it honours ``If-None-Match: *``.
        overwriting: Whether it allows files to be overwritten.
        counting: Whether it returns the SHA-256 of files, as Artifactory does.
        faults: The method, a part of the path, and the fault of the next requests: ``lost`` (done,
            not answered), ``cut`` (half of the file stored or sent), or a status.
        seen: Method and path of every request.
        location: The target of a 307.
        sent: The ``Authorization`` of every request.
    """

    url: str = ""
    content: dict[str, bytes] = field(default_factory=dict)
    authorization: str = ""
    conditions: bool = True
    overwriting: bool = True
    counting: bool = False
    faults: list[tuple[str, str, str]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    sent: list[str | None] = field(default_factory=list)
    location: str = ""
    lock: threading.Lock = field(default_factory=threading.Lock)

    def fault(self, method: str, path: str) -> str:
        """The fault of this request; empty if there is none."""
        for one in self.faults:
            if one[0] == method and one[1] in path:
                self.faults.remove(one)
                return one[2]
        return ""


@contextmanager
def serving() -> Iterator[Files]:
    """A server on a free port, until the end of the block."""
    files = Files()

    class Handler(_Handler):
        held = files

    with web.serving(web.server_of(Handler)) as server:
        files.url = f"http://127.0.0.1:{server.server_port}"
        yield files


class _Handler(web.Handler):
    held: Files
    timeout = 10

    def do_PUT(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        with self.held.lock:
            fault = self.admitted()
            if fault is None:
                return None
            if fault == "cut":
                body = body[: len(body) // 2]
            there = self.path in self.held.content
            if there and self.held.conditions and self.headers["If-None-Match"] == "*":
                return self.answer(412)
            if there and not self.held.overwriting:
                return self.answer(403, b"no overwriting here", "text/plain")
            self.held.content[self.path] = body
        if fault == "lost":
            return self.connection.shutdown(socket.SHUT_RDWR)
        return self.answer(201)

    def do_GET(self) -> None:
        with self.held.lock:
            fault = self.admitted()
            content = self.held.content.get(self.path)
        if fault is None:
            return None
        if content is None:
            return self.answer(404)
        return self.answer(200, content, cut=fault == "cut")

    def do_HEAD(self) -> None:
        self.do_GET()

    def admitted(self) -> str | None:
        """The fault of this request; None if it was answered already."""
        self.held.seen.append(f"{self.command} {self.path}")
        self.held.sent.append(self.headers["Authorization"])
        if self.held.authorization and self.headers["Authorization"] != self.held.authorization:
            return self.answer(401)
        fault = self.held.fault(self.command, self.path)
        return self.answer(int(fault)) if fault.isdigit() else fault

    def answer(
        self, status: int, content: bytes = b"", kind: str = "", *, cut: bool = False
    ) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if status == 307:
            self.send_header("Location", self.held.location)
        if kind:
            self.send_header("Content-Type", kind)
        if self.held.counting and status == 200:
            self.send_header("X-Checksum-Sha256", hashlib.sha256(content).hexdigest())
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[: len(content) // 2] if cut else content)
