"""The evidence that a run leaves: reports, logs, and the result of a stage."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import jsonschema
import pytest

import pytest_ephemeral
from pytest_ephemeral import files
from pytest_ephemeral.cli import main
from support.lacks import skip_without
from support.plugin_project import PluginProject

Run = Callable[..., pytest.RunResult]

SCHEMA = Path(pytest_ephemeral.__file__).with_name("report.schema.json")

TESTS = """
def test_it(ephemeral_env): get(ephemeral_env.url, "/it")
def test_late(request): request.getfixturevalue("ephemeral_env")
def test_without(): pass
@pytest.mark.ephemeral_env(TWO)
def test_two(ephemeral_env): pass
"""


def read(file: Path) -> Any:
    return json.loads(file.read_text())


def test_the_schema_of_the_report_is_valid() -> None:
    """The schema is valid in draft 7, which editors and validators support."""
    jsonschema.Draft7Validator.check_schema(read(SCHEMA))


@pytest.mark.parametrize("keep", ["never", "always"])
def test_the_report_matches_its_schema(
    project: PluginProject, pytester: pytest.Pytester, keep: str
) -> None:
    """The schema covers destroyed and kept environments, and a failed launch."""
    project.write(
        test_it=TESTS + "\n@pytest.mark.ephemeral_env(BROKEN)\ndef test_b(ephemeral_env): 1"
    )
    pytester.runpytest_subprocess(
        "--ephemeral-env", "--ephemeral-report=r.json", "--ephemeral-keep", keep
    )
    report = read(project.folder / "r.json")
    jsonschema.validate(report, read(SCHEMA), jsonschema.Draft7Validator)
    assert {one["kept"] for one in report["environments"]} == {keep == "always"}
    assert {one["template"] for one in report["environments"]} == {project.one, project.two}
    # In its own process, as pytester unloads the modules that ``main`` imports.
    project.command("down", "--all")


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_junit_xml_names_the_environment_of_each_test(
    project: PluginProject, run: Run, workers: tuple[str, ...]
) -> None:
    """A test case has the id, template, image and URL of the environment that it used."""
    project.write(test_it=TESTS)
    run("--junitxml=j.xml", "--ephemeral-report=r.json", *workers).assert_outcomes(passed=4)
    environments = {one["id"]: one for one in read(project.folder / "r.json")["environments"]}
    cases = {
        case.get("name"): {one.get("name"): one.get("value") for one in case.iter("property")}
        for case in ET.parse(project.folder / "j.xml").iter("testcase")
    }
    assert cases.pop("test_without") == {}
    for name, template in {
        "test_it": project.one,
        "test_late": project.one,
        "test_two": project.two,
    }.items():
        properties = cases[name]
        environment = environments[properties["ephemeral_environment"]]
        assert properties == {
            "ephemeral_environment": environment["id"],
            "ephemeral_template": template,
            "ephemeral_image": environment["image"]["key"],
            "ephemeral_url": environment["url"],
        }


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
def test_html_and_allure_reports_link_to_environments(
    project: PluginProject,
    pytester: pytest.Pytester,
    workers: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each test has one link for each environment that it used."""
    monkeypatch.delenv("PYTEST_ADDOPTS")
    project.write(test_it=TESTS)
    arguments = [
        "--html=h.html",
        "--self-contained-html",
        "--alluredir=allure",
        "--ephemeral-report=r.json",
    ]
    pytester.runpytest_subprocess("--ephemeral-env", *arguments, *workers).assert_outcomes(passed=4)
    html = (project.folder / "h.html").read_text()
    results = [read(file) for file in (project.folder / "allure").glob("*-result.json")]
    links = {result["name"]: result.get("links", []) for result in results}
    environments = read(project.folder / "r.json")["environments"]
    known = [
        {"type": "link", "url": environment["url"], "name": environment["id"]}
        for environment in environments
    ]
    for test in ("test_it", "test_late", "test_two"):
        (link,) = links[test]
        assert link in known
        assert link["url"] in html
    assert links["test_without"] == []


def test_the_logs_folder_has_log_timeline_and_provenance(project: PluginProject, run: Run) -> None:
    """The folder also has the results of the readiness checks."""
    project.write(test_it="def test_it(ephemeral_env): get(ephemeral_env.url, '/it')")
    run("--ephemeral-logs=logs").assert_outcomes(passed=1)
    (folder,) = (project.folder / "logs").iterdir()
    (log,) = folder.glob("*.log")
    assert "asked for /it" in log.read_text()
    told = read(folder / "timeline.json")
    assert told["environment"] == folder.name
    phases = [moment["phase"] for moment in told["timeline"]]
    assert phases == ["launch", "ready", "up", "destroy", "destroyed"]
    moments = [moment["at"] for moment in told["timeline"]]
    assert moments == sorted(moments)
    assert all("connect to" in look["seen"] for look in told["readiness"])
    said = read(folder / "provenance.json")
    assert said["predicateType"] == "https://slsa.dev/provenance/v1"
    assert said["subject"][0]["name"] == "app"


