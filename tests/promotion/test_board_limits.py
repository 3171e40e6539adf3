"""Clients without a token can't make the board unreachable."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from pytest_ephemeral.promotion.board import limits, serving
from support.board import BoardStage
from support.promotion import Site
from support.waiting import until

TOKEN = "a token that nobody can guess"


@pytest.fixture
def address(served: dict[str, Site], tmp_path: Path) -> Iterator[tuple[str, int]]:
    """Serve a board in a thread of this process, and return its host and port."""
    stage = BoardStage(tmp_path, served["v1"].port)
    with serving.server(stage.project, TOKEN, "127.0.0.1", 0) as (url, run):
        threading.Thread(target=run, daemon=True).start()
        where = urlsplit(url)
        assert where.port
        yield "127.0.0.1", where.port


def page(address: tuple[str, int]) -> int:
    """The status of the page, requested on a new connection."""
    url = f"http://{address[0]}:{address[1]}/"
    headers = {"Authorization": f"Bearer {TOKEN}", "Connection": "close"}
    return requests.get(url, headers=headers, timeout=10).status_code


def test_half_open_requests_do_not_block_others(address: tuple[str, int]) -> None:
    """Of 300 connections that never finish a request, the oldest are closed."""
    with ExitStack() as stack:
        for _ in range(300):
            connection = stack.enter_context(socket.create_connection(address, timeout=10))
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert page(address) == 200
        assert page(address) == 200


@pytest.mark.parametrize("chunked", [False, True])
def test_a_huge_body_is_refused_before_it_is_read(
    address: tuple[str, int], chunked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """290 MiB without a token are refused after the first part, and never on the disk."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    head = b"POST /decide/x HTTP/1.1\r\nHost: x\r\n"
    with socket.create_connection(address, timeout=10) as connection:
        if chunked:
            connection.sendall(head + b"Transfer-Encoding: chunked\r\n\r\n")
        else:
            connection.sendall(head + f"Content-Length: {290 << 20}\r\n\r\n".encode())
        sent, answer = 0, b""
        part = b"x" * 65536
        try:
            while sent < 290 << 20:
                connection.sendall(b"10000\r\n" + part + b"\r\n" if chunked else part)
                sent += len(part)
                connection.settimeout(0.02 if sent < 10 * len(part) else 2)
                try:
                    answer = connection.recv(1024)
                    break
                except TimeoutError:
                    continue
        except OSError:
            pass  # the board has closed the connection
    assert sent < 20 << 20
    assert answer == b"" or b" 413 " in answer.split(b"\r\n")[0]
    assert page(address) == 200


def test_a_slow_request_is_closed(
    address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Activity alone does not keep a connection open."""
    monkeypatch.setattr(limits, "REQUEST", 0.5)
    with socket.create_connection(address, timeout=10) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")

        def closed() -> bool:
            try:
                connection.sendall(b"X-A: b\r\n")
                connection.settimeout(0.2)
                return connection.recv(10) == b""
            except TimeoutError:
                return False
            except OSError:
                return True

        started = time.monotonic()
        assert until(closed, within=20)
        assert time.monotonic() - started < 20
