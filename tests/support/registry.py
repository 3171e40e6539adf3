"""A minimal container registry on loopback, without authentication.

See https://github.com/opencontainers/distribution-spec/blob/main/spec.md.
"""

from __future__ import annotations

import hashlib
import uuid
from contextlib import AbstractContextManager
from http.server import ThreadingHTTPServer

from support import web


class Registry(ThreadingHTTPServer):
    """A registry with blobs and manifests in memory."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.blobs: dict[str, bytes] = {}
        self.manifests: dict[str, tuple[str, bytes]] = {}
        self.uploads: dict[str, bytes] = {}


class Handler(web.Handler):
    server: Registry
    protocol_version = "HTTP/1.1"
    #: For an engine that tries TLS first, and must recognize HTTP.
    default_request_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path == "/v2/":
            return self._answer(200)
        kind, name = self.path.rpartition("/")[0].rpartition("/")[2], self._name()
        if kind == "blobs" and name in self.server.blobs:
            return self._answer(200, self.server.blobs[name], digest=name)
        if kind == "manifests" and name in self.server.manifests:
            media, data = self.server.manifests[name]
            return self._answer(200, data, digest=_digest(data), media=media)
        return self._answer(404, b'{"errors": [{"code": "NAME_UNKNOWN"}]}')

    do_HEAD = do_GET

    def do_POST(self) -> None:
        self._body()
        upload = uuid.uuid4().hex
        self.server.uploads[upload] = b""
        self._answer(202, location=f"{self.path.rstrip('/')}/{upload}")

    def do_PATCH(self) -> None:
        self.server.uploads[self._name()] += self._body()
        size = len(self.server.uploads[self._name()])
        self._answer(202, location=self.path, extent=f"0-{size - 1}")

    def do_PUT(self) -> None:
        if "/manifests/" in self.path:
            data = self._body()
            stored = (self.headers["Content-Type"], data)
            self.server.manifests[self._name()] = self.server.manifests[_digest(data)] = stored
        else:
            data = self.server.uploads.pop(self._name()) + self._body()
            self.server.blobs[_digest(data)] = data
        self._answer(201, digest=_digest(data), location=self.path)

    def _name(self) -> str:
        return self.path.partition("?")[0].rpartition("/")[2]

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        data = b""
        while size := int(self.rfile.readline(), 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def _answer(
        self,
        status: int,
        data: bytes = b"",
        *,
        digest: str = "",
        media: str = "application/octet-stream",
        location: str = "",
        extent: str = "",
    ) -> None:
        self.send_response(status)
        headers = {
            "Content-Type": media,
            "Content-Length": str(len(data)),
            "Docker-Content-Digest": digest,
            "Location": location,
            "Range": extent,
        }
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


def running() -> AbstractContextManager[Registry]:
    """Start a registry; its port is ``server_port``."""
    return web.serving(Registry())
