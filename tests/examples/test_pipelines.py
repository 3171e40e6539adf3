"""The documented pipelines are valid for their CI, and work when they are run.

The tests do what a CI's runner does: they run each job's commands in order, with the variables of
the file, and pass from job to job what commands have written to certain files.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from examples.walkthrough import ROOT, Walk
from pytest_ephemeral.cli import build_parser
from support import processes
from support.plugin_project import without_plugins
from support.shop import copy_shop

PIPELINES = ROOT / "docs" / "how-to" / "pipelines"
GITHUB = PIPELINES / "github-actions.yml"
GITLAB = PIPELINES / "gitlab-ci.yml"
JENKINS = PIPELINES / "Jenkinsfile"
GITHUB_HOSTED = PIPELINES / "github-hosted.yml"
GITLAB_HOSTED = PIPELINES / "gitlab-hosted.yml"

PROMOTION = """
[promotion.production]
dns = "hosts"
record = "shop.test"
file = "hosts"
verify = { http = "/healthz" }
requires = ["acceptance", "approval"]
drain = "1s"
"""

#: Variables that a runner adds to each job: a secret, and a selection of the shop's tests, all of
#: which run where the shop's own page is followed.
RUNNER = {"SHOP_KEY": "of-this-test", "PYTEST_ADDOPTS": f"{without_plugins()} -k test_browsing"}

#: Each of these runs a dozen programs, which take long on a loaded machine.
pytestmark = pytest.mark.timeout(480)

#: The steps that the docs describe for a pipeline, in this order.
STAGES = ["artifact push", "bake", "up", "approval request", "approve", "promote"]


# -- syntax ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schema", "files"),
    [
        (["vendor.github-workflows"], [GITHUB, GITHUB_HOSTED]),
        (["custom.github-workflows-require-timeout"], [GITHUB, GITHUB_HOSTED]),
        (["vendor.gitlab-ci", "--data-transform", "gitlab-ci"], [GITLAB, GITLAB_HOSTED]),
    ],
    ids=["github", "github-timeouts", "gitlab"],
)
def test_pipelines_are_valid_for_their_ci(schema: list[str], files: list[Path]) -> None:
    """Each file matches the schema of its CI; each job on GitHub has a timeout."""
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", *schema, *files]
    processes.run(*argv, timeout=60)


def test_the_jenkinsfile_is_well_formed() -> None:
    """Its blocks and strings are closed, and every stage has steps."""
    text = re.sub(r"//.*", "", JENKINS.read_text())
    text = re.sub(r"'''.*?'''|'[^'\n]*'|\"[^\"\n]*\"", "S", text, flags=re.DOTALL)
    assert not set("'\"") & set(text)
    depth = 0
    for letter in text:
        depth += {"{": 1, "}": -1}.get(letter, 0)
        assert depth >= 0
    assert depth == 0
    assert text.strip().startswith("pipeline {")
    assert text.count("stage(S)") == text.count("steps {") == 7
    for part in ("agent {", "options {", "triggers {", "environment {", "post {"):
        assert part in text


def test_each_pipeline_cancels_old_runs_and_reaps() -> None:
    """A newer push cancels the older run, and a scheduled job reaps what is left."""
    github, gitlab, jenkins = (
        yaml.safe_load(GITHUB.read_text()),
        yaml.safe_load(GITLAB.read_text()),
        JENKINS.read_text(),
    )
    assert github[True]["schedule"]  # YAML 1.1 reads the key `on` as True
    assert "pull_request" in github["concurrency"]["cancel-in-progress"]
    assert github["jobs"]["reap"]["if"] == "github.event_name == 'schedule'"
    assert gitlab["workflow"]["auto_cancel"] == {"on_new_commit": "interruptible"}
    assert gitlab["reap"]["rules"] == [{"if": '$CI_PIPELINE_SOURCE == "schedule"'}]
    assert "abortPrevious: true" in jenkins
    assert "cron(" in jenkins


# -- run -------------------------------------------------------------------------------------


class Project:
    """A copy of the example to release, on one machine for all jobs."""

    def __init__(self, walk: Walk) -> None:
        self.walk = walk
        self.folder = walk.folder
        self.commands: list[str] = []

    def run(self, script: str, variables: Mapping[str, str]) -> None:
        """Run one step's commands."""
        self.commands += commands_of(script)
        bash = ["bash", "-eo", "pipefail", "-c", script]
        environ = {**self.walk.variables(), **RUNNER, **variables}
        processes.run(*bash, folder=self.folder, environ=environ, timeout=400)


