"""Removals that AWS refuses or delays: the run fails, and the record remains until all is gone."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter

import boto3
import pytest

from aws.conftest import Bench
from aws.project import Project
from aws.test_calls import is_watching
from pytest_ephemeral import providers
from pytest_ephemeral.errors import DestroyError
from pytest_ephemeral.providers.abilities import SupportsStagedDestroy
from pytest_ephemeral.providers.ec2 import removal, removal_steps
from support.waiting import until

STACK = """
[templates.topic]
provider = "cloudformation"
file = "topic.json"
url = "{url}"
ready = {{ tcp = true }}
"""
#: The polls of a stack in one run: after its creation, before its deletion, and after it.
LOOKS = 3


def kill_owner(bench: Bench) -> str:
    """Kill the owner process, which would retry; return the id of the remaining environment."""
    (left,) = bench.ledger.entries()
    os.kill(left.owner.pid, signal.SIGKILL)
    return left.id


def test_a_refused_termination_fails_the_run(bench: Bench) -> None:
    """The run and the record contain the reason. Reap terminates the instance once it may."""
    project = Project(bench)
    project.run("bake", "app")
    bench.account.fault("TerminateInstances", "UnauthorizedOperation", times=99)
    done = project.run("pytest", "--ephemeral-env", status=1)
    id = kill_owner(bench)
    assert "2 passed" in done.stdout
    assert f"{id}" in done.stdout
    assert "may not do this (TerminateInstances)" in done.stdout
    assert "pytest-ephemeral reap" in done.stdout
    assert "TerminateInstances" in bench.ledger.get(id).problem
    assert [one for one in bench.account.left() if one.startswith("i-")]
    project.run("reap", status=6)
    bench.account.tell("faults")
    project.run("reap")
    assert bench.ledger.entries() == []
    assert bench.account.left() == []


def test_the_next_run_removes_a_leftover_security_group(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In CI, pytest waits for the removal, so the first run fails. No reap is needed."""
    monkeypatch.setenv("CI", "true")
    project = Project(bench)
    project.run("bake", "app")
    bench.account.fault("DeleteSecurityGroup", "UnauthorizedOperation", times=99)
    done = project.run("pytest", "--ephemeral-env", status=1)
    kill_owner(bench)
    assert "may not do this (DeleteSecurityGroup)" in done.stdout
    assert [one for one in bench.account.left() if one.startswith("i-")] == []
    bench.account.tell("faults")
    project.run("pytest", "--ephemeral-env")
    until(lambda: not bench.ledger.entries(), within=60)
    assert bench.account.left() == []


@pytest.mark.parametrize(
    "code", ["OperationNotPermitted", "InvalidInstanceID.NotFound", "IncorrectInstanceState"]
)
def test_each_kind_of_termination_failure_is_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, code: str
) -> None:
    """The instance is protected, reported as missing although visible, or in a wrong state."""
    bench.bake()
    environment = bench.lifecycle.bring_up(bench.template()).environment
    bench.account.fault("TerminateInstances", code, times=99)
    instance = environment.handle["instances"]
    with monkeypatch.context() as patch:
        for module in (removal, removal_steps):
            patch.setattr(module, "UNSEEN", 0.5)
            patch.setattr(module, "ENDING", 0.5)
        with pytest.raises(DestroyError, match=f"the instances {instance} have not ended"):
            bench.lifecycle.destroy(environment)
        assert instance in bench.ledger.get(environment.id).problem
        (why,) = removal.remove(bench.account.ec2, [environment.id]).values()
        assert f"the instances {instance} have not ended" in str(why)
    bench.account.tell("faults")
    bench.lifecycle.destroy(environment)
    assert bench.account.left() == []


def test_an_undeletable_security_group_is_named(bench: Bench) -> None:
    """Only the group remains; all instances have ended."""
    bench.bake()
    environment = bench.lifecycle.bring_up(bench.template()).environment
    group = environment.handle["group"]
    bench.account.fault("DeleteSecurityGroup", "UnauthorizedOperation")
    with pytest.raises(DestroyError, match=rf"{group} remains: .*\(DeleteSecurityGroup\)"):
        bench.lifecycle.destroy(environment)
    bench.lifecycle.destroy(environment)
    assert bench.account.left() == []


