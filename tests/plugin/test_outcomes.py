"""The outcome of a run: failures, crashes, kept and attached environments, and hooks."""

import json
import re
import time

import pytest

from support.plugin_project import answers
from support.processes import PROGRAM


def test_a_failed_launch_is_reported_once_and_not_repeated(project, run):
    """The first error has the last lines of the log; each later error is one line."""
    project.write(
        test_it="""
pytestmark = pytest.mark.ephemeral_env(BROKEN)
def test_a(ephemeral_env): pass
def test_b(ephemeral_env): pass
def test_c(ephemeral_url): pass
def test_d(request, ephemeral_env): pass
"""
    )
    result = run("--durations=3")
    result.assert_outcomes(errors=4)
    assert result.ret == 1
    output = result.stdout.str()
    assert output.count("the database is not there") == 1
    assert output.count("details at the first failure") >= 3
    assert "status 3" in output
    assert "Traceback" not in output
    assert len(set(re.findall(rf"{project.broken}-\w+", output))) == 1


CRASH_AT_THE_END = """
import time
from pytest_ephemeral import providers
def test_a(ephemeral_env):
    get(ephemeral_env.url, "/crash")
    # The connection ends a moment before the process that was at its other end.
    while providers.load(ephemeral_env.provider).status(ephemeral_env).state == "running":
        time.sleep(0.01)
"""


def test_a_crash_between_tests_is_an_error_with_the_reason(project, run):
    """The first error has the exit status and the last lines; later errors are one line."""
    project.write(
        test_it=CRASH_AT_THE_END
        + """
def test_b(ephemeral_env): pass
def test_c(ephemeral_env): pass
"""
    )
    result = run()
    result.assert_outcomes(passed=1, errors=2)
    output = result.stdout.str()
    assert "stopped by itself" in output
    assert "status 7" in output
    assert output.count("asked for /crash") == 1
    assert "details at the first failure" in output


@pytest.mark.parametrize("arguments", [[], ["-n", "1"], ["-q"]])
def test_an_unnoticed_crash_fails_the_run(project, run, arguments):
    """The closing section has the exit status and the log."""
    project.write(test_it=CRASH_AT_THE_END)
    result = run(*arguments)
    assert "1 passed" in result.stdout.str()
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*stopped by itself*status 7*", "*asked for /crash*"])


def test_health_report_only_reports_a_crash(project, run):
    """With ``health = "report"``, the run passes."""
    project.reconfigure("port = 8080\nready", 'port = 8080\nhealth = "report"\nready')
    project.write(test_it=CRASH_AT_THE_END)
    result = run()
    assert result.ret == 0
    result.stdout.fnmatch_lines(["*stopped by itself*status 7*"])


@pytest.mark.parametrize("arguments", [[], ["-n", "2"]], ids=["alone", "xdist"])
def test_a_successful_rerun_keeps_no_environment(project, run, arguments):
    """The test passes in the end, so ``--ephemeral-keep failed`` keeps nothing."""
    project.use_plugins("rerunfailures")
    project.write(
        test_it="""
from pathlib import Path
@pytest.mark.flaky(reruns=1)
def test_flaky(ephemeral_env):
    tried = Path("tried")
    if not tried.exists():
        tried.touch()
        raise AssertionError
"""
    )
    run("--ephemeral-keep", "failed", *arguments)
    assert not project.traces()


@pytest.mark.parametrize("arguments", [[], ["-n", "1"]], ids=["alone", "xdist"])
def test_a_time_out_during_a_launch_is_explained(project, run, arguments):
    """The error names the option of pytest-timeout; the run does not wait for the launch."""
    project.use_plugins("timeout", "xdist")
    project.reconfigure('command = "exec', 'command = "sleep 20; exec')
    project.write(test_it="def test_it(ephemeral_env): pass")
    began = time.monotonic()
    result = run("--timeout", "1", "--timeout-method", "signal", *arguments)
    assert time.monotonic() - began < 15
    result.assert_outcomes(errors=1)
    output = result.stdout.str()
    assert "while an environment of template" in output
    assert "timeout_func_only" in output


def test_the_environment_of_a_failed_test_is_kept_and_attachable(project, run, pytester):
    """The printed commands that run the test again and destroy the environment work."""
    project.write(
        test_good="def test_good(ephemeral_env_module): pass",
        test_it="""
def test_bad(ephemeral_env_module):
    get(ephemeral_env_module.url, "/bad")
    raise AssertionError
""",
    )
    # In its own process, as a kept environment must outlive pytest.
    result = pytester.runpytest_subprocess(
        "--ephemeral-env", "--ephemeral-keep", "failed", "--ephemeral-report", "report.json"
    )
    result.assert_outcomes(passed=1, failed=1)
    states = {
        one["state"]: one
        for one in json.loads((project.folder / "report.json").read_text())["environments"]
    }
    assert set(states) == {"kept", "destroyed"}
    kept = states["kept"]
    try:
        assert answers(kept["url"])
        assert not answers(states["destroyed"]["url"])
        rerun = f"pytest --ephemeral-env --ephemeral-attach {kept['id']} test_it.py::test_bad"
        result.stdout.fnmatch_lines(
            [f"    {rerun}", f"    pytest-ephemeral down {kept['id']}", f"*reach it:*{kept['url']}"]
        )
        again = run("--ephemeral-attach", kept["id"], "test_it.py::test_bad")
        again.assert_outcomes(failed=1)
        again.stdout.fnmatch_lines(["*attached"])
        assert answers(kept["url"]), "an attached environment is never destroyed"
    finally:
        done = pytester.run(PROGRAM, "down", kept["id"])
    assert done.ret == 0
    assert not answers(kept["url"])
    refused = run("--ephemeral-attach", kept["id"])
    assert refused.ret == pytest.ExitCode.USAGE_ERROR


