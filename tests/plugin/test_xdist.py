"""Under pytest-xdist, the controller owns environments, and workers lease them."""

import pytest

MODULE = """
def test_session(ephemeral_env): note("session", ephemeral_env)
def test_module_1(ephemeral_env_module): note("module", ephemeral_env_module)
def test_module_2(ephemeral_env_module): note("module", ephemeral_env_module)
def test_module_3(ephemeral_env_module): note("module", ephemeral_env_module)
@pytest.mark.parametrize("n", [1, 2, 3])
def test_function(ephemeral_env_function, n): note("function", ephemeral_env_function)
def note(scope, environment):
    assert get(environment.url) == "plain"
    with open("notes.txt", "a") as file:
        file.write(f"{__name__} {scope} {environment.id}\\n")
"""


@pytest.mark.parametrize("dist", ["load", "loadscope", "loadfile", "worksteal"])
def test_workers_share_environments_with_any_scheduler(project, run, dist):
    """There is one environment per session, module or function, not one per worker."""
    project.write(test_one=MODULE, test_two=MODULE)
    result = run("-n", "2", "--dist", dist)
    result.assert_outcomes(passed=14)
    notes = [line.split() for line in (project.folder / "notes.txt").read_text().splitlines()]

    def ids(scope, module=""):
        return {id for where, what, id in notes if what == scope and where.startswith(module)}

    assert len(ids("session")) == 1
    assert [len(ids("module", name)) for name in ("test_one", "test_two")] == [1, 1]
    assert len(ids("module")) == 2
    assert len(ids("function")) == 6


def test_the_controller_prints_the_evidence_of_failures(project, run):
    """The worker's section with id and log lines is printed, and the counts are right."""
    project.write(
        test_it="""
def test_good(ephemeral_env): get(ephemeral_env.url, "/good")
def test_bad(ephemeral_env):
    get(ephemeral_env.url, "/bad")
    raise AssertionError
"""
    )
    result = run("-n", "2", "--ephemeral-report", "report.json")
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        [
            f"*- ephemeral environment {project.one}-* -*",
            "*asked for /bad",
            "    pytest --ephemeral-env --ephemeral-bake never test_it.py::test_bad",
        ]
    )
    assert '"failed": 1' in (project.folder / "report.json").read_text()


def test_a_killed_worker_releases_its_environments(project, run):
    """The worker's test fails, the other tests run, and no traces are left."""
    project.write(
        test_it="""
def test_dies(ephemeral_env, ephemeral_env_function): os._exit(1)
@pytest.mark.parametrize("n", range(4))
def test_lives(ephemeral_env, n): assert get(ephemeral_env.url)
"""
    )
    result = run("-n", "2", "--ephemeral-report", "report.json")
    result.assert_outcomes(passed=4, failed=1)
    assert result.ret == 1


def test_a_failed_launch_is_reported_in_full_once(project, run):
    """The first report has the details, and each other report has one line."""
    project.write(
        test_it="""
pytestmark = pytest.mark.ephemeral_env(BROKEN)
@pytest.mark.parametrize("n", range(4))
def test_it(ephemeral_env, n): pass
"""
    )
    result = run("-n", "2")
    result.assert_outcomes(errors=4)
    assert sum("the database is not there" in line for line in result.outlines) == 1
    assert sum("details at the first failure" in line for line in result.outlines) >= 3


def test_workers_and_environments_end_at_the_same_time(project, run):
    """An application that waits for the end of workers while it stops is not killed."""
    ended = project.folder / "ended"
    waits = f"trap 'until [ -e {ended} ]; do sleep 0.02; done; : >{ended}.seen' TERM; "
    project.reconfigure('command = "exec', f"grace = '20s'\ncommand = \"{waits}")
    project.write(
        conftest=f"""
import atexit, pathlib
def pytest_unconfigure(config):
    if hasattr(config, "workerinput"): atexit.register(pathlib.Path({str(ended)!r}).touch)
""",
        test_it="def test_it(ephemeral_env): pass",
    )
    run("-n", "1").assert_outcomes(passed=1)
    assert ended.with_name("ended.seen").exists()
