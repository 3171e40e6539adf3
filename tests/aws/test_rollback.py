"""Rollback replaces the root volume and seeds again; instance, address and URL remain."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest

from aws.conftest import Bench
from aws.project import Project
from aws.test_environments import instance
from pytest_ephemeral import providers
from pytest_ephemeral.errors import ConfigurationError, EphemeralError, UnavailableError
from pytest_ephemeral.models import Environment
from support.waiting import until
from support.web import get

SUITE = """\
import pytest

def files(environment):
    return set(environment.run(["sh", "-c", 'cd "$STATE"; ls; cat seed']).stdout.split())

@pytest.mark.parametrize("number", range(2))
def test_it(ephemeral_env, number):
    assert files(ephemeral_env) == {"seed", "seeded"}
    ephemeral_env.run(["sh", "-c", 'cd "$STATE"; echo wrong | tee wrong seed'])
    with open("seen", "a") as file:
        file.write(f"{ephemeral_env.id} {ephemeral_env.url} {ephemeral_env.handle['instances']}\\n")
"""


def test_each_test_gets_the_seeded_baseline(bench: Bench) -> None:
    """A rollback precedes each test but the first; its cost is printed at the start and the end.

    One call replaces the volume, the instance is the same, and its old volume is deleted.
    """
    project = Project(bench)
    configuration = project.folder / "ephemeral.toml"
    seed = 'seed = \'echo seeded >"$STATE/seed"\'\nrollback = "each"\n'
    configuration.write_text(
        configuration.read_text().replace("[templates.web]\n", f"[templates.web]\n{seed}")
    )
    (project.folder / "test_suite.py").write_text(SUITE)
    project.run("bake", "app")
    bench.account.calls()
    bench.account.asked("CreateReplaceRootVolumeTask")
    done = project.run("pytest", "--ephemeral-env", "-v")
    said = "each rollback takes AWS minutes: it replaces the root volume, and boots again"
    assert done.stdout.count(said) == 2, done.stdout
    assert done.stdout.index(said) < done.stdout.index("PASSED")
    one, other = (project.folder / "seen").read_text().splitlines()
    assert one == other
    calls = bench.account.calls()
    assert calls.count("ec2:CreateReplaceRootVolumeTask") == 1
    assert calls.count("ec2:RunInstances") == 1
    (asked,) = bench.account.asked("CreateReplaceRootVolumeTask")
    assert asked["DeleteReplacedRootVolume"] == "true"
    until(lambda: bench.account.left() == [])
    assert bench.account.ec2.describe_volumes()["Volumes"] == []


def up(bench: Bench, **keys: Any) -> Environment:
    bench.bake()
    template = bench.template(rollback="each", **keys)
    return bench.lifecycle.bring_up(template, rolled_back=True).environment


def test_the_log_continues_after_a_rollback(bench: Bench) -> None:
    """Line numbers restart at 1 after each boot; new lines must not be taken for old ones."""
    environment = up(bench)
    provider = providers.load("ec2")
    for word in ("one", "two", "three"):
        get(f"{environment.url}/print/{word}")
    until(lambda: "three" in str(provider.log_files(environment)))
    before = provider.log_mark(environment)
    changed = bench.lifecycle.roll_back(environment).environment
    assert provider.last_log_mark(changed) == "{}"
    until(lambda: provider.log_mark(changed) not in {before, "{}"})
    since = provider.logs(changed, since="{}")
    assert "three" not in since
    assert "started" in since
    assert "three" in provider.log_files(changed)["app"]
    bench.lifecycle.destroy(environment)


@pytest.mark.parametrize(
    ("code", "state", "said"),
    [
        ("UnauthorizedOperation", "succeeded", r"may not do this \(CreateReplaceRootVolumeTask"),
        ("", "failed-detached", "was not replaced: failed-detached"),
    ],
)
def test_a_refused_replacement_is_an_error(bench: Bench, code: str, state: str, said: str) -> None:
    """The error is one line, and the environment can still be destroyed."""
    environment = up(bench)
    bench.account.tell("tasks", state=state)
    if code:
        bench.account.fault("CreateReplaceRootVolumeTask", code)
    with pytest.raises(EphemeralError, match=said) as caught:
        bench.lifecycle.roll_back(environment)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith(f"{environment.id} can't be put back to its baseline: ")
    bench.lifecycle.destroy(environment)


def test_an_ended_application_cannot_be_rolled_back(bench: Bench) -> None:
    """Its instance has ended, so an error says so, and no replacement is requested."""
    environment = up(bench)
    with suppress(OSError):
        get(f"{environment.url}/exit/3")
    until(lambda: instance(bench, environment)["State"]["Name"] == "terminated")
    until(lambda: bench.lifecycle.status(environment).state == "exited")
    bench.account.asked("CreateReplaceRootVolumeTask")
    with pytest.raises(EphemeralError, match=r"no instance of .* runs any more|has ended"):
        bench.lifecycle.roll_back(environment)
    assert bench.account.asked("CreateReplaceRootVolumeTask") == []
    bench.lifecycle.destroy(environment)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"volumes": {"/dev/sdf": 8}}, r"templates\.web\.volumes: .* data on them stays"),
        ({"instance_type": ["t3.small", "m5d.large"]}, "m5d.large has disks of its own"),
        ({"env": {"DB": "postgres://db.example.com/x"}}, "the database at db.example.com"),
        ({"command": "serve mysql://db.example.com/x"}, "the database at db.example.com"),
    ],
)
def test_a_template_with_data_that_would_stay_is_refused(
    bench: Bench, keys: dict[str, Any], said: str
) -> None:
    """The error comes before anything is baked or launched."""
    bench.config.template = lambda _: bench.template(**keys)
    bench.account.asked("RunInstances")
    with pytest.raises(ConfigurationError, match=said):
        bench.lifecycle.check("web", rolled_back=True)
    assert bench.account.asked("RunInstances") == []


def test_unreadable_instance_types_are_reported(bench: Bench) -> None:
    """Without them, it is unknown whether a type has disks of its own, so the check fails."""
    bench.config.template = lambda _: bench.template()
    bench.account.fault("DescribeInstanceTypes", "UnauthorizedOperation")
    with pytest.raises(UnavailableError, match=r"may not do this \(DescribeInstanceTypes"):
        bench.lifecycle.check("web", rolled_back=True)


def test_an_ami_with_several_volumes_refuses_rollback(bench: Bench) -> None:
    """This is known only after the launch, but still before the first test."""
    keep = {"image": bench.account.base, "region": "us-east-1"}
    bench.account.tell("volumes", volumes=[["/dev/sdg", 7]], **keep)
    try:
        with pytest.raises(EphemeralError, match=r"volumes besides its root \(/dev/sdg\)"):
            up(bench)
    finally:
        bench.account.tell("volumes", volumes=[], **keep)
    until(lambda: bench.account.left() == [])
