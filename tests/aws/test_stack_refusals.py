"""Stacks when AWS is slow or refuses calls: what is still reported."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import boto3
import pytest

from aws.conftest import Bench
from aws.test_stacks import parameters, stack_of, stacks_left, template, up
from pytest_ephemeral import providers
from pytest_ephemeral.errors import (
    ConfigurationError,
    DestroyError,
    EphemeralError,
    UnverifiedDestroyError,
)
from pytest_ephemeral.providers.cloudformation import stacks
from support.waiting import until


@pytest.mark.parametrize(
    ("code", "said"), [("AccessDenied", "AWS: .* not do this"), ("Throttling", "Throttling")]
)
def test_unreadable_stack_events_are_reported(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, code: str, said: str
) -> None:
    """The log fails soon, and it is unknown whether a deleted stack retains resources."""
    monkeypatch.setattr("pytest_ephemeral.aws._PATIENT", 2)
    monkeypatch.setattr("pytest_ephemeral.aws._clients", {})
    environment = up(bench, template(bench))
    bench.account.fault("DescribeStackEvents", code, times=99)
    bench.account.calls()
    with pytest.raises(EphemeralError, match=said):
        providers.load("cloudformation").logs(environment)
    assert bench.account.calls().count("cloudformation:DescribeStackEvents") <= 2
    with pytest.raises(UnverifiedDestroyError, match="retains something can't be seen"):
        bench.lifecycle.destroy(environment)
    assert stacks_left() == []
    bench.lifecycle.destroy(environment)


def test_a_slow_request_about_one_stack_delays_no_other(bench: Bench) -> None:
    """Each stack is polled by itself."""
    client = boto3.client("cloudformation")
    bench.account.fault("DescribeStacks", kind="delay", seconds=3.0)
    bench.account.calls()
    slow = threading.Thread(target=stacks.look, args=(client, "slow"))
    slow.start()
    until(lambda: "cloudformation:DescribeStacks" in bench.account.calls())
    assert stacks.look(client, "other") is None
    assert slow.is_alive()
    slow.join()


def test_a_stack_works_without_permission_to_list_instances(bench: Bench) -> None:
    """Its state is then the stack's own status, and its deletion does not need EC2."""
    kinds = {"Group": {"Type": "AWS::EC2::SecurityGroup", "Properties": {"GroupDescription": "x"}}}
    bench.account.fault("DescribeInstances", "UnauthorizedOperation", times=99)
    environment = up(bench, template(bench, resources=kinds))
    provider = providers.load("cloudformation")
    assert provider.status(environment).detail == "stack CREATE_COMPLETE"
    provider.extend(environment, datetime.now(UTC) + timedelta(hours=1))
    bench.lifecycle.destroy(environment)
    assert stacks_left() == []


def test_a_missing_variable_is_an_error_before_anything_is_created(bench: Bench) -> None:
    """A parameter names it, or names an image whose ``pass-env`` contains it."""
    bench.keys = {"pass_env": ["NOT_SET_HERE"]}
    bench.account.calls()
    with pytest.raises(ConfigurationError, match=r"passes NOT_SET_HERE .*pass-env"):
        up(bench, parameters(bench, {"Given": "{image:app}"}))
    with pytest.raises(ConfigurationError, match="NOT_SET_HERE, which is not set"):
        up(bench, parameters(bench, {"Given": "{env:NOT_SET_HERE}"}))
    called = set(bench.account.calls())
    assert not called & {"cloudformation:CreateStack", "ec2:RunInstances"}
    assert bench.ledger.entries() == []


def test_a_stack_that_is_being_changed_is_deleted_afterwards(bench: Bench) -> None:
    """CloudFormation refuses to delete a stack during an update."""
    environment = up(bench, template(bench))
    bench.account.tell("times", stack=0.5)
    found = stack_of(environment)
    tags = [*found["Tags"], {"Key": "team", "Value": "billing"}]
    client = boto3.client("cloudformation")
    client.update_stack(StackName=found["StackId"], UsePreviousTemplate=True, Tags=tags)
    bench.lifecycle.destroy(environment)
    assert stacks_left() == []


def test_a_stack_whose_exports_are_in_use_is_named(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CloudFormation accepts the deletion, but leaves the stack as it was, without an error."""
    monkeypatch.setattr(stacks, "VISIBLE", 0.3)
    monkeypatch.setattr(stacks, "DELETING", 5.0)
    environment = up(bench, template(bench))
    reason = "Export orders cannot be deleted as it is in use by billing"
    bench.account.tell("failing", Outputs=reason)
    with pytest.raises(DestroyError, match=f"is still CREATE_COMPLETE: {reason}"):
        bench.lifecycle.destroy(environment)
    bench.account.tell("failing")
    bench.lifecycle.destroy(environment)
    assert stacks_left() == []
