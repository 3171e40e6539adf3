"""Who is told, in which CI, by which channel, and what one that fails means to the others."""

from __future__ import annotations

import json
import os
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pluggy
import pytest

from pytest_ephemeral import ci, config, hookspecs, publishers
from pytest_ephemeral.errors import ConfigurationError
from unit.publishers.events import URL, environment
from unit.publishers.services import GitHub, Service

CONFIGURATION = """
[images.app]
provider = "local"
reference = "image"

[templates.staging]
image = "app"
command = "true"
port = 80
env = { KEY = "{env:SHOP_KEY}" }
"""


class Published:
    """A run's environments, told of as a lifecycle tells."""

    def __init__(self, folder: Path, environ: Mapping[str, str], more: str = "") -> None:
        (folder / "ephemeral.toml").write_text(more + CONFIGURATION)
        self.folder = folder / ".ephemeral"
        self.printed: list[str] = []
        self.warnings: list[str] = []
        self.manager = pluggy.PluginManager("pytest")
        self.manager.add_hookspecs(hookspecs)
        self.publishing = publishers.register(
            self.manager,
            config.load(folder / "ephemeral.toml"),
            environ,
            console=self.printed.append,
            warn=self.warnings.append,
        )

    def up(self, url: str = URL, **changes: Any) -> None:
        one = environment(url=url, **changes)
        self.manager.hook.pytest_ephemeral_publish_url(environment=one, url=url, config=None)

    def over(self, outcome: str, url: str = URL, **changes: Any) -> None:
        one = environment(url=url, **changes)
        self.manager.hook.pytest_ephemeral_environment_stopped(
            environment=one, outcome=outcome, config=None
        )

    def names(self) -> list[str]:
        return [
            name.removeprefix("ephemeral publisher: ")
            for name, _ in self.manager.list_name_plugin()
        ]


def test_publishers_are_hashable_plugins(tmp_path):
    """Until 9.1, pytest puts what is registered into a set."""
    published = Published(tmp_path, CIS["github"])
    plugins = published.manager.get_plugins()
    assert len({*plugins}) == len(published.names()) > 0


# -- which CI --------------------------------------------------------------------------------

CIS = {
    "github": {
        "GITHUB_ACTIONS": "true",
        "GITHUB_SERVER_URL": "https://github.example",
        "GITHUB_REPOSITORY": "anna/shop",
        "GITHUB_RUN_ID": "7",
        "GITHUB_SHA": "c0ffee",
    },
    "gitlab": {"GITLAB_CI": "true", "CI_PIPELINE_ID": "7", "CI_JOB_URL": "https://ci/7"},
    "jenkins": {"JENKINS_URL": "https://j/", "BUILD_URL": "https://ci/7", "BUILD_NUMBER": "7"},
    "buildkite": {"BUILDKITE": "true", "BUILDKITE_BUILD_URL": "https://ci/7"},
    "azure": {"TF_BUILD": "True", "BUILD_BUILDID": "7"},
    "teamcity": {"TEAMCITY_VERSION": "2026.1", "BUILD_URL": "https://ci/7"},
    "circleci": {"CIRCLECI": "true", "CIRCLE_BUILD_URL": "https://ci/7"},
    "bitbucket": {"BITBUCKET_BUILD_NUMBER": "7"},
    "woodpecker": {"CI": "woodpecker", "CI_PIPELINE_URL": "https://ci/7", "CI_PIPELINE_ID": "7"},
    "drone": {"CI": "true", "DRONE": "true", "DRONE_BUILD_LINK": "https://ci/7"},
    "travis": {"CI": "true", "TRAVIS": "true", "TRAVIS_BUILD_WEB_URL": "https://ci/7"},
}


@pytest.mark.parametrize("name", CIS)
def test_a_ci_is_detected_by_its_vendor_variable(name: str) -> None:
    """Whatever else it sets that another one does too."""
    build = ci.detect({"CI": "true", **CIS[name]})
    assert build is not None
    assert build.ci == name


def test_a_detected_build_includes_its_url() -> None:
    """In the CI's own words, or put together from them."""
    assert ci.detect(CIS["github"]) == ci.Build(
        ci="github", url="https://github.example/anna/shop/actions/runs/7", revision="c0ffee"
    )
    build = ci.detect(CIS["gitlab"])
    assert build is not None
    assert (build.url, build.number, build.revision) == ("https://ci/7", "7", "")


