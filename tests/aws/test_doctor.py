"""What ``doctor`` tries of EC2 and CloudFormation: all that the project needs, and no more."""

from __future__ import annotations

import pytest

from aws.conftest import Bench
from aws.project import Project
from pytest_ephemeral import aws, providers
from pytest_ephemeral.providers.protocol import Check

STACK = """
[templates.stack]
provider = "cloudformation"
file = "stack.yaml"
url = "http://{output:Host}"
"""


#: What can only be tried on an instance that is there.
ON_INSTANCES = {"TerminateInstances", "CreateReplaceRootVolumeTask"}


def checked(bench: Bench) -> dict[str, Check]:
    """What the ec2 provider says of the bench's project, by name."""
    found = providers.load("ec2").check_permissions(
        list(bench.config.templates.values()), list(bench.config.images.values()), bench.folder
    )
    return {one.name: one for one in found}


def test_what_is_needed_is_tried_and_nothing_is_made(bench: Bench) -> None:
    """By DryRun: launching each template, baking each image, and all looks."""
    bench.account.calls()
    bench.account.asked("CreateSecurityGroup")
    found = checked(bench)
    assert {name: one.ok for name, one in found.items()} == {
        "look in us-east-1": True,
        "launch web": True,
        "bake app": True,
    }
    assert bench.account.left() == []
    assert bench.account.calls().count("ec2:RunInstances") == 2
    asked = bench.account.asked("CreateSecurityGroup")
    assert [form["DryRun"] for form in asked] == ["true", "true"]


@pytest.mark.parametrize(
    ("action", "failing"),
    [
        ("RunInstances", {"launch web", "bake app"}),
        ("CreateSecurityGroup", {"launch web", "bake app"}),
        ("DescribeVolumes", {"look in us-east-1"}),
        ("DescribeSnapshots", {"look in us-east-1"}),
        ("TerminateInstances", {"look in us-east-1"}),
        ("DescribeInstanceTypes", {"launch web"}),
        ("DescribeReplaceRootVolumeTasks", {"launch web"}),
        ("CreateReplaceRootVolumeTask", {"launch web"}),
    ],
)
def test_what_is_refused_is_named(bench: Bench, action: str, failing: set[str]) -> None:
    """With the call; and the others are tried all the same."""
    environment = None
    bench.config.templates = {"web": bench.template(rollback="each")}
    if action in ON_INSTANCES:
        bench.bake()
        environment = bench.lifecycle.bring_up(bench.template()).environment
    bench.account.fault(action, "UnauthorizedOperation", times=9)
    found = checked(bench)
    bench.account.tell("faults")
    assert {name for name, one in found.items() if not one.ok} == failing
    assert all(f"may not do this ({action})" in found[name].detail for name in failing)
    if environment is not None:
        bench.lifecycle.destroy(environment)


def test_what_is_wrong_in_a_request_is_named(bench: Bench) -> None:
    """As launching would name it, before anything is baked."""
    bench.config.templates = {"web": bench.template(instance_type="t3.none")}
    assert "Invalid value 't3.none'" in checked(bench)["launch web"].detail
    bench.config.templates = {"web": bench.template(subnet="subnet-0123456789abcdef0")}
    assert "there is no subnet subnet-0123" in checked(bench)["launch web"].detail


def test_what_no_template_uses_is_not_tried(bench: Bench) -> None:
    """It is not used here; that is no failure, whatever would be refused."""
    bench.config.templates, bench.config.images = {}, {}
    bench.account.fault(".*", "UnauthorizedOperation", times=9)
    found = checked(bench)
    assert {name: (one.ok, one.detail) for name, one in found.items()} == {
        "launch": (True, "not used here"),
        "bake": (True, "not used here"),
    }


def test_an_endpoint_that_ignores_dry_runs_is_asked_for_nothing_else(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some emulators do what is only tried: they would launch, and end an instance of ours."""
    client = aws.client("ec2")
    look = client.describe_instances
    monkeypatch.setattr(client, "describe_instances", lambda **asked: look())
    bench.account.calls()
    found = checked(bench)
    assert [(one.ok, one.detail.split(":")[0]) for one in found.values()] == [(True, "not tried")]
    assert {name for name in bench.account.calls() if "Describe" not in name} <= {
        "sts:GetCallerIdentity"
    }


def test_the_command_says_it(bench: Bench) -> None:
    """And exits with 1; of stacks, it says whether their file can be read."""
    project = Project(bench, STACK)
    (project.folder / "stack.yaml").write_text("Resources: {Topic: {Type: AWS::SNS::Topic}}")
    done = project.run("doctor")
    assert "ok   launch web: EC2 would allow it" in done.stdout
    assert "ok   stack stack: CloudFormation accepts stack.yaml" in done.stdout
    (project.folder / "stack.yaml").unlink()
    bench.account.fault("RunInstances", "UnauthorizedOperation", times=9)
    done = project.run("doctor", status=1)
    assert "FAIL launch web: AWS: these credentials may not do this (RunInstances)" in done.stdout
    assert "FAIL stack stack: templates.stack.file" in done.stdout