def test_removal_is_accepted_before_it_completes(bench: Bench) -> None:
    """It is accepted once EC2 accepts the termination, and not if EC2 refuses it."""
    bench.bake()
    environment = bench.lifecycle.bring_up(bench.template()).environment
    provider = providers.load("ec2")
    assert isinstance(provider, SupportsStagedDestroy)
    accepted: list[list[str]] = []
    bench.account.fault("TerminateInstances", "UnauthorizedOperation")
    with pytest.raises(DestroyError):
        provider.destroy_in_stages(environment, lambda: accepted.append([]))
    assert accepted == []
    bench.account.tell("times", end=0.5)
    bench.account.calls()
    provider.destroy_in_stages(environment, lambda: accepted.append(bench.account.left()))
    assert len(accepted) == 1
    assert any("shutting-down" in one for one in accepted[0])
    calls = Counter(bench.account.calls())
    assert (calls["ec2:TerminateInstances"], calls["ec2:DeleteSecurityGroup"]) == (1, 1)
    bench.ledger.remove(environment.id)


@pytest.fixture
def topic(bench: Bench) -> Project:
    """A project whose stack is one topic, without an instance; its URL is the test server's."""
    project = Project(bench, STACK.format(url=bench.account.url))
    body = {
        "Resources": {"Topic": {"Type": "AWS::SNS::Topic"}},
        "Outputs": {"Arn": {"Value": {"Ref": "Topic"}}},
    }
    (project.folder / "topic.json").write_text(json.dumps(body))
    (project.folder / "test_suite.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('number', range(10))\n"
        "def test_it(ephemeral_env, number):\n    assert ephemeral_env.url\n"
    )
    return project


def test_a_stack_without_instances_needs_no_ec2_access(topic: Project, bench: Bench) -> None:
    """It has no console: its log is its events, and no call of EC2 is made."""
    until(lambda: not is_watching())  # the poller of earlier tests
    bench.account.fault("(Describe|Run|Terminate)Instances", "UnauthorizedOperation", times=999)
    bench.account.calls()
    options = ("--ephemeral-template", "topic", "--ephemeral-logs", "logs", "-n", "2")
    done = topic.run("pytest", "--ephemeral-env", *options, PACE="users")
    assert "10 passed" in done.stdout
    until(lambda: not bench.ledger.entries(), within=60)
    calls = Counter(bench.account.calls())
    assert not [name for name in calls if name.startswith("ec2:")]
    # One poll every two seconds, however long this machine takes.
    calls["cloudformation:DescribeStacks"] = min(calls["cloudformation:DescribeStacks"], LOOKS)
    assert calls.total() <= 12, calls
    (log,) = [file for file in (topic.folder / "logs").rglob("*.log") if "stack" in file.name]
    assert "CREATE_COMPLETE" in log.read_text()


def test_retained_stack_resources_fail_the_run(topic: Project, bench: Bench) -> None:
    """The run waits for the deletion and names them, although a second attempt finds no stack."""
    file = topic.folder / "topic.json"
    body = json.loads(file.read_text())
    name = {"BucketName": "retained-by-a-run"}
    kept = {"Type": "AWS::S3::Bucket", "DeletionPolicy": "Retain", "Properties": name}
    body["Resources"]["Kept"] = kept
    file.write_text(json.dumps(body))
    done = topic.run("pytest", "--ephemeral-env", "--ephemeral-template", "topic", status=1)
    assert "Kept (AWS::S3::Bucket retained-by-a-run)" in done.stdout
    boto3.client("s3").delete_bucket(Bucket="retained-by-a-run")
    until(lambda: not bench.ledger.entries(), within=60)


def test_an_undeletable_stack_fails_the_run(topic: Project, bench: Bench) -> None:
    """The run names the stack, and ``reap`` deletes it later."""
    bench.account.fault("DeleteStack", "AccessDenied", times=99)
    done = topic.run("pytest", "--ephemeral-env", "--ephemeral-template", "topic", status=1)
    id = kill_owner(bench)
    assert id in done.stdout
    assert "may not do this (DeleteStack)" in done.stdout
    topic.run("reap", status=6)
    bench.account.tell("faults")
    topic.run("reap")
    assert bench.ledger.entries() == []
    assert bench.account.stacks.describe_stacks()["Stacks"] == []