def test_shared_variables_do_not_identify_a_ci() -> None:
    """CI_PIPELINE_ID is GitLab's and Woodpecker's."""
    assert ci.detect({"CI": "true", "CI_PIPELINE_ID": "7"}) is None
    assert ci.is_ci({"CI": "true"})
    assert not ci.is_ci({})


# -- who is told -----------------------------------------------------------------------------


def test_no_publisher_runs_outside_ci(tmp_path: Path) -> None:
    """A run on someone's own machine leaves no files."""
    published = Published(tmp_path, {})
    published.up()
    published.over("destroyed")
    assert published.names() == []
    assert not published.folder.exists()


def test_an_unknown_ci_gets_the_json_file(tmp_path: Path) -> None:
    """It is there while the environment is up, and true afterwards."""
    published = Published(tmp_path, {"CI": "1"})
    published.up()
    file = published.folder / "environments.json"
    assert json.loads(file.read_text())["environments"][0]["url"] == URL
    published.over("destroyed")
    assert json.loads(file.read_text())["environments"][0]["url"] is None


def test_publish_selects_the_publishers(tmp_path: Path) -> None:
    """GitLab is not here; json is wherever it is named."""
    published = Published(tmp_path, CIS["github"], 'publish = ["gitlab", "json"]\n')
    assert published.names() == ["json file"]
    (tmp_path / "none").mkdir()
    assert Published(tmp_path / "none", CIS["github"], "publish = []\n").names() == []


def test_an_unknown_publisher_is_a_configuration_error(tmp_path: Path) -> None:
    """Found when the configuration is read."""
    with pytest.raises(ConfigurationError, match=r"publish\[0\]: expected .*github"):
        Published(tmp_path, {}, 'publish = ["githbu"]\n')


# -- what each leaves ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("gitlab", "environments.env"),
        ("jenkins", "environments.properties"),
        ("woodpecker", "environments.sh"),
        ("drone", "environments.sh"),
        ("travis", "environments.sh"),
    ],
)
def test_a_file_is_written_when_the_outcome_is_known(tmp_path: Path, name: str, file: str) -> None:
    """A run that is killed leaves none, and so no URL that leads nowhere."""
    published = Published(tmp_path, CIS[name])
    published.up()
    assert not (published.folder / file).exists()
    published.over("destroyed", id="staging-a")
    handed = (published.folder / file).read_text()
    assert "EPHEMERAL_URL_EXPIRED" in handed
    assert f"EPHEMERAL_URL={URL}" not in handed
    published.over("kept", id="staging-b")
    handed = (published.folder / file).read_text()
    assert f"EPHEMERAL_URL={URL}" in handed
    assert "staging-b" in handed


@pytest.mark.parametrize(
    ("name", "variable", "line"),
    [
        ("circleci", "BASH_ENV", f"export EPHEMERAL_URL={URL}\n"),
        ("bitbucket", "BITBUCKET_PIPELINES_VARIABLES_PATH", f"EPHEMERAL_URL={URL}\n"),
    ],
)
def test_ci_variable_files_keep_existing_lines(
    tmp_path: Path, name: str, variable: str, line: str
) -> None:
    """Other steps have written to it."""
    file = tmp_path / "variables"
    file.write_text("OTHER=1\n")
    published = Published(tmp_path, {**CIS[name], variable: str(file)})
    published.up()
    assert file.read_text() == "OTHER=1\n"
    published.over("kept")
    assert file.read_text().startswith("OTHER=1\n")
    assert line in file.read_text()


def test_github_gets_notices_outputs_variables_and_summary(tmp_path: Path) -> None:
    """A notice at once; output, variables and summary when it is over."""
    files = {name: tmp_path / name for name in ("SUMMARY", "OUTPUT", "ENV")}
    environ = {
        "GITHUB_STEP_SUMMARY": str(files["SUMMARY"]),
        "GITHUB_OUTPUT": str(files["OUTPUT"]),
        "GITHUB_ENV": str(files["ENV"]),
    }
    published = Published(tmp_path, {**CIS["github"], **environ})
    published.up()
    assert published.printed[0].startswith("::notice title=Environment staging-7f3k2q::")
    published.over("kept")
    assert "[http://127.4.9.3:8080/]" in files["SUMMARY"].read_text()
    for name in ("OUTPUT", "ENV"):
        lines = files[name].read_text().splitlines()
        assert lines[0].startswith("EPHEMERAL_URL<<ghadelimiter_")
        assert lines[1:3] == [URL, lines[0].partition("<<")[2]]


