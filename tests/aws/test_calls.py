"""The number of calls that a run makes, counted by the server: an account's limits are shared."""

from __future__ import annotations

import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import ANY

import pytest

from aws.conftest import Bench
from aws.project import Project
from pytest_ephemeral import providers
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.errors import LaunchError
from support.waiting import until

TESTS = """\
import pytest

@pytest.mark.parametrize("number", range({count}))
def test_it(ephemeral_url, number):
    assert number != {failing}
"""

#: The number of environments at once, and the calls that each may make.
MANY = 20
EACH = 3
#: The polls of instances that a run makes here on an idle machine.
LOOKS = 1
#: Seconds between polls, as for users.
PACE = 2.0


def is_watching() -> bool:
    """Return whether this process itself polls instances."""
    return any(thread.name == "watches EC2 instances" for thread in threading.enumerate())


def run(bench: Bench, count: int, failing: int = -1) -> Counter[str]:
    """Run a suite with users' polling intervals until all is destroyed; count its calls."""
    project = Project(bench)
    (project.folder / "test_suite.py").write_text(TESTS.format(count=count, failing=failing))
    project.run("bake", "app")
    until(lambda: not is_watching())  # the poller of earlier tests
    bench.account.calls()
    started = time.monotonic()
    project.run("pytest", "--ephemeral-env", status=int(failing >= 0), PACE="users")
    until(lambda: not bench.ledger.entries(), within=60)
    calls = Counter(bench.account.calls())
    # One poll every two seconds, however long this machine takes.
    looks = calls["ec2:DescribeInstances"]
    assert looks <= 1 + (time.monotonic() - started) / PACE, calls
    return Counter({**calls, "ec2:DescribeInstances": min(looks, LOOKS)})


@pytest.mark.parametrize(("count", "most"), [(1, 9), (10, 12)])
def test_the_number_of_tests_hardly_affects_api_calls(bench: Bench, count: int, most: int) -> None:
    """The identity is requested once; the console is never read while no test fails."""
    calls = run(bench, count)
    assert calls.total() <= most, calls
    assert calls["sts:GetCallerIdentity"] == 1
    assert calls["ec2:GetConsoleOutput"] == 0


def test_failed_tests_cost_one_console_request(bench: Bench) -> None:
    """The log is read for the failed test alone, and not for the tests after it."""
    calls = run(bench, count=10, failing=4)
    assert calls["ec2:GetConsoleOutput"] == 1, calls
    assert calls.total() <= 12, calls


def test_console_reads_are_rate_limited(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeated requests for a log use the last read; only the log that is kept is read anew."""
    monkeypatch.setattr("pytest_ephemeral.providers.ec2.console.FRESH", 60.0)
    bench.bake()
    environment = bench.lifecycle.bring_up(bench.template()).environment
    provider = providers.load("ec2")
    until(lambda: "started" in str(provider.log_files(environment)))
    bench.account.calls()
    for _ in range(10):
        assert "started" in provider.logs(environment, since="")
        assert provider.logs(environment, since=provider.log_mark(environment)) == ""
    assert bench.account.calls().count("ec2:GetConsoleOutput") == 0
    provider.log_files(environment)
    assert bench.account.calls().count("ec2:GetConsoleOutput") == 1
    bench.lifecycle.destroy(environment)


def test_many_environments_share_api_calls(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """Polls, groups and terminations are shared; only the launch call is made for each."""
    monkeypatch.setattr("pytest_ephemeral.providers.ec2.instance_watcher.INTERVAL", 2.0)
    bench.bake()
    bench.account.calls()
    with ThreadPoolExecutor(MANY) as pool:
        one = bench.template()
        launched = list(pool.map(lambda _: bench.lifecycle.bring_up(one).environment, range(MANY)))
        for environment in launched:
            assert bench.lifecycle.status(environment).state == "running"
        list(pool.map(bench.lifecycle.destroy, launched))
    calls = Counter(bench.account.calls())
    assert calls.total() <= EACH * MANY, calls
    assert calls["ec2:RunInstances"] == MANY


def test_repeated_server_errors_end_the_launch_soon(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the launch nor its cleanup retries for long.

    The cleanup still gives instances that were launched after all the time to become visible.
    """
    monkeypatch.setattr("pytest_ephemeral.providers.ec2.removal.UNSEEN", 1.0)
    bench.bake()
    bench.account.fault("RunInstances", "InternalError", kind="throttle", times=99)
    bench.account.calls()
    started = time.monotonic()
    said: list[Progress] = []
    monkeypatch.setattr(bench.lifecycle, "say", said.append)
    with pytest.raises(LaunchError, match="InternalError"):
        bench.lifecycle.bring_up(bench.template())
    told = Progress(ANY, "launch", "AWS answers InternalError to RunInstances, asked 2 times")
    assert told in said
    assert time.monotonic() - started < 40
    assert bench.account.calls().count("ec2:RunInstances") <= 8


def test_instances_are_found_without_client_tokens(bench: Bench) -> None:
    """Some services compatible with EC2 return no client token; bakes and launches still work."""
    bench.account.tell("times", token=False, unseen=0.3)
    bench.bake()
    assert bench.account.left() == []
    bench.account.tell("times", unseen=0.0)
    environment = bench.lifecycle.bring_up(bench.template()).environment
    try:
        until(lambda: bench.lifecycle.status(environment).state == "running")
        bench.account.calls()
        until(lambda: "ec2:DescribeInstances" in bench.account.calls())
        assert bench.lifecycle.status(environment).state == "running"
        bench.lifecycle.destroy(environment)
    finally:
        bench.account.tell("times", token=True)
