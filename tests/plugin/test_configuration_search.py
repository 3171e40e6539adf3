"""pytest finds the file that `init` writes and `up` uses, wherever it is started."""

import shutil

import pytest

from support import processes

TEST = "def test_it(ephemeral_url): assert ephemeral_url"


@pytest.fixture
def nested(project):
    """pytest is configured in the project's folder, environments two folders below it."""
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
    """And the header says which."""
    result = run(*arguments)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["ephemeral: tests/acceptance/ephemeral.toml, template *"])


def test_the_current_folder_is_searched_without_arguments(nested, run, monkeypatch):
    """As for the command line, which is started in the same folder."""
    monkeypatch.chdir(nested.folder / "tests" / "acceptance")
    run().assert_outcomes(passed=1)
    assert "no ephemeral.toml" not in processes.run(processes.PROGRAM, "list").stderr


def test_a_configuration_below_is_named(nested, run):
    """Not to write another one."""
    result = run()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "tests/acceptance/ephemeral.toml" in result.stderr.str() + result.stdout.str()
