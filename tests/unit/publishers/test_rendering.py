"""The exact output for every CI, for plain and for hostile values."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from pytest_ephemeral.publishers import (
    azure,
    buildkite,
    events,
    github,
    gitlab,
    json_file,
    teamcity,
    tekton,
    text,
    webhook,
)
from pytest_ephemeral.publishers.channels import drop_empty
from support.publisher_events import HOSTILE, URL, event

IMAGE = "sha256:" + "ab" * 32


# -- variables -------------------------------------------------------------------------------


def test_kept_environments_have_the_documented_variables() -> None:
    """The names are the same in every CI; each template's URL has a variable, too."""
    assert events.variables([event("kept", template="staging-arm")]) == {
        "EPHEMERAL_URL": URL,
        "EPHEMERAL_URL_EXPIRED": "",
        "EPHEMERAL_ENVIRONMENT": "staging-arm-7f3k2q",
        "EPHEMERAL_TEMPLATE": "staging-arm",
        "EPHEMERAL_IMAGE": IMAGE,
        "EPHEMERAL_STAGING_ARM_URL": URL,
        "EPHEMERAL_STAGING_ARM_URL_EXPIRED": "",
    }


@pytest.mark.parametrize("outcome", ["destroyed", "died", "leaked"])
def test_a_destroyed_environment_has_only_an_expired_url(outcome: events.Outcome) -> None:
    """A later step must not use the URL of an environment that is gone."""
    values = events.variables([event(outcome)])
    assert {name for name, value in values.items() if value == URL} == {
        "EPHEMERAL_URL_EXPIRED",
        "EPHEMERAL_STAGING_URL_EXPIRED",
    }


def test_variables_prefer_the_first_live_environment() -> None:
    """Environments destroyed before it do not count."""
    told = [
        event("destroyed", "http://one/", "one"),
        event("kept", "http://two/", "two"),
        event("kept", "http://three/", "three"),
    ]
    values = events.variables(told)
    assert values["EPHEMERAL_URL"] == "http://two/"
    assert values["EPHEMERAL_ENVIRONMENT"] == "two-7f3k2q"
    assert values["EPHEMERAL_URL_EXPIRED"] == ""
    assert values["EPHEMERAL_ONE_URL_EXPIRED"] == "http://one/"
    assert values["EPHEMERAL_THREE_URL"] == "http://three/"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://anna:pass@shop.example/x", "https://shop.example/x"),
        ("https://token@shop.example:81/", "https://shop.example:81/"),
        ("https://shop.example/?key=swordfish", "https://shop.example/?key=***"),
        ("https://shop.example/@anna", "https://shop.example/@anna"),
    ],
)
def test_secrets_in_a_url_are_removed(url: str, shown: str) -> None:
    """The user information before the host and the values of secrets are removed."""
    assert events.clean(url, ["swordfish"]) == shown


# -- GitHub ----------------------------------------------------------------------------------


def test_github_notice_is_one_workflow_command() -> None:
    """The command is a single line, and only for an environment that is up."""
    assert github.notice(event()) == (
        "::notice title=Environment staging-7f3k2q::staging (staging-7f3k2q) is up: "
        "http://127.4.9.3:8080/, until 2026-05-04 12:00 UTC at the latest"
    )
    assert github.notice(event("destroyed")) == ""


def test_github_notice_escapes_hostile_values() -> None:
    """A value can't start a second command or set another property."""
    said = github.notice(event(url=HOSTILE, id="a:b,c%\nd"))
    assert "\n" not in said
    assert "\r" not in said
    assert said.startswith("::notice title=Environment a%3Ab%2Cc%25%0Ad::")
    assert "http://x/?a=%250A&b=" in said
    assert "%0D%0A::error::no%0A##vso[x]é" in said


def test_github_outputs_use_delimited_blocks() -> None:
    """The delimiter allows values of several lines."""
    assert github.assignments({"A": "1\n2", "B": ""}, "end") == "A<<end\n1\n2\nend\nB<<end\n\nend\n"


def test_github_output_containing_the_delimiter_is_refused() -> None:
    """Such a value could set any other variable."""
    with pytest.raises(ValueError, match="A holds the delimiter"):
        github.assignments({"A": "x\nend\nPATH<<end\n/evil"}, "end")


