"""Users' runs on AWS: a suite under pytest, and an environment managed by commands."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from aws.conftest import Bench
from aws.project import Project
from support.waiting import until

BOOT = """\
#!/bin/sh
token=$(curl -s -X PUT "$PYTEST_EPHEMERAL_IMDS/latest/api/token" \\
    -H 'X-aws-ec2-metadata-token-ttl-seconds: 60')
host=$(curl -s -H "X-aws-ec2-metadata-token: $token" \\
    "$PYTEST_EPHEMERAL_IMDS/latest/meta-data/local-ipv4")
COLOUR=blue exec "{python}" "$PYTEST_EPHEMERAL_ROOT"/opt/pytest-ephemeral/*/application.py \\
    "$host" 18574 >>"$PYTEST_EPHEMERAL_CONSOLE" 2>&1
"""

STACK = """
[templates.stack]
provider = "cloudformation"
file = "stack.json"
parameters = { Image = "{image:app}" }
url = "http://{output:Address}:18574"
"""

SPOT = """
[templates.spot]
image = "app"
command = 'exec "{python}" "$PREFIX/application.py" "$HOST" "$PORT"'
subnet = {subnets}
port = 18575
spot = true
"""

INTERRUPTED = """\
import json, os, time, urllib.request
from pytest_ephemeral import providers

def test_it_is_taken_away(ephemeral_env):
    said = {"id": ephemeral_env.handle["instances"], "reason": "Server.SpotInstanceTermination"}
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    url = os.environ["AWS_ENDPOINT_URL"] + "/_harness/reclaim"
    opener.open(url, data=json.dumps(said).encode(), timeout=10)
    while providers.load("ec2").status(ephemeral_env).state == "running":
        time.sleep(0.05)

def test_that_comes_after(ephemeral_env):
    pass
"""


@pytest.fixture
def project(bench: Bench) -> Project:
    """A project with another template: a stack whose instance runs the same application."""
    made = Project(bench, STACK)
    instance = {
        "ImageId": {"Ref": "Image"},
        "InstanceType": "t3.small",
        "SubnetId": bench.account.subnets[0],
        "UserData": {"Fn::Base64": BOOT.format(python=sys.executable)},
    }
    body = {
        "Parameters": {"Image": {"Type": "String"}},
        "Resources": {"One": {"Type": "AWS::EC2::Instance", "Properties": instance}},
        "Outputs": {"Address": {"Value": {"Fn::GetAtt": ["One", "PrivateIp"]}}},
    }
    (made.folder / "stack.json").write_text(json.dumps(body))
    return made


def logs_in(folder: Path) -> str:
    return "".join(file.read_text() for file in sorted(folder.rglob("*.log")))


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
@pytest.mark.parametrize("template", ["web", "stack"])
def test_a_run_passes_and_leaves_nothing(
    project: Project, bench: Bench, template: str, workers: tuple[str, ...]
) -> None:
    """The run bakes, launches and tests, and reports logs and the cost of instances."""
    written = ("--ephemeral-logs", "logs", "--ephemeral-report", "report.json")
    done = project.run(
        "pytest", "--ephemeral-env", "--ephemeral-template", template, *written, *workers
    )
    assert "2 passed" in done.stdout
    said = "these cost at most $0.01, by the table of prices"
    assert (said in done.stdout) == (template == "web")  # the cost of a stack is unknown
    assert "GET /" in logs_in(project.folder / "logs")
    (one,) = json.loads((project.folder / "report.json").read_text())["environments"]
    assert one["state"] in {"destroyed", "destroying"}  # only the owner waits for EC2
    assert one["provider"] == ("ec2" if template == "web" else "cloudformation")
    until(lambda: not bench.ledger.entries(), within=60)
    assert bench.account.left() == []


def test_a_run_attaches_to_the_environment_that_another_has_kept(
    project: Project, bench: Bench
) -> None:
    """The kept environment remains until ``down``. The second run launches nothing."""
    project.run("pytest", "--ephemeral-env", "--ephemeral-keep", "always")
    (kept,) = project.json("list")["environments"]
    assert (kept["kept"], kept["state"]) == (True, "ready")
    bench.account.calls()
    done = project.run("pytest", "--ephemeral-env", "--ephemeral-attach", kept["id"])
    assert "2 passed" in done.stdout
    assert "ec2:RunInstances" not in bench.account.calls()
    assert kept["handle"]["instances"] in str(bench.account.left())
    project.run("down", kept["id"])
    assert bench.account.left() == []


@pytest.mark.parametrize("template", ["web", "stack"])
def test_an_environment_can_be_managed_from_the_cli(
    project: Project, bench: Bench, template: str
) -> None:
    """The commands up, list, show, logs, run, extend and down work for instances and stacks."""
    made: Any = project.json("up", template, "--ttl", "1h")["environment"]
    id, expires = made["id"], made["expires_at"]
    assert [one["id"] for one in project.json("list")["environments"]] == [id]
    shown = project.json("show", id)
    assert made["url"] in json.dumps(shown)
    assert "started" in project.run("logs", id).stdout
    printed = project.run("run", id, "--", "sh", "-c", "echo in $PYTEST_EPHEMERAL_ENVIRONMENT")
    assert printed.stdout == f"in {id}\n" if template == "web" else "in \n"
    project.run("extend", id, "3h")
    assert json.dumps(project.json("show", id)).count(expires) == 0
    project.run("down", id)
    assert project.json("list")["environments"] == []
    assert bench.account.left() == []


def test_a_spot_interruption_is_reported_with_its_reason(bench: Bench) -> None:
    """The affected test or the next one reports it, not as a crash of the application."""
    subnets = json.dumps(bench.account.subnets)
    project = Project(bench, SPOT.format(python=sys.executable, subnets=subnets))
    (project.folder / "test_suite.py").write_text(INTERRUPTED)
    done = project.run(
        "pytest", "--ephemeral-env", "--ephemeral-template", "spot", "-p", "no:randomly", status=1
    )
    assert "Server.SpotInstanceTermination" in done.stdout
    until(lambda: not bench.ledger.entries(), within=60)
    assert bench.account.left() == []
