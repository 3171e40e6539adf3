"""pytest finds the same configuration as the command line, wherever it is started."""

import shutil

import pytest

from support import processes

TEST = "def test_it(ephemeral_url): assert ephemeral_url"


@pytest.fixture
def nested(project):
    """A project with pytest.ini in its folder, and ephemeral.toml two folders below."""
    inner = project.folder / "tests" / "acceptance"
    inner.mkdir(parents=True)
    (project.folder / "pytest.ini").write_text("[pytest]\n")
    shutil.move(project.folder / "ephemeral.toml", inner / "ephemeral.toml")
    shutil.move(project.folder / "image", inner / "image")
    (inner / "test_inner.py").write_text(TEST)
    return project


@pytest.mark.parametrize(
    "arguments",
    [
        ["tests/acceptance"],
        ["tests/acceptance/test_inner.py::test_it"],
        ["-n", "2", "tests/acceptance"],
    ],
    ids=["folder", "node", "xdist"],
)
def test_the_configuration_nearest_to_the_tests_is_used(nested, run, arguments):
    """The header names the configuration file."""
    result = run(*arguments)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["ephemeral: tests/acceptance/ephemeral.toml, template *"])


def test_the_current_folder_is_searched_without_arguments(nested, run, monkeypatch):
    """The command line finds the same file in that folder."""
    monkeypatch.chdir(nested.folder / "tests" / "acceptance")
    run().assert_outcomes(passed=1)
    assert "no ephemeral.toml" not in processes.run(processes.PROGRAM, "list").stderr


def test_a_configuration_below_is_named(nested, run):
    """The error names the existing file, so that users do not create a second one."""
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "tests/acceptance/ephemeral.toml" in result.stderr.str() + result.stdout.str()