def test_github_summary_links_kept_and_strikes_ended_urls() -> None:
    """A kept environment has a link; the URL of a destroyed one is struck out."""
    assert github.summary(event()) == ""
    assert github.summary(event("kept")) == (
        "- **staging** (`staging-7f3k2q`) "
        "[http://127.4.9.3:8080/](<http://127.4.9.3:8080/>) until 2026-05-04 12:00 UTC"
        ", image `sha256:abababababab`\n"
    )
    assert github.summary(event("destroyed")) == (
        "- **staging** (`staging-7f3k2q`) is gone: ~~`http://127.4.9.3:8080/`~~"
        ", image `sha256:abababababab`\n"
    )


def test_github_deployment_statuses_follow_the_outcome() -> None:
    """The states are in progress, success with the URL, and inactive at the end."""
    assert github.deployment(event(), "c0ffee") == {
        "ref": "c0ffee",
        "task": "ephemeral:staging-7f3k2q",
        "auto_merge": False,
        "required_contexts": [],
        "payload": {"environment": "staging-7f3k2q", "image": IMAGE},
        "environment": "staging",
        "description": "staging-7f3k2q, by pytest-ephemeral",
        "transient_environment": True,
        "production_environment": False,
    }
    up = github.statuses(event(), "https://ci/1")
    assert [status["state"] for status in up] == ["in_progress", "success"]
    assert up[1]["environment_url"] == URL
    assert up[1]["log_url"] == "https://ci/1"
    assert github.statuses(event("kept"), "") == []
    assert [status["state"] for status in github.statuses(event("died"), "")] == ["inactive"]


# -- files -----------------------------------------------------------------------------------


def test_gitlab_dotenv_contains_only_plain_lines() -> None:
    """GitLab's format has no quotes; empty and multi-line values are left out."""
    values = {"A": "1", "EMPTY": "", "B": HOSTILE, "C": "x y"}
    assert gitlab.dotenv(values) == "A=1\nC=x y\n"


def test_gitlab_dotenv_stays_within_the_limits() -> None:
    """GitLab rejects a report of more than 20 variables or 5 KB completely."""
    many = gitlab.dotenv({f"V{at}": "x" for at in range(50)})
    assert many.count("\n") == 20
    long = gitlab.dotenv({f"V{at}": "é" * 500 for at in range(10)})
    assert 0 < len(long.encode()) <= 5 * 1024
    assert long.endswith("\n")


def test_jenkins_properties_are_escaped_as_java_expects() -> None:
    """Jenkins reads the file with java.util.Properties."""
    values = {"A": "http://x/?a=b:c#d!", "B": " C:\\temp\n\té\U0001f600"}
    assert text.properties(values) == (
        "A=http://x/?a=b:c#d!\nB=\\ C:\\\\temp\\n\\t\\u00e9\\ud83d\\ude00\n"
    )


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_exports_round_trip_through_bash() -> None:
    """CircleCI, Woodpecker and others source the file in a shell."""
    script = text.exports({"A": HOSTILE, "B": ""})
    done = subprocess.run(
        ["bash", "-c", f'{script}\nprintf "%s|%s" "$A" "$B"'],
        capture_output=True,
        check=True,
        timeout=30,
    )
    assert done.stdout.decode() == f"{HOSTILE}|"
    assert done.stderr == b""


def test_bitbucket_assignments_skip_multiline_values() -> None:
    """Each line is one assignment, so a second line could set another variable."""
    assert text.assignments({"A": "a b", "B": "x\nPATH=/evil", "C": ""}) == "A=a b\nC=\n"


def test_tekton_results_stay_within_the_size_limit() -> None:
    """A task fails if its results are too large, so a long URL becomes empty."""
    values = events.variables([event("kept")])
    assert tekton.results(values) == {
        "ephemeral-url": URL,
        "ephemeral-url-expired": "",
        "ephemeral-environment": "staging-7f3k2q",
        "ephemeral-image": IMAGE,
    }
    long = tekton.results(events.variables([event("kept", url="http://x/" + "é" * 4000)]))
    assert sum(len(value.encode()) for value in long.values()) <= 4096
    assert long["ephemeral-url"] == ""


# -- logging commands ------------------------------------------------------------------------


def test_azure_variables_are_escaped() -> None:
    """Each variable is set for the steps of this job and as an output."""
    assert azure.set_variables({"A": "50%\r\n##vso[x];]"}) == (
        "##vso[task.setvariable variable=A]50%AZP25%0D%0A##vso[x];]\n"
        "##vso[task.setvariable variable=A;isOutput=true]50%AZP25%0D%0A##vso[x];]"
    )


