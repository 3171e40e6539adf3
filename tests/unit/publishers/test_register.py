"""Which publishers run in which CI, and how the failure of one affects the others."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from pytest_ephemeral import ci, publishers
from pytest_ephemeral.errors import ConfigurationError
from support.publisher_events import URL
from support.publisher_services import GitHub, Service
from support.publishing import CIS, Published


def test_publishers_are_hashable_plugins(tmp_path):
    """Until version 9.1, pytest puts registered plugins into a set."""
    published = Published(tmp_path, CIS["github"])
    plugins = published.manager.get_plugins()
    assert len({*plugins}) == len(published.names()) > 0


@pytest.mark.parametrize("name", CIS)
def test_a_ci_is_detected_by_its_vendor_variable(name: str) -> None:
    """Other variables that several CI servers set do not matter."""
    build = ci.detect({"CI": "true", **CIS[name]})
    assert build is not None
    assert build.ci == name


def test_a_detected_build_includes_its_url() -> None:
    """The URL is in a variable of the CI, or is composed of several."""
    assert ci.detect(CIS["github"]) == ci.Build(
        ci="github", url="https://github.example/anna/shop/actions/runs/7", revision="c0ffee"
    )
    build = ci.detect(CIS["gitlab"])
    assert build is not None
    assert (build.url, build.number, build.revision) == ("https://ci/7", "7", "")


def test_shared_variables_do_not_identify_a_ci() -> None:
    """CI_PIPELINE_ID is set by GitLab and by Woodpecker."""
    assert ci.detect({"CI": "true", "CI_PIPELINE_ID": "7"}) is None
    assert ci.is_ci({"CI": "true"})
    assert not ci.is_ci({})


# -- selected publishers ---------------------------------------------------------------------


def test_no_publisher_runs_outside_ci(tmp_path: Path) -> None:
    """A run on a developer's machine leaves no files."""
    published = Published(tmp_path, {})
    published.up()
    published.over("destroyed")
    assert published.names() == []
    assert not published.folder.exists()


def test_an_unknown_ci_gets_the_json_file(tmp_path: Path) -> None:
    """The file has the URL while the environment is up, and null once it is destroyed."""
    published = Published(tmp_path, {"CI": "1"})
    published.up()
    file = published.folder / "environments.json"
    assert json.loads(file.read_text())["environments"][0]["url"] == URL
    published.over("destroyed")
    assert json.loads(file.read_text())["environments"][0]["url"] is None


def test_publish_selects_the_publishers(tmp_path: Path) -> None:
    """``gitlab`` has no effect in another CI; ``json`` works everywhere if it is named."""
    published = Published(tmp_path, CIS["github"], 'publish = ["gitlab", "json"]\n')
    assert published.names() == ["json file"]
    (tmp_path / "none").mkdir()
    assert Published(tmp_path / "none", CIS["github"], "publish = []\n").names() == []


def test_an_unknown_publisher_is_a_configuration_error(tmp_path: Path) -> None:
    """The error is raised when the configuration is read."""
    with pytest.raises(ConfigurationError, match=r"publish\[0\]: expected .*github"):
        Published(tmp_path, {}, 'publish = ["githbu"]\n')


# -- files -----------------------------------------------------------------------------------


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
    """A killed run leaves no file, and so no URL of a destroyed environment."""
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
    """Other steps may have written to the file."""
    file = tmp_path / "variables"
    file.write_text("OTHER=1\n")
    published = Published(tmp_path, {**CIS[name], variable: str(file)})
    published.up()
    assert file.read_text() == "OTHER=1\n"
    published.over("kept")
    assert file.read_text().startswith("OTHER=1\n")
    assert line in file.read_text()


# -- errors ----------------------------------------------------------------------------------


def test_a_failing_publisher_does_not_stop_the_others(tmp_path: Path) -> None:
    """The failure is one warning, and all other publishers receive every event."""
    output = tmp_path / "output"
    environ = {"GITHUB_STEP_SUMMARY": str(tmp_path), "GITHUB_OUTPUT": str(output)}
    published = Published(tmp_path, {**CIS["github"], **environ})
    for number in range(3):
        published.over("destroyed", id=f"staging-{number}")
    (warning,) = published.warnings
    assert warning.startswith("publishing to github summary failed: IsADirectoryError: ")
    assert "EPHEMERAL_URL_EXPIRED" in output.read_text()


def test_no_secret_is_published(tmp_path: Path) -> None:
    """Neither a variable of a template nor a password in the URL is published."""
    environ = {"CI": "1", "SHOP_KEY": "swordfish"}
    published = Published(tmp_path, environ)
    published.up("http://anna:pass@127.0.0.1/?key=swordfish")
    told = (published.folder / "environments.json").read_text()
    assert "http://127.0.0.1/?key=***" in told
    assert "swordfish" not in told
    assert "pass" not in told


def test_an_environment_without_a_url_is_not_published(tmp_path: Path) -> None:
    """Without a URL there is nothing to publish, so no file is written."""
    published = Published(tmp_path, {"CI": "1"})
    published.over("destroyed", url="")
    assert not published.folder.exists()


# -- over the network ------------------------------------------------------------------------


def test_a_github_token_enables_deployments(tmp_path: Path) -> None:
    """The API's address is that of the repository's own GitHub server."""
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
    """Webhooks also work outside CI; URL and headers may refer to variables."""
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
    """The error is raised before any environment is launched."""
    with pytest.raises(
        ConfigurationError, match=r"webhook\[0\].url: .*variable HOOK, which is not set"
    ):
        Published(tmp_path, {}, '[[webhook]]\nurl = "{env:HOOK}"\n')


def test_close_waits_for_all_webhooks_in_parallel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten unreachable webhooks take no longer than one."""
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
    """Only the first 20 environments and important outcomes such as ``leaked`` are sent."""
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
