"""The commands of the README are those of the Makefile, and those that CI runs."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from examples.walkthrough import ROOT, blocks
from pytest_ephemeral import providers
from support import processes

MAKEFILE = (ROOT / "Makefile").read_text()
TARGETS = set(re.findall(r"^([a-z]+):", MAKEFILE, re.MULTILINE))


def test_the_readme_names_make_demo_and_make_test() -> None:
    """The README shows no other make commands, and the Makefile has both."""
    promised = [
        command
        for block in blocks(ROOT / "README.md")
        if block.language == "console"
        for command, _ in block.commands()
        if command.startswith("make ")
    ]
    assert promised == ["make demo", "make test"]
    assert {"demo", "test"} <= TARGETS


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_documented_make_targets_exist(page: str) -> None:
    """Every make target that a page names is in the Makefile."""
    named = set(re.findall(r"(?:`|\$ |^    )make ([a-z]+)", page_of(page), re.MULTILINE))
    assert named
    assert named <= TARGETS


def page_of(name: str) -> str:
    """The text of a page in the project's root."""
    return (ROOT / name).read_text()


def test_the_readme_lists_all_providers_and_commands() -> None:
    """Its table has every provider and every command, and no other command."""
    rows = dict(re.findall(r"^\| ([A-Z]\w+.*?) \| (.+) \|$", page_of("README.md"), re.MULTILINE))
    assert set(providers.TABLE) <= set(re.findall(r"`(\w+)`", rows["Providers"]))
    environ = {**os.environ, "COLUMNS": "200"}
    helped = processes.run(processes.PROGRAM, "--help", environ=environ).stdout
    commands = set(
        re.findall(r"^    ([a-z]+) {2,}", helped.partition("commands:")[2], re.MULTILINE)
    )
    assert set(re.findall(r"`(\w+)`", rows["Command line"] + rows["Production"])) == commands


def test_ci_runs_the_documented_commands() -> None:
    """CI runs the make targets themselves, not equivalent commands."""
    ci = (ROOT / ".ci" / "run").read_text()
    for target in ("lint", "docs", "demo", "test"):
        assert re.search(rf"make --silent .*\b{target}\b", ci), target


def test_make_without_a_target_lists_all_targets() -> None:
    """Every target is in the help, which a newcomer sees first."""
    said = processes.run("make", "-C", ROOT).stdout
    listed = set(re.findall(r"^  ([a-z]+) ", said, re.MULTILINE))
    assert listed == TARGETS


@pytest.mark.parametrize(
    ("reason", "status"),
    [("docker is not installed", 1), ("needs git", 1), ("only on macOS", 0)],
)
def test_ci_accepts_only_skips_for_the_platform(reason: str, status: int, tmp_path: Path) -> None:
    """A missing program is a forgotten install step; a platform is not."""
    (tmp_path / "test.xml").write_text(
        f'<testsuites><testsuite><testcase classname="a" name="b"><skipped type="pytest.skip" '
        f'message="{reason}"/></testcase></testsuite></testsuites>'
    )
    done = processes.run(sys.executable, ROOT / ".ci" / "skips.py", tmp_path, status=status)
    assert (reason in done.stdout) == bool(status)
