"""``--ephemeral-approval``: a run waits until a person decides on the tested environment."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime
from typing import Any

import pytest

from pytest_ephemeral.images import stages
from pytest_ephemeral.promotion.approval_records import Approvals
from pytest_ephemeral.store import open_store
from support.plugin_project import answers
from support.processes import PROGRAM
from support.waiting import until

TESTS = "def test_a(ephemeral_url): assert get(ephemeral_url) == 'plain'"


@pytest.fixture
def store(project: Any) -> Any:
    """The project's store."""
    return open_store(".ephemeral", project.folder)


def decide(store: Any, decision: Any) -> threading.Thread:
    """Start a thread that checks the requested environment, then decides on it."""

    def person() -> None:
        approvals = Approvals(store)
        [asked] = until(approvals.entries)
        assert answers(asked.url)
        assert asked.image is not None
        [stage] = stages.list_stages(store, asked.image.key)
        assert (stage.stage, stage.tests["passed"]) == ("acceptance", 1)
        approvals.decide(
            asked.environment, decision, by="anna", comment="I looked", now=datetime.now(UTC)
        )

    thread = threading.Thread(target=person)
    thread.start()
    return thread


def test_an_approval_keeps_the_environment(project: Any, run: Any, store: Any) -> None:
    """The link is printed for the decision, and the environment stays up for a promotion."""
    project.write(test_it=TESTS)
    person = decide(store, "approved")

    result = run("--ephemeral-approval", "30", "--ephemeral-stage", "acceptance")

    person.join()
    assert result.ret == 0
    output = result.stdout.str()
    [asked] = Approvals(store).entries()
    assert f"yes: pytest-ephemeral approve {asked.environment}" in output
    assert re.search(r"approved by anna .*at .*: I looked", output)
    assert answers(asked.url)
    project.destroy_all()


def test_a_rejection_fails_the_run_and_ends_the_environment(
    project: Any, run: Any, store: Any
) -> None:
    """The tests passed and are recorded as passed, but the run exits with status 1."""
    project.write(test_it=TESTS)
    person = decide(store, "rejected")

    result = run("--ephemeral-approval", "30", "--ephemeral-stage", "acceptance")

    person.join()
    assert result.ret == 1
    result.assert_outcomes(passed=1)
    assert "rejected by anna" in result.stdout.str()
    [asked] = Approvals(store).entries()
    assert asked.image is not None
    assert stages.latest(store, asked.image)["acceptance"].exit_status == 0


def test_no_response_is_a_rejection(project: Any, run: Any, store: Any) -> None:
    """The request is recorded as timed out, and the environment is destroyed."""
    project.write(test_it=TESTS)

    result = run("--ephemeral-approval", "0.2", "-n", "2", "--ephemeral-report", "report.json")

    assert result.ret == 1
    assert "rejected: no response by 20" in result.stdout.str()
    assert [one.state for one in Approvals(store).entries()] == ["timed out"]
    [told] = json.loads((project.folder / "report.json").read_text())["environments"]
    assert told["state"] == "destroyed"


def test_failed_tests_request_no_approval(project: Any, run: Any, store: Any) -> None:
    """After failed tests there is nothing to decide on."""
    project.write(test_it="def test_a(ephemeral_url): assert 0")

    assert run("--ephemeral-approval", "30").ret == 1

    assert Approvals(store).entries() == []


def test_an_unnoticed_crash_requests_no_approval(project: Any, run: Any, store: Any) -> None:
    """The run fails, and the stage is recorded with exit status 1."""
    project.write(
        test_it="""
def test_a(ephemeral_url):
    assert get(ephemeral_url, "/crash") == ""
"""
    )

    result = run("--ephemeral-approval", "30", "--ephemeral-stage", "acceptance")

    assert result.ret == 1
    assert "no approval was requested" in result.stdout.str()
    assert Approvals(store).entries() == []
    [told] = store.records("stages/")
    assert json.loads(told[1])["exit_status"] == 1


def test_no_environment_left_to_approve_is_a_failure(project: Any, run: Any) -> None:
    """A function environment is destroyed after its test, so none is left to approve."""
    project.write(test_it="def test_a(ephemeral_env_function): pass")

    result = run("--ephemeral-approval", "30")

    assert result.ret == 1
    assert "there is no running environment to approve" in result.stdout.str()


@pytest.mark.parametrize("value", ["0", "-1", "soon", "inf", "nan"])
def test_the_approval_option_takes_seconds(project: Any, run: Any, value: str) -> None:
    """A value that is not a positive number of seconds is a usage error."""
    project.write(test_it=TESTS)
    result = run(f"--ephemeral-approval={value}")
    assert result.ret == 4
    assert "--ephemeral-approval: expected seconds" in result.stderr.str()


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_wait_leaves_the_request_open(project: Any, store: Any, end: int) -> None:
    """The environment stays up, and ``approval request --wait`` continues the wait."""
    project.write(test_it=TESTS)
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest", "--ephemeral-env", "--ephemeral-approval", "60"],
        cwd=project.folder,
        stdout=subprocess.PIPE,
        text=True,
    )
    [asked] = until(Approvals(store).entries)
    process.send_signal(end)
    output, _ = process.communicate()

    assert answers(asked.url)
    if end == signal.SIGINT:
        assert process.returncode != 0
        assert f"approval request {asked.environment} --wait" in output
    Approvals(store).decide(asked.environment, "approved", by="anna", now=datetime.now(UTC))
    again = subprocess.run(
        [
            PROGRAM,
            "approval",
            "request",
            asked.environment,
            "--wait",
            "5s",
        ],
        cwd=project.folder,
        check=False,
    )
    assert again.returncode == 0
    project.destroy_all()
