"""Detect the CI server and its build from environment variables.

A CI server is detected by a variable that only this vendor sets. Names like ``CI_*`` are shared:
GitLab and Woodpecker both set ``CI_PIPELINE_ID``, with different meanings.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from pytest_ephemeral.models import Model


class Build(Model, frozen=True, kw_only=True):
    """One build of a CI server. Facts that the server does not provide are empty.

    Attributes:
        ci: The name of the CI server, as in ``publish`` of the configuration.
        url: The URL of the build's page.
        number: The number of the build.
        revision: The hash of the commit.
        branch: The branch or the tag.
    """

    ci: str
    url: str = ""
    number: str = ""
    revision: str = ""
    branch: str = ""


class _Vendor(msgspec.Struct, frozen=True):
    """The variables of a CI server: ``marker`` detects it, the others are format strings.

    Attributes:
        marker: A variable that is set by this CI server.
        url: As in ``Build``, like all others; empty if the server does not provide it.
        value: The value of ``marker``; if empty, any value matches.
    """

    marker: str
    url: str = ""
    number: str = ""
    revision: str = ""
    branch: str = ""
    value: str = ""


#: In the order of detection: some CI servers also set the variables of an older one, and Jenkins
#: runs on agents with any variables.
VENDORS: Final[Mapping[str, _Vendor]] = {
    "github": _Vendor(
        marker="GITHUB_ACTIONS",
        url="{GITHUB_SERVER_URL}/{GITHUB_REPOSITORY}/actions/runs/{GITHUB_RUN_ID}",
        number="{GITHUB_RUN_NUMBER}",
        revision="{GITHUB_SHA}",
        branch="{GITHUB_REF_NAME}",
    ),
    "gitlab": _Vendor(
        marker="GITLAB_CI",
        url="{CI_JOB_URL}",
        number="{CI_PIPELINE_ID}",
        revision="{CI_COMMIT_SHA}",
        branch="{CI_COMMIT_REF_NAME}",
    ),
    "buildkite": _Vendor(
        marker="BUILDKITE",
        url="{BUILDKITE_BUILD_URL}",
        number="{BUILDKITE_BUILD_NUMBER}",
        revision="{BUILDKITE_COMMIT}",
        branch="{BUILDKITE_BRANCH}",
    ),
    "azure": _Vendor(
        marker="TF_BUILD",
        url="{SYSTEM_TEAMFOUNDATIONCOLLECTIONURI}{SYSTEM_TEAMPROJECT}"
        "/_build/results?buildId={BUILD_BUILDID}",
        number="{BUILD_BUILDID}",
        revision="{BUILD_SOURCEVERSION}",
        branch="{BUILD_SOURCEBRANCHNAME}",
    ),
    "teamcity": _Vendor(
        marker="TEAMCITY_VERSION",
        url="{BUILD_URL}",
        number="{BUILD_NUMBER}",
        revision="{BUILD_VCS_NUMBER}",
    ),
    "circleci": _Vendor(
        marker="CIRCLECI",
        url="{CIRCLE_BUILD_URL}",
        number="{CIRCLE_BUILD_NUM}",
        revision="{CIRCLE_SHA1}",
        branch="{CIRCLE_BRANCH}",
    ),
    "bitbucket": _Vendor(
        marker="BITBUCKET_BUILD_NUMBER",
        url="{BITBUCKET_GIT_HTTP_ORIGIN}/pipelines/results/{BITBUCKET_BUILD_NUMBER}",
        number="{BITBUCKET_BUILD_NUMBER}",
        revision="{BITBUCKET_COMMIT}",
        branch="{BITBUCKET_BRANCH}",
    ),
    "woodpecker": _Vendor(
        marker="CI",
        value="woodpecker",
        url="{CI_PIPELINE_URL}",
        number="{CI_PIPELINE_NUMBER}",
        revision="{CI_COMMIT_SHA}",
        branch="{CI_COMMIT_BRANCH}",
    ),
    "drone": _Vendor(
        marker="DRONE",
        url="{DRONE_BUILD_LINK}",
        number="{DRONE_BUILD_NUMBER}",
        revision="{DRONE_COMMIT_SHA}",
        branch="{DRONE_BRANCH}",
    ),
    "travis": _Vendor(
        marker="TRAVIS",
        url="{TRAVIS_BUILD_WEB_URL}",
        number="{TRAVIS_BUILD_NUMBER}",
        revision="{TRAVIS_COMMIT}",
        branch="{TRAVIS_BRANCH}",
    ),
    "jenkins": _Vendor(
        marker="JENKINS_URL",
        url="{BUILD_URL}",
        number="{BUILD_NUMBER}",
        revision="{GIT_COMMIT}",
        branch="{BRANCH_NAME}",
    ),
}


def detect(environ: Mapping[str, str]) -> Build | None:
    """The current build; None outside of a known CI server."""
    for name, vendor in VENDORS.items():
        marked = environ.get(vendor.marker)
        if marked and vendor.value in {"", marked}:
            formats = (vendor.url, vendor.number, vendor.revision, vendor.branch)
            url, number, commit, branch = (_filled(one, environ) for one in formats)
            return Build(ci=name, url=url, number=number, revision=commit, branch=branch)
    return None


def is_ci(environ: Mapping[str, str]) -> bool:
    """Whether this is a CI server, by pytest's rule (``CI``, ``BUILD_NUMBER``) or ``detect``."""
    return bool(environ.get("CI") or environ.get("BUILD_NUMBER")) or detect(environ) is not None


def revision(folder: Path, environ: Mapping[str, str]) -> str:
    """The current commit, from the CI server or else from git.

    Args:
        folder: A folder inside the work tree.
        environ: The environment variables.

    Returns:
        The commit's hash, with the suffix ``-dirty`` if git reports changed files; empty if
        neither the CI server nor git provides it.
    """
    build = detect(environ)
    if build is not None and build.revision:
        return build.revision
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    unlocked = {**environ, "GIT_OPTIONAL_LOCKS": "0"}  # another process may be committing
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            env=unlocked,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def _filled(template: str, environ: Mapping[str, str]) -> str:
    try:
        return template.format_map(environ)
    except KeyError:
        return ""