def test_the_github_summary_stays_within_the_size_limit(tmp_path: Path) -> None:
    """One megabyte a step; beyond that it would show none of it."""
    file = tmp_path / "summary"
    file.write_bytes(b"x" * ((1 << 20) - 10))
    published = Published(tmp_path, {**CIS["github"], "GITHUB_STEP_SUMMARY": str(file)})
    published.over("destroyed")
    assert file.stat().st_size == (1 << 20) - 10
    assert published.warnings == []


def test_github_notices_are_limited_to_ten(tmp_path: Path) -> None:
    """Ten a step."""
    published = Published(tmp_path, CIS["github"])
    for number in range(30):
        published.up(id=f"staging-{number}")
    assert len(published.printed) == 10


def test_repeated_variables_are_written_once(tmp_path: Path) -> None:
    """Hundreds of environments that came and went don't fill the outputs of a job."""
    file = tmp_path / "output"
    published = Published(tmp_path, {**CIS["github"], "GITHUB_OUTPUT": str(file)})
    for number in range(50):
        published.over("destroyed", id=f"staging-{number}")
    assert file.read_text().count("EPHEMERAL_ENVIRONMENT<<") == 1


def test_variables_describe_the_first_environment_launched(tmp_path: Path) -> None:
    """Not the first to go: that is the one that the fewest tests have used."""
    published = Published(tmp_path, CIS["gitlab"])
    published.up(id="staging-a")
    published.up(id="staging-b")
    published.over("destroyed", id="staging-b")
    published.over("destroyed", id="staging-a")
    handed = (published.folder / "environments.env").read_text()
    assert "EPHEMERAL_ENVIRONMENT=staging-a\n" in handed


def test_tekton_gets_results(tmp_path: Path) -> None:
    """Named, since nothing tells of it."""
    folder = tmp_path / "results"
    published = Published(
        tmp_path, {"EPHEMERAL_TEKTON_RESULTS": str(folder)}, 'publish = ["tekton"]\n'
    )
    published.over("kept")
    assert (folder / "ephemeral-url").read_text() == URL


def test_azure_and_teamcity_get_logging_commands(tmp_path: Path) -> None:
    """Commands in the log."""
    azure = Published(tmp_path, CIS["azure"])
    azure.up()
    assert azure.printed == []
    azure.over("kept")
    assert f"##vso[task.setvariable variable=EPHEMERAL_URL]{URL}" in azure.printed[0]
    page = azure.printed[1].removeprefix("##vso[task.uploadsummary]")
    assert URL in Path(page).read_text()
    teamcity = Published(tmp_path, CIS["teamcity"])
    teamcity.up()
    teamcity.over("destroyed")
    assert teamcity.printed[0].startswith("##teamcity[progressMessage ")
    assert f"name='env.EPHEMERAL_URL_EXPIRED' value='{URL}'" in teamcity.printed[1]


