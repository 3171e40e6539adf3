"""The outputs of each CI: files, commands and summaries."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from support.publisher_events import URL
from support.publishing import CIS, Published


def test_github_gets_notices_outputs_variables_and_summary(tmp_path: Path) -> None:
    """The notice appears at launch; outputs, variables and summary follow at the end."""
    files = {name: tmp_path / name for name in ("SUMMARY", "OUTPUT", "ENV")}
    environ = {
        "GITHUB_STEP_SUMMARY": str(files["SUMMARY"]),
        "GITHUB_OUTPUT": str(files["OUTPUT"]),
        "GITHUB_ENV": str(files["ENV"]),
    }
    published = Published(tmp_path, {**CIS["github"], **environ})
    published.up()
    assert published.printed[0].startswith("::notice title=Environment staging-7f3k2q::")
    published.over("kept")
    assert "[http://127.4.9.3:8080/]" in files["SUMMARY"].read_text()
    for name in ("OUTPUT", "ENV"):
        lines = files[name].read_text().splitlines()
        assert lines[0].startswith("EPHEMERAL_URL<<ghadelimiter_")
        assert lines[1:3] == [URL, lines[0].partition("<<")[2]]


def test_the_github_summary_stays_within_the_size_limit(tmp_path: Path) -> None:
    """The limit is 1 MiB for each step; GitHub does not show a larger summary at all."""
    file = tmp_path / "summary"
    file.write_bytes(b"x" * ((1 << 20) - 10))
    published = Published(tmp_path, {**CIS["github"], "GITHUB_STEP_SUMMARY": str(file)})
    published.over("destroyed")
    assert file.stat().st_size == (1 << 20) - 10
    assert published.warnings == []


def test_github_notices_are_limited_to_ten(tmp_path: Path) -> None:
    """GitHub shows at most ten notices for each step."""
    published = Published(tmp_path, CIS["github"])
    for number in range(30):
        published.up(id=f"staging-{number}")
    assert len(published.printed) == 10


def test_repeated_variables_are_written_once(tmp_path: Path) -> None:
    """A run with hundreds of environments must not fill the outputs of a job."""
    file = tmp_path / "output"
    published = Published(tmp_path, {**CIS["github"], "GITHUB_OUTPUT": str(file)})
    for number in range(50):
        published.over("destroyed", id=f"staging-{number}")
    assert file.read_text().count("EPHEMERAL_ENVIRONMENT<<") == 1


def test_variables_describe_the_first_environment_launched(tmp_path: Path) -> None:
    """The first one destroyed is not used: fewer tests have used it."""
    published = Published(tmp_path, CIS["gitlab"])
    published.up(id="staging-a")
    published.up(id="staging-b")
    published.over("destroyed", id="staging-b")
    published.over("destroyed", id="staging-a")
    handed = (published.folder / "environments.env").read_text()
    assert "EPHEMERAL_ENVIRONMENT=staging-a\n" in handed


def test_tekton_gets_results(tmp_path: Path) -> None:
    """The configuration names the publisher, because Tekton sets no variable to detect."""
    folder = tmp_path / "results"
    published = Published(
        tmp_path, {"EPHEMERAL_TEKTON_RESULTS": str(folder)}, 'publish = ["tekton"]\n'
    )
    published.over("kept")
    assert (folder / "ephemeral-url").read_text() == URL


def test_azure_and_teamcity_get_logging_commands(tmp_path: Path) -> None:
    """Both interpret commands in the log."""
    azure = Published(tmp_path, CIS["azure"])
    azure.up()
    assert azure.printed == []
    azure.over("kept")
    assert f"##vso[task.setvariable variable=EPHEMERAL_URL]{URL}" in azure.printed[0]
    page = azure.printed[1].removeprefix("##vso[task.uploadsummary]")
    assert URL in Path(page).read_text()
    teamcity = Published(tmp_path, CIS["teamcity"])
    teamcity.up()
    teamcity.over("destroyed")
    assert teamcity.printed[0].startswith("##teamcity[progressMessage ")
    assert f"name='env.EPHEMERAL_URL_EXPIRED' value='{URL}'" in teamcity.printed[1]


def test_buildkite_gets_agent_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent's command runs, and values are passed on standard input."""
    agent = tmp_path / "buildkite-agent"
    agent.write_text(f'#!/bin/sh\necho "$@: $(cat)" >> {tmp_path}/said\n')
    agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    published = Published(tmp_path, CIS["buildkite"])
    published.up()
    published.over("kept")
    published.publishing.close()
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0].startswith("annotate --context ephemeral-staging-7f3k2q --style info: **staging")
    assert f"meta-data set EPHEMERAL_URL: {URL}" in said
    assert published.warnings == []


def test_a_missing_buildkite_agent_causes_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is one warning for the whole run, not one for each environment."""
    monkeypatch.setenv("PATH", str(tmp_path))
    published = Published(tmp_path, CIS["buildkite"])
    published.up()
    published.over("destroyed")
    published.publishing.close()
    (warning,) = published.warnings
    assert "buildkite-agent annotate: FileNotFoundError" in warning