@pytest.fixture(scope="session")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A shared image root: the first test bakes the shop, and the tests of all workers use it."""
    own = tmp_path_factory.getbasetemp()
    return (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "trees-of-pipelines"


@pytest.fixture
def project(tmp_path: Path, trees: Path) -> Iterator[Project]:
    """The project; its production environment is destroyed after the test."""
    folder = copy_shop(tmp_path / "shop")
    with (folder / "ephemeral.toml").open("a") as configuration:
        configuration.write(PROMOTION)
    walk = Walk(folder, tmp_path / "machine", trees)
    yield Project(walk)
    walk.run(shlex.join(["pytest-ephemeral", "down", "--production", *walk.left()]))
    assert walk.left() == []


def commands_of(script: str) -> list[str]:
    """The pytest-ephemeral commands of a script, without the shell's syntax."""
    joined = re.sub(r"\\\n\s*", " ", script)
    return re.findall(r"pytest-ephemeral ([^\n|)]+)", joined)


def check(project: Project) -> None:
    """All steps ran in order, every command is valid, and the history has the approver."""
    for command in project.commands:
        build_parser().parse_args(shlex.split(command))
    ran = [stage for command in project.commands for stage in STAGES if command.startswith(stage)]
    assert [stage for stage in ran if stage != "reap"] == STAGES
    done = project.walk.run("pytest-ephemeral history production --json")
    assert '"anna"' in done.stdout
    assert "shop.test" in (project.folder / "hosts").read_text()


def test_the_gitlab_pipeline_releases_to_production(project: Project) -> None:
    """Each job's script runs with the variables of earlier dotenv reports."""
    pipeline = yaml.safe_load(GITLAB.read_text())
    handed = {"GITLAB_CI": "true", "CI_PIPELINE_ID": "7", "GITLAB_USER_LOGIN": "anna"}
    for name in ("build", "bake", "acceptance", "candidate", "approve", "promote"):
        job = pipeline[name]
        project.run("\n".join(job["script"]), handed)
        project.run("\n".join(job.get("after_script", [])), handed)
        if report := job.get("artifacts", {}).get("reports", {}).get("dotenv"):
            lines = (project.folder / report).read_text().splitlines()
            handed |= dict(line.split("=", 1) for line in lines)
    check(project)
    assert handed["EPHEMERAL_URL"].startswith("http://127.")


def test_the_github_pipeline_releases_to_production(project: Project, tmp_path: Path) -> None:
    """Each job's steps run with GitHub's outputs and variables, and the image is signed."""
    private = Ed25519PrivateKey.generate()
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()
    context = {"secrets.SIGNING_KEY": pem, "secrets.SHOP_KEY": "of-this-test", "github.token": ""}
    gh = tmp_path / "bin" / "gh"
    gh.parent.mkdir()
    gh.write_text("#!/bin/sh\necho anna\n")
    gh.chmod(0o755)
    pipeline = yaml.safe_load(GITHUB.read_text())
    for name in ("build", "bake", "acceptance", "candidate", "promote"):
        run_job(project, name, pipeline["jobs"][name], context, tmp_path)
    check(project)
    public = private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    (tmp_path / "key.pub").write_bytes(public)
    verified = project.walk.run(f"pytest-ephemeral images verify shop --key {tmp_path}/key.pub")
    assert verified.returncode == 0, verified.stdout


