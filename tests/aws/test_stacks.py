"""Stacks: what their file says, what fails, and what deleting them leaves."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from aws.conftest import Bench
from pytest_ephemeral.errors import ConfigurationError, DestroyError, LaunchError
from pytest_ephemeral.providers.cloudformation import stacks
from pytest_ephemeral.providers.cloudformation.tables import StackTemplate

RESOURCES = {"Topic": {"Type": "AWS::SNS::Topic", "Properties": {"TopicName": "orders"}}}


def template(bench: Bench, **keys: Any) -> StackTemplate:
    """A stack without instances."""
    file = Path(bench.folder) / "stack.json"
    outputs = {"Host": {"Value": "127.0.0.1"}}
    file.write_text(json.dumps({"Resources": RESOURCES, "Outputs": outputs}))
    return StackTemplate(
        **{"name": "stack", "file": file.name, "url": "http://{output:Host}", **keys}
    )


def order(bench: Bench, wanted: StackTemplate) -> Any:
    environment = bench.lifecycle._register(wanted, {}, wanted.ttl)
    return bench.lifecycle._order(environment, wanted, {})


def test_its_outputs_are_its_urls(bench: Bench) -> None:
    """With their ports, or those of their scheme; and it goes whole."""
    from pytest_ephemeral import providers

    provider = providers.load("cloudformation")
    wanted = template(bench, further={"admin": "https://{output:Host}:9443/"})
    environment = provider.launch(order(bench, wanted))
    assert environment.url == "http://127.0.0.1:80/"
    assert environment.url_for("admin") == "https://127.0.0.1:9443/"
    assert provider.status(environment).state == "running"
    provider.destroy(environment)
    assert provider.status(environment).state == "gone"


@pytest.mark.parametrize(
    ("keys", "error", "said"),
    [
        ({"file": "none.yaml"}, ConfigurationError, "can't be read"),
        ({"parameters": {"Imag": "x"}}, ConfigurationError, "no parameter 'Imag'"),
        ({"url": "http://{output:Hots}"}, LaunchError, "Did you mean 'Host'"),
    ],
)
def test_what_is_wrong_is_named(bench: Bench, keys: Any, error: Any, said: str) -> None:
    """A file, a parameter or an output that is not there; and nothing stays."""
    with pytest.raises(error, match=said):
        bench.lifecycle.bring_up(template(bench, **keys))
    assert bench.ledger.entries() == []


class Told:
    """A CloudFormation that gives one stack's events."""

    def __init__(self, status: str, *events: tuple[str, str, str]) -> None:
        self.status = status
        self.told = [
            {
                "LogicalResourceId": name,
                "ResourceType": "AWS::S3::Bucket",
                "PhysicalResourceId": f"{name.lower()}-1",
                "ResourceStatus": status,
                "ResourceStatusReason": reason,
            }
            for name, status, reason in events
        ]

    def describe_stacks(self, **_: Any) -> Any:
        return {"Stacks": [{"StackStatus": self.status}]}

    def get_paginator(self, _: str) -> Any:
        return self

    def paginate(self, **_: Any) -> Any:
        return [{"StackEvents": self.told[::-1]}]

    def delete_stack(self, **_: Any) -> None:
        """Asked."""


def test_a_failure_is_told_with_the_event_that_caused_it() -> None:
    """Not what was only cancelled because of it."""
    client = Told(
        "CREATE_FAILED",
        ("Bucket", "CREATE_FAILED", "shop-data already exists"),
        ("Queue", "CREATE_FAILED", "Resource creation cancelled"),
    )
    with pytest.raises(LaunchError, match="shop-data already exists") as caught:
        stacks.wait_until_made(client, "stack")
    assert "cancelled" not in str(caught.value)


def test_what_deleting_leaves_is_named() -> None:
    """A bucket that is not empty, and what the template retains."""
    full = Told("DELETE_FAILED", ("Bucket", "DELETE_FAILED", "The bucket is not empty"))
    with pytest.raises(DestroyError, match="The bucket is not empty"):
        stacks.delete(full, "stack", "staging-1")
    kept = Told("DELETE_COMPLETE", ("Data", "DELETE_SKIPPED", ""))
    with pytest.raises(DestroyError, match=r"Data \(AWS::S3::Bucket data-1\)"):
        stacks.delete(kept, "stack", "staging-2")
