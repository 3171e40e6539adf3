"""``--ephemeral-timeline``: the picture of a run, parsed as XML."""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

SVG = "{http://www.w3.org/2000/svg}"

TESTS = """
def test_good(ephemeral_env): get(ephemeral_env.url)
def test_bad(ephemeral_env): raise AssertionError
def test_fresh(ephemeral_env_function): get(ephemeral_env_function.url)
def test_without(): pytest.skip("for a reason")
def test_odd(ephemeral_env, odd): pass
@pytest.fixture(params=["<&\\"'>"])
def odd(request): pass
@pytest.fixture(scope="session", autouse=True)
def begun(): open("begun", "w").close()
"""

#: A seed that lasts until the tests have begun, so that tests wait even on a slow machine.
SEED = "until [ -e '{folder}/begun' ]; do sleep 0.02; done; sleep 0.3"


def bars(text: str) -> dict[str, list[tuple[float, float, str]]]:
    """The beginning, end and title of each bar, by class."""
    found: dict[str, list[tuple[float, float, str]]] = {}
    for rectangle in ET.fromstring(text).iter(f"{SVG}rect"):
        title = rectangle.find(f"{SVG}title")
        if title is not None and title.text:
            x, width = float(rectangle.attrib["x"]), float(rectangle.attrib["width"])
            found.setdefault(rectangle.attrib["class"], []).append((x, x + width, title.text))
    return found


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_timeline_shows_tests_and_phases(project, run, tmp_path, arguments):
    """The picture has all tests, all phases of all environments, and all waits."""
    seed = SEED.format(folder=project.folder)
    project.reconfigure("port = 8080\nready", f'port = 8080\nseed = "{seed}"\nready')
    project.write(test_it=TESTS)
    file = tmp_path / "new" / "run.svg"
    result = run("--ephemeral-timeline", str(file), *arguments)
    result.assert_outcomes(passed=3, failed=1, skipped=1)
    drawn = bars(file.read_text())
    for phase in ("bake", "launch", "ready", "seed", "up", "destroy"):
        assert len(drawn[phase]) == 2, phase
    for outcome, number in {"passed": 3, "failed": 1, "skipped": 1}.items():
        assert len(drawn[outcome]) == number, outcome
    assert "test_it.py::test_bad: failed" in drawn["failed"][0][2]
    assert any("<&\"'>" in title for _, _, title in drawn["passed"])
    ends = {title.partition(":")[0]: end for _, end, title in drawn["seed"]}
    waits = drawn["waits"]
    assert waits
    for start, _, title in waits:
        assert start <= ends[title.rpartition(" for ")[2]], "nobody waits for what is up"
    workers = set(re.findall(r">(gw\d|tests)</text>", file.read_text()))
    assert workers <= ({"gw0", "gw1"} if arguments else {"tests"})
    assert workers


def test_a_failed_launch_is_in_the_timeline(project, run, tmp_path):
    """The environment has its phases until the failure, and the test is failed."""
    project.write(test_it="@pytest.mark.ephemeral_env(BROKEN)\ndef test_it(ephemeral_env): pass")
    file = tmp_path / "run.html"
    run("--ephemeral-timeline", str(file)).assert_outcomes(errors=1)
    page = file.read_text()
    drawn = bars(page[page.index("<svg") : page.index("</svg>") + 6])
    assert "up" not in drawn
    assert drawn["launch"]
    assert drawn["failed"]
    assert page.startswith("<!doctype html>")


def test_an_unknown_format_is_refused(project, run):
    """The file name is checked before any launch."""
    project.write(test_it="def test_it(ephemeral_env): pass")
    result = run("--ephemeral-timeline", "run.png")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    said = result.stdout.str() + result.stderr.str()
    assert "--ephemeral-timeline: expected a name that ends in .svg or .html" in said


def test_a_file_that_can_not_be_written_is_an_error(project, run, tmp_path: Path):
    """The run fails, as the requested file is missing."""
    project.write(test_it="def test_it(ephemeral_env): pass")
    (tmp_path / "file").write_text("")
    result = run("--ephemeral-timeline", str(tmp_path / "file" / "run.svg"))
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["the timeline could not be written: *"])
