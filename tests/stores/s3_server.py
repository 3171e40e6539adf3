"""An S3 server for tests: moto in a process of its own, made as strict as S3.

moto checks a condition, then writes, then adds the metadata; in between, another thread may write.
S3 decides in one step, so requests are handled one at a time here. moto also accepts any checksum;
S3 refuses a body that does not match it.

``POST /faults`` with a JSON object sets faults for the next requests.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import requests

#: The names on one page of a listing; S3 has a thousand.
PAGE = 50


class Server:
    """The server as tests see it: its URL, its requests and its faults."""

    def __init__(self, url: str) -> None:
        self.url = url

    def fail(self, fault: str, *, method: str, part: str, times: int = 1) -> None:
        """Make the next requests fail.

        Args:
            fault: ``lost`` (done, but not answered), ``cut`` (half an answer), ``damaged`` (a byte
                of the received body is changed), ``ignore NAME`` (a header that is ignored), or a
                status and a code, such as ``503 SlowDown``.
            method: The method of these requests.
            part: A part of their path and query.
            times: The number of requests.
        """
        fault = {"fault": fault, "method": method, "part": part, "times": times}
        requests.post(f"{self.url}/faults", json=fault, timeout=10).raise_for_status()

    def requests(self) -> list[str]:
        """Method, path and query of all requests since the last call."""
        return requests.get(f"{self.url}/faults", timeout=10).json()


@contextmanager
def serving() -> Iterator[Server]:
    """A server, until the end of the block."""
    settings = {"MOTO_EC2_LOAD_DEFAULT_AMIS": "false", "MOTO_S3_DEFAULT_MAX_KEYS": str(PAGE)}
    environ = {**os.environ, **settings}
    process = subprocess.Popen(
        [sys.executable, __file__], stdout=subprocess.PIPE, text=True, env=environ
    )
    assert process.stdout is not None
    with process.stdout:
        try:
            port = process.stdout.readline().strip()
            assert port, "the server did not start"
            yield Server(f"http://127.0.0.1:{port}")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


class Strict:
    """The application in front of moto."""

    def __init__(self, application: Callable[..., Iterable[bytes]]) -> None:
        self.application = application
        self.lock = threading.Lock()
        self.faults: list[dict[str, Any]] = []
        self.seen: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        with self.lock:
            if environ["PATH_INFO"] == "/faults":
                return self.control(environ["REQUEST_METHOD"], body, start_response)
            return self.answer(environ, body, start_response)

    def control(self, method: str, body: bytes, start_response: Any) -> Iterable[bytes]:
        seen, self.seen = self.seen, []
        if method == "POST":
            self.faults.append(json.loads(body))
        start_response("200 OK", [("Content-Type", "application/json")])
        return [json.dumps(seen).encode()]

    def answer(self, environ: dict[str, Any], body: bytes, start_response: Any) -> Iterable[bytes]:
        fault = self.fault(environ)
        if fault == "damaged":
            body = bytes([body[0] ^ 1]) + body[1:]
        if fault.startswith("ignore "):
            environ.pop(f"HTTP_{fault.split()[1].upper().replace('-', '_')}", None)
        if fault[:1].isdigit():
            return refuse(fault, start_response)
        sent = environ.get("HTTP_X_AMZ_CHECKSUM_SHA256")
        if sent and sent != base64.b64encode(hashlib.sha256(body).digest()).decode():
            return refuse("400 BadDigest", start_response)
        environ["wsgi.input"] = io.BytesIO(body)
        answer = b"".join(self.application(environ, start_response))
        if fault == "lost":
            environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        return [answer[: len(answer) // 2]] if fault == "cut" else [answer]

    def fault(self, environ: dict[str, Any]) -> str:
        target = f"{environ['PATH_INFO']}?{environ.get('QUERY_STRING', '')}"
        self.seen.append(f"{environ['REQUEST_METHOD']} {target}")
        for fault in self.faults:
            if fault["method"] == environ["REQUEST_METHOD"] and fault["part"] in target:
                fault["times"] -= 1
                if not fault["times"]:
                    self.faults.remove(fault)
                return str(fault["fault"])
        return ""


def refuse(answer: str, start_response: Any) -> Iterable[bytes]:
    """An error in the format of S3."""
    status, _, code = answer.partition(" ")
    start_response(f"{status} {code}", [("Content-Type", "application/xml")])
    return [f"<Error><Code>{code}</Code><Message>said the test</Message></Error>".encode()]


def main() -> None:
    """Serve on a free port, which is printed."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    application = Strict(DomainDispatcherApplication(create_backend_app))
    server = make_server("127.0.0.1", 0, application, threaded=True)
    print(server.server_port, flush=True)
    sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - logs each request
    server.serve_forever()


if __name__ == "__main__":
    main()
