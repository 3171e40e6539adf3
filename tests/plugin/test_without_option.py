"""Without ``--ephemeral-env``, nothing is launched, loaded or changed."""

import pytest

from support.processes import run_python

TESTS = """
def test_plain(): pass
def test_home(ephemeral_url): raise AssertionError
def test_fresh(ephemeral_env_function): raise AssertionError
@pytest.mark.ephemeral_env(ONE)
def test_one(ephemeral_env): raise AssertionError
@pytest.mark.ephemeral_env(ONE, TWO)
def test_both(ephemeral_env): raise AssertionError
"""


def test_tests_with_environments_are_skipped_with_a_reason(pytester, project):
    """The reason names the option; all other tests run."""
    project.write(test_it=TESTS)
    result = pytester.runpytest_inprocess("-rs", "-p", "no:randomly")
    result.assert_outcomes(passed=1, skipped=5)
    result.stdout.fnmatch_lines(["*needs an environment: run pytest with --ephemeral-env*"])
    assert not (project.folder / ".ephemeral").exists()


@pytest.mark.parametrize("arguments", [[], ["-q"], ["-n", "2"]])
def test_one_line_counts_the_tests_skipped_without_the_option(pytester, project, arguments):
    """The line is printed once, and without ``-rs``."""
    project.write(test_it=TESTS + "\ndef test_other(): pytest.skip('for a reason of its own')")
    result = pytester.runpytest_inprocess("-p", "no:randomly", *arguments)
    result.assert_outcomes(passed=1, skipped=6)
    said = [line for line in result.outlines if "--ephemeral-env" in line]
    why = "needs an environment: run pytest with --ephemeral-env"
    assert said == [f"ephemeral: 5 tests were skipped: {why}"]


@pytest.mark.parametrize("arguments", [[], ["-q"], ["-n", "2"]])
def test_options_without_effect_are_named(pytester, project, arguments):
    """Options in configuration files are not named, as they are for other runs, too."""
    pytester.makeini("[pytest]\naddopts = --ephemeral-keep never\nephemeral_stage = unit")
    project.write(test_it="def test_plain(): pass")
    typed = ["--ephemeral-template", "no-such", "--ephemeral-report=x.json"]
    result = pytester.runpytest_inprocess("-p", "no:randomly", *typed, *arguments)
    result.assert_outcomes(passed=1)
    said = [line for line in result.outlines if "no effect" in line]
    options = "--ephemeral-template, --ephemeral-report"
    assert said == [f"ephemeral: {options} have no effect without --ephemeral-env"]


def test_no_line_is_printed_without_skipped_tests(pytester, project):
    """A run that needs no environment has the same output as without this plugin."""
    project.write(test_it="def test_plain(): pass")
    result = pytester.runpytest_inprocess("-p", "no:randomly")
    assert not [line for line in result.outlines if line.startswith("ephemeral:")]


def test_test_ids_do_not_depend_on_the_option(pytester, project):
    """One template does not change an id; several templates add their names."""
    project.write(test_it=TESTS)

    def ids(*arguments):
        result = pytester.runpytest_inprocess(
            "--collect-only", "-q", "-p", "no:randomly", *arguments
        )
        return sorted(line for line in result.outlines if "::" in line)

    assert ids() == ids("--ephemeral-env")
    assert ids() == sorted(
        f"test_it.py::test_{name}"
        for name in (
            "plain",
            "home",
            "fresh",
            "one",
            f"both[[]{project.one}]",
            f"both[{project.two}]",
        )
        for name in [name.replace("[[]", "[")]
    )


def test_a_broken_configuration_is_not_read(pytester, project):
    """The configuration is needed only with the option."""
    project.configure("this is = = not TOML")
    project.write(test_it="def test_plain(): pass")
    pytester.runpytest_inprocess().assert_outcomes(passed=1)


def test_a_wrong_marker_is_a_collection_error(pytester, project):
    """The error is one message without a traceback."""
    project.write(test_it="@pytest.mark.ephemeral_env()\ndef test_it(ephemeral_env): pass")
    result = pytester.runpytest_inprocess()
    result.stdout.fnmatch_lines(["*test_it.py::test_it: @pytest.mark.ephemeral_env: name a templ*"])
    result.stdout.no_fnmatch_line("*Traceback*")


def test_no_heavy_module_is_imported():
    """Every pytest run with this plugin installed would pay for the import."""
    heavy = ("boto3", "docker", "requests", "rich", "msgspec", "asyncio", "multiprocessing")
    program = (
        "import sys; from unittest import mock; import pytest\n"
        "before = set(sys.modules)\n"
        "import pytest_ephemeral.pytest_plugin.plugin, pytest_ephemeral.hookspecs\n"
        f"print(sorted({heavy!r} & (set(sys.modules) - before)))\n"
        "print(sorted(m for m in set(sys.modules) - before if m.startswith('pytest_ephemeral')))\n"
    ).replace(f"{heavy!r} &", f"set({heavy!r}) &")
    loaded, own = run_python(program).splitlines()
    assert loaded == "[]"
    assert "session" not in own
    assert "broker" not in own


@pytest.mark.parametrize("option", ["--help", "--version", "--markers"])
def test_help_works_with_a_broken_configuration(pytester, project, option):
    """The configuration is not read, even with ``--ephemeral-env``."""
    project.configure("[templates.x]\nnonsense = 1")
    result = pytester.runpytest_inprocess("--ephemeral-env", option)
    assert result.ret == 0


def test_no_tests_are_collected_from_the_store(pytester):
    """An image may contain tests, and a project may set its own ``norecursedirs``."""
    pytester.makeini("[pytest]\nnorecursedirs = nothing\n")
    inside = pytester.mkdir(".ephemeral") / "test_inside.py"
    inside.write_text("def test_it(): assert False")
    pytester.makepyfile("def test_outside(): pass")
    pytester.runpytest_inprocess("-p", "no:randomly").assert_outcomes(passed=1)