def test_a_failed_launch_saves_its_logs(project: PluginProject, run: Run) -> None:
    """The logs are the only evidence of an environment that did not come up."""
    project.write(test_it="@pytest.mark.ephemeral_env(BROKEN)\ndef test_it(ephemeral_env): pass")
    run("--ephemeral-logs=logs").assert_outcomes(errors=1)
    (folder,) = (project.folder / "logs").iterdir()
    (log,) = folder.glob("*.log")
    assert "the database is not there" in log.read_text()
    assert [moment["phase"] for moment in read(folder / "timeline.json")["timeline"]] == [
        "launch",
        "ready",
    ]


def test_the_log_of_a_failed_test_is_printed_once(project: PluginProject, run: Run) -> None:
    """A failure has only the output of its own test, also if the teardown fails, too.

    A fixture's error shows the fixture, and no code of this plugin.
    """
    project.write(
        conftest="""
@pytest.fixture
def broken(ephemeral_env):
    raise RuntimeError
""",
        test_it="""
@pytest.fixture
def bad(ephemeral_env):
    yield
    raise RuntimeError

def test_broken(broken): pass

@pytest.mark.parametrize("n", range(5))
def test_it(ephemeral_env, bad, n):
    get(ephemeral_env.url, f"/number-{n}")
    raise AssertionError
""",
    )
    result = run()
    result.assert_outcomes(failed=5, errors=6)
    for number in range(5):
        assert result.stdout.str().count(f"asked for /number-{number}") == 1
    assert result.stdout.str().count("run it again:") == 6
    assert "def broken" in result.stdout.str()
    assert "pytest_fixture_setup" not in result.stdout.str()


def test_a_stage_is_recorded_with_commit_build_and_report(
    project: PluginProject,
    run: Run,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """``images show`` prints the stages that the image has passed."""
    monkeypatch.setenv("GITLAB_CI", "true")
    monkeypatch.setenv("CI_JOB_URL", "https://gitlab.example/anna/shop/-/jobs/7")
    monkeypatch.setenv("CI_COMMIT_SHA", "c0ffee" + "0" * 34)
    project.write(test_it="def test_it(ephemeral_env): pass")
    run("--ephemeral-stage=acceptance", "--ephemeral-report=r.json").assert_outcomes(passed=1)
    (file,) = (project.folder / ".ephemeral").glob("stages/*/acceptance/*.json")
    recorded = read(file)
    assert recorded["image"] == f"sha256:{file.parts[-3]}"
    assert (recorded["stage"], recorded["exit_status"]) == ("acceptance", 0)
    assert recorded["tests"] == {"passed": 1, "failed": 0, "skipped": 0}
    assert recorded["revision"] == "c0ffee" + "0" * 34
    assert recorded["ci"] == "gitlab"
    assert recorded["ci_url"] == "https://gitlab.example/anna/shop/-/jobs/7"
    report = project.folder / "r.json"
    assert recorded["report"] == files.digest_of(files.chunks(report))
    capsys.readouterr()
    assert main(["images", "show", "app", "--config", str(project.folder / "ephemeral.toml")]) == 0
    shown = capsys.readouterr().out
    assert "stage acceptance" in shown
    assert "passed; 1 passed;" in shown
    assert "c0ffee000000; https://gitlab.example/anna/shop/-/jobs/7" in shown


def test_a_stage_outside_ci_is_recorded_with_the_git_commit(
    project: PluginProject, run: Run
) -> None:
    """The commit is marked ``-dirty`` if files differ from it."""
    if shutil.which("git") is None:
        skip_without("git", "apt-get install git")
    project.write(test_it="def test_it(ephemeral_env): pass")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-c", "init.defaultBranch=main"]
    for command in (["init", "-q"], ["add", "ephemeral.toml"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *command], cwd=project.folder, check=True)
    project.configure((project.folder / "ephemeral.toml").read_text() + "\n")
    run().assert_outcomes(passed=1)
    (file,) = (project.folder / ".ephemeral").glob("stages/*/tests/*.json")
    head = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=project.folder, text=True)
    assert read(file)["revision"] == f"{head.strip()}-dirty"
