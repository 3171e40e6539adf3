"""The permissions that the reference lists; ``conftest.py`` holds a session's calls to them."""

from __future__ import annotations

import boto3
import pytest

from aws.permissions import documented, needed


@pytest.mark.parametrize("service", ["ec2", "ssm", "cloudformation"])
def test_they_are_actions_that_there_are(service: str) -> None:
    """IAM takes a policy with an action that is misspelt, and allows nothing by it."""
    known = boto3.client(service, region_name="us-east-1").meta.service_model.operation_names
    named = {name for name in documented() if name.startswith(f"{service}:")}
    assert named
    assert {name.partition(":")[2] for name in named} <= set(known)


def test_calls_that_it_does_not_list_are_found() -> None:
    """By what a call takes; asking who one is takes nothing."""
    assert needed({"ec2:RunInstances", "s3:PUT", "sts:GetCallerIdentity"}) <= documented()
    assert needed({"ec2:RebootInstances"}) - documented() == {"ec2:RebootInstances"}