def test_azure_summary_path_is_escaped() -> None:
    """The command has the path of the summary file."""
    assert (
        azure.upload_summary(Path("/w/100%/a.md")) == "##vso[task.uploadsummary]/w/100%AZP25/a.md"
    )


def test_teamcity_messages_are_escaped() -> None:
    """A message is one line of ASCII; special characters are escaped with ``|``."""
    assert teamcity.set_parameters({"A": "it's [a] |\r\né\U0001f600"}) == (
        "##teamcity[setParameter name='env.A' value='it|'s |[a|] |||r|n|0x00E9|0xD83D|0xDE00']"
    )
    assert teamcity.progress(event()) == (
        "##teamcity[progressMessage 'staging (staging-7f3k2q) is up: http://127.4.9.3:8080/, "
        "until 2026-05-04 12:00 UTC at the latest']"
    )
    assert "\n" not in teamcity.progress(event(url=HOSTILE))
    assert teamcity.progress(event("kept")) == ""


def test_buildkite_values_never_become_arguments() -> None:
    """Values are passed on standard input; the context lets an annotation be replaced."""
    command, body = buildkite.annotation(event())
    assert command == [
        "buildkite-agent",
        "annotate",
        "--context",
        "ephemeral-staging-7f3k2q",
        "--style",
        "info",
    ]
    assert f"(<{URL}>)" in body
    command, body = buildkite.annotation(event("destroyed", id="x" * 200))
    assert len(command[3]) == 100
    assert "--style" not in command
    assert "is gone" in body
    assert buildkite.meta_data("A", HOSTILE) == (
        ["buildkite-agent", "meta-data", "set", "A"],
        HOSTILE,
    )
    assert drop_empty({"A": "", "B": "x"}) == {"B": "x"}


# -- Markdown and JSON -----------------------------------------------------------------------


@pytest.mark.parametrize(("outcome", "links"), [("kept", 1), ("destroyed", 0)])
def test_markdown_stays_one_line_of_text(outcome: events.Outcome, links: int) -> None:
    """A URL can't add markup, another line or another link."""
    line = text.markdown_line(event(outcome, url=HOSTILE, id="x-`y`<i>"))
    html = MarkdownIt().render(line)
    assert html.count("<p>") == 1
    assert html.count("<a ") == links
    assert 'href="http://x/?' in html or not links
    assert not {"<b>", "<em>", "<i>", "<h1>"} & set(re.findall(r"<[a-z0-9]+>", html))


def test_only_web_addresses_are_links() -> None:
    """A ``javascript:`` URL, for example, stays plain text."""
    assert text.link("javascript:alert(1)") == "javascript:alert\\(1\\)"


def test_the_json_file_has_all_environments() -> None:
    """It also has environments that are still up, which have no variables."""
    told = json.loads(json_file.document([event("destroyed"), event("up", id="staging-b")]))
    assert told["version"] == 1
    assert [one["state"] for one in told["environments"]] == ["destroyed", "up"]
    gone, here = told["environments"]
    assert (gone["url"], gone["expired_url"]) == (None, URL)
    assert (here["url"], here["expired_url"]) == (URL, None)
    assert here["owner"] == "anna@box:12"
    assert here["expires_at"] == "2026-05-04T12:00:00Z"
    assert told["variables"]["EPHEMERAL_URL_EXPIRED"] == URL
    assert told["variables"]["EPHEMERAL_URL"] == ""


def test_slack_message_contains_sentence_and_data() -> None:
    """The sentence has a working link, and the same facts follow as data."""
    body = webhook.message(event(), None)
    assert body["text"] == (
        "staging (staging-7f3k2q) is up: <http://127.4.9.3:8080/>, "
        "until 2026-05-04 12:00 UTC at the latest"
    )
    assert body["event"] == "up"
    assert body["environment"]["url"] == URL
    assert body["environment"]["image"]["key"] == IMAGE
    gone = webhook.message(event("died"), None)
    assert gone["text"] == "staging (staging-7f3k2q) stopped by itself; it was " + URL


def test_slack_message_escapes_hostile_values() -> None:
    """A URL can't mention a channel or add another link."""
    said = webhook.message(event(url="http://x/<!channel>|&\n"), None)["text"]
    assert "<!channel>" not in said
    assert "\n" not in said
    assert said.count("<") == 1
