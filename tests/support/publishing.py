"""A run that publishes, and the variables of CI systems."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pluggy

from pytest_ephemeral import config, hookspecs, publishers
from support.publisher_events import URL, environment

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
    """The environments of a run; their events reach the publishers as from a lifecycle."""

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


# -- CI systems ------------------------------------------------------------------------------

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
