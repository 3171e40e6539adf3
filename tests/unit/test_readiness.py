"""Readiness: noticed at once, given up on at once, and explained when it does not come."""

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
    """A provider that says what it is told to say."""

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
    """An HTTP server that answers everything with one status, and the environment it is."""

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
    """A port that refuses connections: bound, and not listened on."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


def test_a_successful_http_response_is_ready() -> None:
    """Any status from 200 to 399 will do when none is asked for."""
    with answering(302) as env:
        wait(env, Ready(http="/healthz"), Scripted())


def test_http_probes_send_the_configured_headers() -> None:
    """What ``headers`` says goes with each look."""
    with answering(200) as env:
        wait(env, Ready(http="/keyed", headers={"X-Key": "k"}), Scripted())


def test_a_readiness_timeout_reports_status_and_log() -> None:
    """The time-out says what was last answered, how its processes are, and what it printed."""
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
    """``status`` may be one, or several."""
    with answering(401) as env:
        wait(env, Ready(http="/", status=401), Scripted())
        wait(env, Ready(http="/", status=[200, 401]), Scripted())


def test_a_late_listener_is_noticed_within_the_longest_pause() -> None:
    """From its first answer to being noticed passes no more than the longest pause."""
    started = time.monotonic()
    with answering(200, after=0.3) as env:
        wait(env, Ready(http="/"), Scripted())
        took = time.monotonic() - started

    assert 0.29 < took < 0.3 + readiness.LONGEST_PAUSE + 0.5  # of a machine that is busy


def test_without_ready_every_port_must_accept(unused_port: int) -> None:
    """A template that says nothing is ready when its ports are."""
    with answering(200) as env:
        wait(env, None, Scripted())
    with pytest.raises(ReadinessError, match=f"connect to 127.0.0.1:{unused_port}: .*refused"):
        wait(environment(unused_port), Ready(tcp=True, timeout=Duration(0.05)), Scripted())


def test_waiting_ends_when_the_application_stops(unused_port: int) -> None:
    """Not at the time-out; with its exit status and its last lines."""
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
    """Whoever cancels is not kept waiting."""
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
    """The end of what was read before is looked at again."""
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
    """It is looked at again until it does; the last failure is told."""
    provider = Scripted()
    provider.exits = iter([1, 1, 0])
    wait(environment(unused_port), Ready(command="check"), provider)

    provider.exits = iter([1] * 1000)
    with pytest.raises(ReadinessError, match="'check' exited with status 1: no such table"):
        wait(environment(unused_port), Ready(command="check", timeout=Duration(0.05)), provider)


def test_all_probes_must_succeed() -> None:
    """HTTP alone is not enough when a log line is asked for too."""
    provider = Scripted()
    with answering(200) as env:
        with pytest.raises(ReadinessError, match="/worker up/ is not in its log"):
            wait(env, Ready(http="/", log="worker up", timeout=Duration(0.05)), provider)
        provider.text = "worker up\n"
        wait(env, Ready(http="/", log="worker up"), provider)


def test_pauses_grow_from_2_to_50_ms(unused_port: int) -> None:
    """Each is a fiftieth of what was waited so far: that is how late anything is noticed."""
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
    """A platform takes longer to say so than a port to refuse; ready is only what still runs."""
    now, asked = 0.0, []

    class Clocked(Scripted):
        def status(self, environment: Environment) -> Status:
            asked.append(now)
            return super().status(environment)

    class Event(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            nonlocal now
            now += timeout or 0.0
            if now > 3:  # it is ready, and has ended
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
    """A probe of a port that something accepts for in the application's name.

    Args:
        hangs_up_after: Seconds until it does, as nobody listens behind it; None: somebody does.
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
                        client.recv(1)  # until the probe has gone
                    else:
                        time.sleep(hangs_up_after)

        thread = threading.Thread(target=accept, daemon=True)
        thread.start()
        endpoint = make_endpoints("127.0.0.1", {"http": server.getsockname()[1]})["http"]
        yield probes.TcpProbe(endpoint, forwarded=True)
        server.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_slowly_closed_forwarded_connection_is_not_ready() -> None:
    """On a busy machine, an accepted connection is not taken for the application's at once."""
    with forwarding(hangs_up_after=0.02) as probe:
        assert "nothing listens behind it" in probe.look(1.0)
        assert "nothing listens behind it" in probe.look(1.0)


def test_an_open_forwarded_connection_is_ready() -> None:
    """A connection that stays is the application's."""
    with forwarding(hangs_up_after=None) as probe:
        assert probe.look(1.0) == ""


def test_readiness_checks_all_ports(unused_port: int) -> None:
    """A probe of one port says nothing of a database beside it."""
    with answering(200) as env:
        beside = make_endpoints("127.0.0.1", {"database": unused_port})
        both = msgspec.structs.replace(env, endpoints={**env.endpoints, **beside})
        with pytest.raises(ReadinessError, match=f"connect to 127.0.0.1:{unused_port}"):
            wait(both, Ready(http="/healthz", timeout=Duration(0.2)), Scripted())
