"""The report of a run, and the logs of its environments."""

import json


def test_the_report_and_the_logs_are_written(project, run):
    """The report has the documented fields, and the folder has a log for each process."""
    project.write(
        test_it="""
def test_a(ephemeral_env): get(ephemeral_env.url, "/a")
def test_b(ephemeral_env): raise AssertionError
@pytest.mark.skip
def test_c(ephemeral_env): pass
def test_d(ephemeral_env): pytest.skip("late")
"""
    )
    run("--ephemeral-report", "out/report.json", "--ephemeral-logs", "logs").assert_outcomes(
        passed=1, failed=1, skipped=2
    )
    report = json.loads((project.folder / "out" / "report.json").read_text())
    assert report["version"] == 1
    assert report["run"]
    (one,) = report["environments"]
    assert one["template"] == project.one
    assert one["provider"] == "local"
    assert one["image"]["name"] == "app"
    assert one["image"]["key"].startswith("sha256:")
    assert one["endpoints"] == {"http": one["url"]}
    assert (one["state"], one["kept"]) == ("destroyed", False)
    assert set(one["seconds"]) == {"bake", "launch", "ready", "destroy"}
    assert one["tests"] == {"passed": 1, "failed": 1, "skipped": 1}
    (log,) = (project.folder / "logs" / one["id"]).glob("*.log")
    assert "asked for /a" in log.read_text()


def test_the_report_counts_each_test_once(project, run):
    """Subtests count as one test, and a failure that a rerun repairs is not counted."""
    project.use_plugins("rerunfailures")
    project.write(
        test_it="""
tries = []
@pytest.mark.flaky(reruns=2)
def test_flaky(ephemeral_env):
    tries.append(1)
    assert len(tries) == 2
def test_subtests(ephemeral_env, subtests):
    for n in range(5):
        with subtests.test(n=n): pass
def test_failing_subtests(ephemeral_env, subtests):
    for n in range(5):
        with subtests.test(n=n): assert n < 3
@pytest.fixture
def broken():
    yield
    raise RuntimeError
def test_teardown(ephemeral_env, broken): pass
"""
    )
    run("--ephemeral-report", "report.json", "--ephemeral-keep", "never")
    [one] = json.loads((project.folder / "report.json").read_text())["environments"]
    assert one["tests"] == {"passed": 2, "failed": 2, "skipped": 0}
