"""Removals that the provider refuses, or accepts and finishes later."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys

import pytest

from support.folder_project import PASSES, FolderProject, project
from support.plugin_project import end, eventually

__all__ = ["project"]

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="looks at /proc")


# -- a removal that is refused -------------------------------------------------------------------


def test_a_refused_removal_fails_the_run_and_is_reported(project: FolderProject) -> None:
    """The run, its report, `list` and the next run report it; later `reap` removes it."""
    project.write(test_it=PASSES)
    (project.folders / "refuse").touch()
    output = project.run_tests("--ephemeral-report", "report.json", status=1)
    [id] = project.environments()
    assert "1 passed" in output
    assert "access denied" in output
    assert "pytest-ephemeral reap" in output
    [told] = json.loads((project.folder / "report.json").read_text())["environments"]
    assert told["state"] == "leaked"
    reaped = project.try_command("reap")
    assert f"{id} could not be removed: {id}: access denied" in reaped.stderr
    assert f"pytest-ephemeral down {id}" in reaped.stderr
    [record] = project.records()
    owner = json.loads(record.read_text())["environment"]["owner"]["pid"]
    os.kill(owner, signal.SIGKILL)  # it would try again
    listed = project.try_command("list")
    assert "not removed" in listed.stdout
    assert f"{id} could not be removed: {id}: access denied" in listed.stderr
    assert f"from an earlier run: {id} could not be removed" in project.run_tests(status=1)
    assert project.try_command("reap").returncode == 6
    (project.folders / "refuse").unlink()
    assert project.try_command("reap").returncode == 0
    assert eventually(project.is_clean, 20)  # the second run's owner removes its environment


def test_a_refused_removal_is_tried_again(project: FolderProject) -> None:
    """If a later attempt succeeds, the run passes."""
    project.write(test_it=PASSES)
    (project.folders / "refuse").write_text("2")
    project.run_tests()
    assert project.is_clean()


def test_the_owner_retries_a_refused_removal_after_pytest(project: FolderProject) -> None:
    """The owner process removes the environment after the end of pytest."""
    project.write(test_it=PASSES)
    (project.folders / "refuse").touch()
    project.run_tests(status=1)
    (project.folders / "refuse").unlink()
    assert eventually(project.is_clean, 30)


@pytest.mark.parametrize("ci", ["", "true"])
def test_pytest_waits_for_accepted_removals_only_on_ci(
    project: FolderProject, monkeypatch: pytest.MonkeyPatch, ci: str
) -> None:
    """CI kills what a job leaves in the background, so there pytest waits for the removal."""
    monkeypatch.setenv("CI", ci)
    project.write(test_it=PASSES)
    (project.folders / "slow").touch()
    process = project.spawn("--ephemeral-env")
    if ci:
        assert eventually((project.folders / "slow").read_text, 40), end(process)
        with pytest.raises(subprocess.TimeoutExpired):
            process.communicate(timeout=1)
        (project.folders / "slow").unlink()
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 0, output
    assert ("cleanup continues in the background" in output) == (not ci)
    assert bool(re.search(r"ephemeral: folder-\w+: destroying", output)) == bool(ci)
    (project.folders / "slow").unlink(missing_ok=True)
    assert eventually(project.is_clean, 30)


def test_pytest_waits_for_launches_on_ci(
    project: FolderProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A launch can't be cancelled; the owner ends it when it exits, and pytest waits for that."""
    monkeypatch.setenv("CI", "true")
    (project.folder / "pytest.ini").write_text("[pytest]\nephemeral_early = folder")
    project.write(test_it="def test_passes(): pass")
    (project.folders / "coming").touch()
    project.run_tests()
    assert project.is_clean()
