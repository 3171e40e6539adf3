"""A run publishes the URLs and outcomes of its environments to people and later steps."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import requests  # here, as modules that an inner pytest imports are unloaded

from pytest_ephemeral.cli import main
from support.plugin_project import PluginProject
from support.publisher_services import GitHub, Service

Run = Callable[..., pytest.RunResult]

TESTS = """
def test_it(ephemeral_url):
    assert get(ephemeral_url) == "plain"
"""


@pytest.fixture
def on_github(project: PluginProject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a step of GitHub Actions, and return the folder of its files."""
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    for name in ("GITHUB_OUTPUT", "GITHUB_ENV", "GITHUB_STEP_SUMMARY"):
        (tmp_path / name).touch()
        monkeypatch.setenv(name, str(tmp_path / name))
    return tmp_path


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])
@pytest.mark.parametrize("verbosity", ["-q", "-v"])
def test_github_gets_the_url_and_its_end(
    project: PluginProject, run: Run, on_github: Path, workers: tuple[str, ...], verbosity: str
) -> None:
    """A notice starts at the beginning of its line; at the end, the URL is marked expired."""
    project.write(test_it=TESTS)
    result = run(verbosity, *workers)
    result.assert_outcomes(passed=1)
    (notice,) = [line for line in result.outlines if "::notice" in line]
    url = re.search(r"http://[0-9.]+:8080/", notice)
    assert notice.startswith(f"::notice title=Environment {project.one}-")
    assert url is not None
    output = (on_github / "GITHUB_OUTPUT").read_text()
    assert re.search(rf"EPHEMERAL_URL_EXPIRED<<(\S+)\n{url[0]}\n\1\n", output)
    assert re.search(r"EPHEMERAL_URL<<(\S+)\n\n\1\n", output)
    assert (on_github / "GITHUB_STEP_SUMMARY").read_text().count("is gone") == 1


def test_a_kept_environment_is_published_to_later_steps(
    project: PluginProject, run: Run, on_github: Path
) -> None:
    """The next step can use the environment and destroy it."""
    project.write(test_it=TESTS)
    run("--ephemeral-keep", "always").assert_outcomes(passed=1)
    output = (on_github / "GITHUB_ENV").read_text()
    found = re.search(r"EPHEMERAL_ENVIRONMENT<<\S+\n(\S+)\n", output)
    assert found is not None
    assert re.search(r"EPHEMERAL_URL<<\S+\nhttp", output)
    # The command line publishes as a test run does: it marks the URL expired.
    assert main(["down", found[1], "--config", str(project.folder / "ephemeral.toml")]) == 0
    output = (on_github / "GITHUB_ENV").read_text()
    assert re.search(r"EPHEMERAL_URL_EXPIRED<<\S+\nhttp", output)


def test_deployment_and_webhook_follow_the_environment(
    project: PluginProject, run: Run, on_github: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All events are delivered before pytest ends."""
    project.write(test_it=TESTS)
    hook = Service(lambda *_: (200, {}, "ok"))
    with (hub := GitHub()).running(), hook.running():
        monkeypatch.setenv("GITHUB_API_URL", hub.url)
        monkeypatch.setenv("GITHUB_REPOSITORY", "anna/shop")
        monkeypatch.setenv("GITHUB_TOKEN", "secret")
        monkeypatch.setenv("GITHUB_SHA", "c0ffee")
        project.reconfigure("[images.app]", f'[[webhook]]\nurl = "{hook.url}"\n\n[images.app]')
        run().assert_outcomes(passed=1)
    assert hub.states() == [["in_progress", "success", "inactive"]]
    assert [body["event"] for _, _, body in hook.asked] == ["up", "destroyed"]


def test_a_failed_publisher_is_a_warning(
    project: PluginProject, run: Run, on_github: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run passes even if all warnings of Python are errors."""
    monkeypatch.setenv("GITHUB_OUTPUT", str(on_github))
    project.reconfigure("[images.app]", '[[webhook]]\nurl = "gopher://x/"\n\n[images.app]')
    project.write(test_it=TESTS)
    result = run("-W", "error")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines_random(
        [
            "publishing to github GITHUB_OUTPUT failed: IsADirectoryError:*",
            f"publishing to webhook[[]0[]]: {requests.exceptions.InvalidSchema.__name__}",
        ]
    )


def test_a_hook_of_a_conftest_is_called_too(
    project: PluginProject, run: Run, pytester: pytest.Pytester, tmp_path: Path
) -> None:
    """The hook gets pytest's configuration, and the built-in publishers run as well."""
    project.write(test_it=TESTS)
    pytester.makeconftest(
        f"""
        from pathlib import Path
        FILE = Path({str(tmp_path / "heard")!r})
        def tell(text):
            with FILE.open("a") as stream: stream.write(text + "\\n")
        def pytest_ephemeral_environment_ready(environment):
            tell(f"ready {{environment.state}}")
        def pytest_ephemeral_publish_url(environment, url, config):
            tell(f"url {{url == environment.url}} {{config.rootpath.name}}")
        def pytest_ephemeral_environment_stopped(environment, outcome):
            tell(f"stopped {{outcome}}")
        """
    )
    run().assert_outcomes(passed=1)
    heard = (tmp_path / "heard").read_text().splitlines()
    assert heard == ["ready ready", f"url True {pytester.path.name}", "stopped destroyed"]


def test_an_unknown_ci_gets_the_neutral_file(
    project: PluginProject, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file is in the folder .ephemeral, beside the configuration."""
    monkeypatch.setenv("CI", "true")
    project.write(test_it=TESTS)
    run().assert_outcomes(passed=1)
    told = json.loads((project.folder / ".ephemeral/environments.json").read_text())
    assert [one["state"] for one in told["environments"]] == ["destroyed"]


def test_up_prints_only_the_url_to_stdout(
    project: PluginProject, on_github: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Commands for the CI go to stderr, as scripts read stdout."""
    configuration = ["--config", str(project.folder / "ephemeral.toml")]
    assert main(["up", *configuration]) == 0
    printed = capfd.readouterr()
    assert re.fullmatch(r"http://[0-9.]+:8080/\n", printed.out)
    assert "\n::notice title=Environment " in f"\n{printed.err}"
    assert re.search(r"EPHEMERAL_URL<<\S+\nhttp", (on_github / "GITHUB_OUTPUT").read_text())
    assert main(["down", "--all", *configuration]) == 0