def test_buildkite_gets_agent_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its agent's; values by standard input."""
    agent = tmp_path / "buildkite-agent"
    agent.write_text(f'#!/bin/sh\necho "$@: $(cat)" >> {tmp_path}/said\n')
    agent.chmod(agent.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    published = Published(tmp_path, CIS["buildkite"])
    published.up()
    published.over("kept")
    published.publishing.close()
    said = (tmp_path / "said").read_text().splitlines()
    assert said[0].startswith("annotate --context ephemeral-staging-7f3k2q --style info: **staging")
    assert f"meta-data set EPHEMERAL_URL: {URL}" in said
    assert published.warnings == []


def test_a_missing_buildkite_agent_causes_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One, not one for each environment."""
    monkeypatch.setenv("PATH", str(tmp_path))
    published = Published(tmp_path, CIS["buildkite"])
    published.up()
    published.over("destroyed")
    published.publishing.close()
    (warning,) = published.warnings
    assert "buildkite-agent annotate: FileNotFoundError" in warning


# -- what goes wrong -------------------------------------------------------------------------


def test_a_failing_publisher_does_not_stop_the_others(tmp_path: Path) -> None:
    """It is one warning; the next ones are told all the same."""
    output = tmp_path / "output"
    environ = {"GITHUB_STEP_SUMMARY": str(tmp_path), "GITHUB_OUTPUT": str(output)}
    published = Published(tmp_path, {**CIS["github"], **environ})
    for number in range(3):
        published.over("destroyed", id=f"staging-{number}")
    (warning,) = published.warnings
    assert warning.startswith("publishing to github summary failed: IsADirectoryError: ")
    assert "EPHEMERAL_URL_EXPIRED" in output.read_text()


def test_no_secret_is_published(tmp_path: Path) -> None:
    """Neither what a template refers to nor a password in the URL."""
    environ = {"CI": "1", "SHOP_KEY": "swordfish"}
    published = Published(tmp_path, environ)
    published.up("http://anna:pass@127.0.0.1/?key=swordfish")
    told = (published.folder / "environments.json").read_text()
    assert "http://127.0.0.1/?key=***" in told
    assert "swordfish" not in told
    assert "pass" not in told


def test_an_environment_without_a_url_is_not_published(tmp_path: Path) -> None:
    """There is nothing to tell anyone."""
    published = Published(tmp_path, {"CI": "1"})
    published.over("destroyed", url="")
    assert not published.folder.exists()


# -- over the network ------------------------------------------------------------------------


def test_a_github_token_enables_deployments(tmp_path: Path) -> None:
    """The repository's deployments, in the repository's own GitHub."""
    with (hub := GitHub()).running():
        environ = {**CIS["github"], "GITHUB_TOKEN": "secret", "GITHUB_API_URL": hub.url}
        published = Published(tmp_path, environ)
        published.up()
        published.over("destroyed")
        published.publishing.close()
    assert hub.states() == [["in_progress", "success", "inactive"]]
    assert hub.deployments[0]["ref"] == "c0ffee"
    assert published.warnings == []


def test_configured_webhooks_receive_events(tmp_path: Path) -> None:
    """Anywhere, not only in CI; address and headers may come from variables."""
    with (hook := Service(lambda *_: (200, {}, "ok"))).running():
        published = Published(
            tmp_path,
            {"HOOK": f"{hook.url}/services/T0", "KEY": "swordfish"},
            '[[webhook]]\nurl = "{env:HOOK}"\nevents = ["up"]\nheaders = {X-Key = "{env:KEY}"}\n',
        )
        published.up()
        published.over("destroyed")
        published.publishing.close()
    ((_, path, body),) = hook.asked
    assert path == "/services/T0"
    assert body["event"] == "up"
    assert hook.headers["x-key"] == "swordfish"
    assert published.warnings == []


def test_a_webhook_with_an_unset_variable_is_an_error(tmp_path: Path) -> None:
    """Said before anything is brought up."""
    with pytest.raises(
        ConfigurationError, match=r"webhook\[0\].url: .*variable HOOK, which is not set"
    ):
        Published(tmp_path, {}, '[[webhook]]\nurl = "{env:HOOK}"\n')


def test_close_waits_for_all_webhooks_in_parallel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten dead webhooks cost no more than one."""
    monkeypatch.setattr(publishers, "LAST_WAIT", 0.3)
    hooks = '[[webhook]]\nurl = "http://127.0.0.1:9/"\n' * 10
    published = Published(tmp_path, {}, hooks)
    published.up()
    started = time.monotonic()
    published.publishing.close()
    assert time.monotonic() - started < 2
    assert len(published.warnings) == 10


def test_webhooks_get_a_limited_number_of_messages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One environment for each of a thousand tests: the first twenty, and what someone must see."""
    with (hook := Service(lambda *_: (200, {}, "ok"))).running():
        published = Published(tmp_path, {"CI": "1"}, f'[[webhook]]\nurl = "{hook.url}"\n')
        for number in range(150):
            published.up(id=f"staging-{number}")
            published.over("leaked" if number == 140 else "destroyed", id=f"staging-{number}")
        published.publishing.close()
    told = [(body["environment"]["id"], body["event"]) for _, _, body in hook.asked]
    assert len(told) == 41
    assert told[-1] == ("staging-140", "leaked")
    listed = json.loads((published.folder / "environments.json").read_text())["environments"]
    assert [one["id"] for one in listed] == [f"staging-{number}" for number in range(50, 150)]
