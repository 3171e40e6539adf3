"""Readiness: it is noticed soon, failures end the wait at once, and errors explain them."""

from __future__ import annotations

import http.server
import itertools
import re
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import pytest

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.environments import probes, readiness
from pytest_ephemeral.errors import LaunchError, ReadinessError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.endpoints import make_endpoints
from pytest_ephemeral.providers.protocol import Status
from pytest_ephemeral.tables import Ready, Template
from support import web
from support.environments import make_environment


class Scripted:
    """A provider whose answers are set by the test."""

    forwards_ports = False

    def __init__(self) -> None:
        self.state = Status("running", "web (pid 12)")
        self.text = ""
        self.exits = iter([0])
        self.advice = ""

    def status(self, environment: Environment) -> Status:
        return self.state

    def logs(
        self, environment: Environment, *, since: str | None = None, tail: int | None = None
    ) -> str:
        return "\n".join(self.text[int(since or 0) :].splitlines()[-(tail or 10**6) :])

    def log_mark(self, environment: Environment) -> str:
        return str(len(self.text))

    def hint(self, environment: Environment) -> str:
        return self.advice

    def run(self, environment, argv, *, timeout):
        return subprocess.CompletedProcess(argv, next(self.exits), "", "no such table\n")


@contextmanager
def answering(status: int, *, after: float = 0.0) -> Iterator[Environment]:
    """The environment of an HTTP server that answers with one status."""

    class Handler(web.Handler):
        def do_GET(self) -> None:
            good = self.headers.get("X-Key") == "k" if self.path == "/keyed" else True
            self.answer(status if good else 403)

    server = http.server.HTTPServer(("127.0.0.1", 0), Handler, bind_and_activate=False)
    server.server_bind()
    timer = threading.Timer(after, server.server_activate)
    timer.start()
    thread = threading.Thread(target=lambda: (timer.join(), server.serve_forever(0.01)))
    thread.start()
    try:
        yield environment(server.server_port)
    finally:
        timer.join()
        server.shutdown()
        thread.join()
        server.server_close()


def environment(port: int) -> Environment:
    endpoints = make_endpoints("127.0.0.1", {"http": port})
    return make_environment(provider="scripted", endpoints=endpoints)


def wait(env: Environment, ready: Ready | None, provider: Scripted, **kwargs) -> None:
    template = Template(name="staging", provider="scripted", port=1, ready=ready)
    wanted = readiness.probes_for(env, template, provider, ready.headers if ready else {})
    timeout = ready.timeout if ready else 5.0
    cancelled = kwargs.pop("cancelled", threading.Event())
    readiness.wait(env, provider, wanted, timeout=timeout, cancelled=cancelled, **kwargs)