def test_attaching_to_a_url_needs_no_configuration(project, run):
    """All fixtures have the URL of a running server, without an ephemeral.toml."""
    project.use_plugins("base_url")
    import socket

    (project.folder / "ephemeral.toml").unlink()
    project.write(
        test_it="""
def test_a(ephemeral_url, ephemeral_env_function):
    assert ephemeral_url == ephemeral_env_function.url
@pytest.mark.ephemeral_env("any")
def test_b(ephemeral_env, base_url): assert base_url == ephemeral_env.url
"""
    )
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}/shop"
        result = run("--ephemeral-attach", url)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines([f"ephemeral: attached to {url}"])


def test_hooks_are_called_and_may_fail(project, run):
    """An error in a hook is a warning; a hook may change a template."""
    project.write(
        conftest="""
import msgspec
def pytest_ephemeral_modify_template(template):
    return msgspec.structs.replace(template, env={"FLAVOUR": "changed"})
def pytest_ephemeral_environment_ready(environment): print("ready", file=open("heard", "a"))
def pytest_ephemeral_publish_url(environment, url, config):
    assert config.option.ephemeral_env
    print("url", url, file=open("heard", "a"))
    raise RuntimeError("nobody listens")
def pytest_ephemeral_environment_stopped(outcome): print(outcome, file=open("heard", "a"))
""",
        test_it="def test_a(ephemeral_env): assert get(ephemeral_env.url) == 'changed'",
    )
    result = run("-W", "ignore")
    result.assert_outcomes(passed=1)
    heard = (project.folder / "heard").read_text().split()
    assert heard[:2] == ["ready", "url"]
    assert heard[-1] == "destroyed"
    result.stdout.fnmatch_lines(
        ["pytest_ephemeral_publish_url failed: RuntimeError: nobody listens"]
    )


@pytest.mark.parametrize(
    "arguments",
    [
        ["-p", "no:terminalreporter"],
        ["-p", "no:terminal"],
        ["-p", "no:cacheprovider"],
        ["-s"],
        ["-q"],
        ["-qq"],
        ["-p", "no:xdist"],
        ["-p", "no:logging"],
        ["--capture=sys"],
        ["--no-header", "--no-summary"],
        ["-n0"],
        ["-x", "--lf"],
    ],
    ids=" ".join,
)
def test_pytest_with_other_options(project, run, arguments):
    """The plugin works without other plugins, and with less output."""
    project.write(test_it="def test_a(ephemeral_env): assert get(ephemeral_env.url)")
    assert run(*arguments).ret == 0


def test_a_quiet_run_prints_nothing_of_ours(project, run):
    """With ``-q``, there is neither progress nor a closing section."""
    project.write(test_it="def test_a(ephemeral_env): pass")
    result = run("-q")
    result.stdout.no_fnmatch_line("*ephemeral*")


def test_stopping_at_the_first_failure_leaves_nothing(project, run):
    """Environments that were launched for the remaining tests are destroyed, too."""
    project.write(
        test_a="def test_a(ephemeral_env_module): raise AssertionError",
        test_b="def test_b(ephemeral_env_module): pass",
        test_c="def test_c(ephemeral_env_module): pass",
    )
    run("-x").assert_outcomes(failed=1)
    assert not project.traces()


def test_environments_launch_early_and_end_after_their_tests(project, run):
    """The next module's environment is up early; each is destroyed after its last test."""
    module = """
from pathlib import Path
from support.waiting import until
def running():
    found = set()
    for file in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = file.read_text(errors="replace").split("\\0")
        except OSError:
            continue
        marks = (one.partition("=") for one in variables)
        found |= {id for name, _, id in marks if name == "PYTEST_EPHEMERAL_ENVIRONMENT"}
    return {id for id in found if id.startswith(f"{ONE}-")}
"""
    project.write(
        test_a=module
        + """
def test_it(ephemeral_env_module):
    until(lambda: len(running()) == 2)
    Path("first").write_text(ephemeral_env_module.id)
""",
        test_b=module
        + """
def test_it(ephemeral_env_module):
    until(lambda: Path("first").read_text() not in running())
    assert ephemeral_env_module.id in running()
    Path("second").write_text(ephemeral_env_module.id)
""",
        test_c=module
        + """
def test_it(): until(lambda: Path("second").read_text() not in running())
def test_last(ephemeral_env_function): assert ephemeral_env_function.id in running()
""",
    )
    run().assert_outcomes(passed=4)