def run_job(
    project: Project, name: str, job: Mapping[str, Any], context: dict[str, str], scratch: Path
) -> None:
    """Run one job as GitHub's runner does."""
    variables = {
        "GITHUB_ACTIONS": "true",
        "GITHUB_REPOSITORY": "anna/shop",
        "GITHUB_RUN_ID": "7",
        "PATH": f"{scratch / 'bin'}:{project.walk.variables()['PATH']}",
        **{key: resolve(value, context) for key, value in job.get("env", {}).items()},
    }
    for at, step in enumerate(job["steps"]):
        if "run" not in step:
            continue
        files = {key: scratch / f"{name}-{at}-{key}" for key in ("GITHUB_OUTPUT", "GITHUB_ENV")}
        for file in files.values():
            file.touch()
        own = {key: resolve(value, context) for key, value in step.get("env", {}).items()}
        project.run(step["run"], {**variables, **{k: str(v) for k, v in files.items()}, **own})
        variables |= read_commands(files["GITHUB_ENV"])
        for key, value in read_commands(files["GITHUB_OUTPUT"]).items():
            context[f"steps.{step.get('id')}.outputs.{key}"] = value
    for key, value in job.get("outputs", {}).items():
        context[f"needs.{name}.outputs.{key}"] = resolve(value, context)


def resolve(text: str, context: Mapping[str, str]) -> str:
    """A text with its expressions filled in."""
    return re.sub(r"\$\{\{ ([\w.-]+) \}\}", lambda found: context[found[1]], text)


def read_commands(file: Path) -> dict[str, str]:
    """The names and values in GitHub's file of outputs or variables."""
    found = re.findall(r"^(\w+)<<(\S+)\n(.*?)\n?\2\n", file.read_text(), re.MULTILINE | re.DOTALL)
    return {name: value for name, _, value in found}


def test_the_jenkins_pipeline_releases_to_production(project: Project) -> None:
    """The shell steps of all stages run, with the variables that its Groovy code sets."""
    text = JENKINS.read_text().partition("stage('Build')")[2].rpartition("\n    post {")[0]
    variables = {"JENKINS_URL": "https://jenkins", "BUILD_TAG": "shop-7", "APPROVER": "anna"}
    for long, short in re.findall(r"sh '''(.*?)'''|sh '([^']*)'", text, re.DOTALL):
        project.run(long or short, variables)
        file = project.folder / ".ephemeral" / "environments.properties"
        if file.exists() and "CANDIDATE" not in variables:
            handed = dict(line.split("=", 1) for line in file.read_text().splitlines())
            if handed["EPHEMERAL_URL"]:
                variables["CANDIDATE"] = handed["EPHEMERAL_ENVIRONMENT"]
    check(project)


@pytest.mark.parametrize("file", [GITHUB_HOSTED, GITLAB_HOSTED], ids=["github", "gitlab"])
def test_hosted_runners_share_only_artifacts(file: Path, tmp_path: Path, trees: Path) -> None:
    """Each job runs on a machine that has only the checkout, and ``dist`` of the earlier job.

    The first one may use the installed image of another test, which saves a bake.
    """
    folder, kept = tmp_path / "shop", tmp_path / "artifact"
    jobs = yaml.safe_load(file.read_text()).get("jobs") or yaml.safe_load(file.read_text())
    for name in ("bake", "acceptance"):
        copy_shop(folder)
        if name == "acceptance":
            shutil.copytree(kept, folder / "dist")
        walk = Walk(folder, tmp_path / "machine", trees if name == "bake" else None)
        project = Project(walk)
        for script in scripts_of(jobs[name]):
            project.run(script, {"CI": "true"})
        for command in project.commands:
            build_parser().parse_args(shlex.split(command))
        if name == "bake":
            shutil.copytree(folder / "dist", kept)
            assert sorted(path.suffix for path in kept.iterdir()) == [".image", ".whl"]
        else:
            report = json.loads((folder / "build" / "environments.json").read_text())
            assert {one["state"] for one in report["environments"]} == {"destroyed"}
            assert project.walk.left() == []
        for used in (folder, tmp_path / "machine"):  # the next job has another machine
            subprocess.run(["chmod", "-R", "u+w", str(used)], check=True)
            shutil.rmtree(used)


def scripts_of(job: Mapping[str, Any]) -> list[str]:
    """The commands of a job, without those that install packages."""
    steps = [step["run"] for step in job.get("steps", []) if "run" in step] or job["script"]
    return [step for step in steps if not step.startswith("pip install")]