@pytest.fixture
def unused_port() -> Iterator[int]:
    """A port that refuses connections: it is bound, but no process listens on it."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_successful_http_response_is_ready() -> None:
    """Without ``status``, any status from 200 to 399 is accepted."""
    with answering(302) as env:
        wait(env, Ready(http="/healthz"), Scripted())


def test_http_probes_send_the_configured_headers() -> None:
    """The server refuses requests without the header of ``headers``."""
    with answering(200) as env:
        wait(env, Ready(http="/keyed", headers={"X-Key": "k"}), Scripted())


def test_a_readiness_timeout_reports_status_and_log() -> None:
    """The error has the last response, the state of the processes, a hint, and the log."""
    provider = Scripted()
    provider.text = "starting\nmigrating\n"
    provider.advice = "start it with --host $HOST"
    with (
        answering(503) as env,
        pytest.raises(ReadinessError) as caught,
    ):
        wait(env, Ready(http="/healthz", timeout=Duration(0.5)), provider)

    told = str(caught.value)
    assert "was not ready within 0.5 s" in told
    assert re.search(r"GET http://127.0.0.1:\d+/healthz: status 503", told)
    assert "running, web (pid 12)" in told
    assert "hint: start it with --host $HOST" in told
    assert "    migrating" in told


def test_a_listed_status_is_ready() -> None:
    """``status`` may be one status or a list."""
    with answering(401) as env:
        wait(env, Ready(http="/", status=401), Scripted())
        wait(env, Ready(http="/", status=[200, 401]), Scripted())


def test_a_late_listener_is_noticed_within_the_longest_pause() -> None:
    """The limit has half a second more, for a busy machine."""
    started = time.monotonic()
    with answering(200, after=0.3) as env:
        wait(env, Ready(http="/"), Scripted())
        took = time.monotonic() - started

    assert 0.29 < took < 0.3 + readiness.LONGEST_PAUSE + 0.5  # for a busy machine


def test_without_ready_every_port_must_accept(unused_port: int) -> None:
    """With ``tcp``, a port that refuses connections causes a time-out."""
    with answering(200) as env:
        wait(env, None, Scripted())
    with pytest.raises(ReadinessError, match=f"connect to 127.0.0.1:{unused_port}: .*refused"):
        wait(environment(unused_port), Ready(tcp=True, timeout=Duration(0.05)), Scripted())


def test_waiting_ends_when_the_application_stops(unused_port: int) -> None:
    """The error has the exit status and the last lines of the log, but no hint."""
    provider = Scripted()
    provider.state = Status("exited", "web (pid 12) exited with status 3 after 0.2 s")
    provider.text = "Traceback\nKeyError: 'SHOP_KEY'\n"
    provider.advice = "none of its processes listens"  # not the cause: all have ended
    started = time.monotonic()
    error = r"(?s)exited with status 3.*KeyError: 'SHOP_KEY'"

    with pytest.raises(LaunchError, match=error) as caught:
        wait(environment(unused_port), Ready(http="/", timeout=Duration(60)), provider)

    assert provider.advice not in str(caught.value)
    assert time.monotonic() - started < 5


def test_cancelling_ends_the_wait(unused_port: int) -> None:
    """The wait does not continue until the time-out."""
    cancelled = threading.Event()
    cancelled.set()

    with pytest.raises(LaunchError, match="no longer needed"):
        wait(
            environment(unused_port),
            Ready(tcp=True, timeout=Duration(60)),
            Scripted(),
            cancelled=cancelled,
        )


def test_a_log_line_split_across_reads_is_found() -> None:
    """The last part of the earlier text is searched again."""
    provider = Scripted()
    probe = probes.LogProbe(
        environment(1), provider, re.compile(r"^listening on \d+$", re.MULTILINE)
    )
    seen = []
    for chunk in ("boot\nlisten", "ing on 80", "80\nmore\n"):
        provider.text += chunk
        seen.append(probe.look(1.0) == "")

    assert seen == [False, True, True]


def test_the_ready_command_must_succeed(unused_port: int) -> None:
    """It is repeated until it does. After the time-out, the error has the last failure."""
    provider = Scripted()
    provider.exits = iter([1, 1, 0])
    wait(environment(unused_port), Ready(command="check"), provider)

    provider.exits = iter([1] * 1000)
    with pytest.raises(ReadinessError, match="'check' exited with status 1: no such table"):
        wait(environment(unused_port), Ready(command="check", timeout=Duration(0.05)), provider)


def test_all_probes_must_succeed() -> None:
    """A successful HTTP probe is not enough if ``ready`` has a log line, too."""
    provider = Scripted()
    with answering(200) as env:
        with pytest.raises(ReadinessError, match="/worker up/ is not in its log"):
            wait(env, Ready(http="/", log="worker up", timeout=Duration(0.05)), provider)
        provider.text = "worker up\n"
        wait(env, Ready(http="/", log="worker up"), provider)


def test_pauses_grow_from_2_to_50_ms(unused_port: int) -> None:
    """Each pause is 2 % of the time waited so far, which limits the delay."""
    now = 0.0
    pauses: list[tuple[float, float]] = []

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now
            assert timeout is not None
            pauses.append((now, timeout))
            now += timeout
            return now > 3

    with pytest.raises(LaunchError):
        wait(
            environment(unused_port),
            Ready(tcp=True),
            Scripted(),
            cancelled=Event(),
            clock=lambda: now,
        )

    assert pauses[0] == (0.0, 0.002)
    assert pauses[-1][1] == 0.05
    assert all(pause <= max(0.002, since * 0.02) for since, pause in pauses)
    assert len(pauses) < 250


def test_the_status_is_checked_periodically_and_at_the_end(unused_port: int) -> None:
    """A status request is slow, so it is not sent at each check, but always before success."""
    now, asked = 0.0, []

    class Clocked(Scripted):
        def status(self, environment: Environment) -> Status:
            asked.append(now)
            return super().status(environment)

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now
            now += timeout or 0.0
            if now > 3:  # it becomes ready, but has ended
                provider.text, provider.state = "up", Status("exited", "web exited with status 3")
            return False

    provider = Clocked()
    with pytest.raises(LaunchError, match="exited with status 3"):
        wait(
            environment(unused_port),
            Ready(log="up"),
            provider,
            cancelled=Event(),
            clock=lambda: now,
        )

    pauses = [later - earlier for earlier, later in itertools.pairwise(asked[:-1])]
    assert min(pauses) > 0.049
    assert asked[-1] - asked[-2] < 0.05


@contextmanager
def forwarding(*, hangs_up_after: float | None) -> Iterator[probes.TcpProbe]:
    """A probe of a port on which a forwarder accepts connections for the application.

    Args:
        hangs_up_after: Seconds until it closes each connection; None if the application listens.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:

        def accept() -> None:
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                with client:
                    if hangs_up_after is None:
                        client.recv(1)  # until the probe disconnects
                    else:
                        time.sleep(hangs_up_after)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        endpoint = make_endpoints("127.0.0.1", {"http": server.getsockname()[1]})["http"]
        yield probes.TcpProbe(endpoint, forwarded=True)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_slowly_closed_forwarded_connection_is_not_ready() -> None:
    """On a busy machine, a forwarder may accept a connection and close it only later."""
    with forwarding(hangs_up_after=0.02) as probe:
        assert "nothing listens behind it" in probe.look(1.0)
        assert "nothing listens behind it" in probe.look(1.0)


def test_an_open_forwarded_connection_is_ready() -> None:
    """A forwarder keeps a connection only if the application listens."""
    with forwarding(hangs_up_after=None) as probe:
        assert probe.look(1.0) == ""


def test_readiness_checks_all_ports(unused_port: int) -> None:
    """An HTTP probe of one port does not check a database on another port."""
    with answering(200) as env:
        beside = make_endpoints("127.0.0.1", {"database": unused_port})
        both = msgspec.structs.replace(env, endpoints={**env.endpoints, **beside})
        with pytest.raises(ReadinessError, match=f"connect to 127.0.0.1:{unused_port}"):
            wait(both, Ready(http="/healthz", timeout=Duration(0.2)), Scripted())
