"""The permissions that the reference lists; ``conftest.py`` checks a session's calls by them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import boto3
import pytest

from aws.conftest import Bench
from aws.permissions import documented, needed, statements
from pytest_ephemeral import labels, providers


@pytest.mark.parametrize("service", ["ec2", "ssm", "cloudformation", "logs"])
def test_documented_actions_exist(service: str) -> None:
    """IAM accepts a policy with a misspelt action, which then allows nothing."""
    known = boto3.client(service, region_name="us-east-1").meta.service_model.operation_names
    named = {name for name in documented() if name.startswith(f"{service}:")}
    assert named
    assert {name.partition(":")[2] for name in named} <= set(known)


def test_calls_without_documented_permission_are_found() -> None:
    """Each call maps to the permissions that it needs; ``GetCallerIdentity`` needs none."""
    assert needed({"ec2:RunInstances", "s3:PUT", "sts:GetCallerIdentity"}) <= documented()
    assert needed({"ec2:RebootInstances"}) - documented() == {"ec2:RebootInstances"}


#: The limits of each changing action: texts that its statements must contain.
OWN = "aws:ResourceTag/pytest-ephemeral.id"
LIMITS = {
    "ec2:CreateTags": ("ec2:CreateAction", OWN),
    "ssm:SendCommand": ("ssm:resourceTag/pytest-ephemeral.id", "document/AWS-RunShellScript"),
    "ec2:CreateReplaceRootVolumeTask": (OWN, ":volume/*"),
    "iam:PassRole": ("iam:PassedToService",),
    **dict.fromkeys(
        (
            *("ec2:AuthorizeSecurityGroupIngress", "ec2:ModifyInstanceAttribute"),
            *("ec2:StartInstances", "ec2:StopInstances"),
            *("ec2:TerminateInstances", "ec2:DeleteSecurityGroup"),
            *("ec2:DeleteVolume", "ec2:DeleteNetworkInterface"),
            *("ec2:DeregisterImage", "ec2:DeleteSnapshot"),
        ),
        (OWN,),
    ),
    **dict.fromkeys(
        (
            *("cloudformation:CreateStack", "cloudformation:UpdateStack"),
            *("cloudformation:UpdateTerminationProtection", "cloudformation:DeleteStack"),
        ),
        ("stack/pytest-ephemeral-*",),
    ),
    **dict.fromkeys(("s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"), ("my-bucket",)),
}
#: Changing actions that can't be limited: a resource has no tags before its creation, and only the
#: sender of a command knows its id.
UNLIMITED = {
    *("ec2:RunInstances", "ec2:CreateSecurityGroup", "ec2:CreateImage", "ec2:CopyImage"),
    "ssm:CancelCommand",
}
READING = ("Describe", "Get", "List", "Filter")


def test_each_changing_action_is_limited_to_own_resources() -> None:
    """Other actions only read, or are the few that can't be limited."""
    for statement in statements():
        text = str(statement)
        for action in statement["Action"]:
            if action.partition(":")[2].startswith(READING) or action in UNLIMITED:
                continue
            assert any(limit in text for limit in LIMITS[action]), (action, statement["Sid"])
    for action, limits in LIMITS.items():
        texts = [str(one) for one in statements() if action in one["Action"]]
        assert all(any(limit in text for text in texts) for limit in limits), action


def test_tag_changes_stay_within_the_policy(bench: Bench) -> None:
    """``CreateTags`` calls change only keys with this tool's prefix, as the policy demands."""
    bench.account.asked("CreateTags")
    bench.bake()
    environment = bench.lifecycle.bring_up(bench.template()).environment
    providers.load("ec2").extend(environment, datetime.now(UTC) + timedelta(hours=1))
    bench.lifecycle.destroy(environment)
    changed = bench.account.asked("CreateTags")
    assert changed
    for form in changed:
        keys = {value for name, value in form.items() if name.endswith(".Key")}
        assert all(key.startswith(labels.PREFIX) for key in keys), keys
