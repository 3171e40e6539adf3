"""``doctor`` tries the calls of EC2 and CloudFormation that the project needs, and no others."""

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


#: Actions that can only be tried on an existing instance.
ON_INSTANCES = {"TerminateInstances", "CreateReplaceRootVolumeTask"}


def run_checks(bench: Bench) -> dict[str, Check]:
    """Return the ec2 provider's checks of the bench's project, by name."""
    found = providers.load("ec2").check_permissions(
        list(bench.config.templates.values()), list(bench.config.images.values()), bench.folder
    )
    return {one.name: one for one in found}


def test_doctor_checks_by_dry_run_and_creates_nothing(bench: Bench) -> None:
    """It tries each launch, each bake and all reading calls with ``DryRun``."""
    bench.account.calls()
    bench.account.asked("CreateSecurityGroup")
    found = run_checks(bench)
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
def test_doctor_names_refused_actions(bench: Bench, action: str, failing: set[str]) -> None:
    """The failed check names the action. The other checks still pass."""
    environment = None
    bench.config.templates = {"web": bench.template(rollback="each")}
    if action in ON_INSTANCES:
        bench.bake()
        environment = bench.lifecycle.bring_up(bench.template()).environment
    bench.account.fault(action, "UnauthorizedOperation", times=9)
    found = run_checks(bench)
    bench.account.tell("faults")
    assert {name for name, one in found.items() if not one.ok} == failing
    assert all(f"may not do this ({action})" in found[name].detail for name in failing)
    if environment is not None:
        bench.lifecycle.destroy(environment)


def test_doctor_names_invalid_template_values(bench: Bench) -> None:
    """The message is that of a launch, but comes before anything is baked."""
    bench.config.templates = {"web": bench.template(instance_type="t3.none")}
    assert "Invalid value 't3.none'" in run_checks(bench)["launch web"].detail
    bench.config.templates = {"web": bench.template(subnet="subnet-0123456789abcdef0")}
    assert "there is no subnet subnet-0123" in run_checks(bench)["launch web"].detail


def test_doctor_skips_unused_actions(bench: Bench) -> None:
    """Unused actions are no failure, even if they would be refused."""
    bench.config.templates, bench.config.images = {}, {}
    bench.account.fault(".*", "UnauthorizedOperation", times=9)
    found = run_checks(bench)
    assert {name: (one.ok, one.detail) for name, one in found.items()} == {
        "launch": (True, "not used here"),
        "bake": (True, "not used here"),
    }


def test_doctor_tries_nothing_if_dry_run_is_ignored(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some emulators ignore ``DryRun``: they would really launch and terminate instances."""
    client = aws.client("ec2")
    look = client.describe_instances
    monkeypatch.setattr(client, "describe_instances", lambda **asked: look())
    bench.account.calls()
    found = run_checks(bench)
    assert [(one.ok, one.detail.split(":")[0]) for one in found.values()] == [(True, "not tried")]
    assert {name for name in bench.account.calls() if "Describe" not in name} <= {
        "sts:GetCallerIdentity"
    }


def test_the_doctor_command_prints_all_checks(bench: Bench) -> None:
    """It exits with 1 if a check fails. For stacks, it checks that their file can be read."""
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
