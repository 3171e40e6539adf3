"""Which CI this runs in, and what it calls this build.

A CI is known by its vendor's own variable. The shared ``CI_*`` names tell nothing: GitLab and
Woodpecker both have ``CI_PIPELINE_ID``, and mean different things by it.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from pytest_ephemeral.models import Model


class Build(Model, frozen=True, kw_only=True):
    """One build of a CI. What it does not tell is empty.

    Attributes:
        ci: Its name, as ``publish`` in the configuration has it.
        url: Where people see the build.
        number: What the CI counts it as.
        revision: The commit that is built.
        branch: Or the tag.
    """

    ci: str
    url: str = ""
    number: str = ""
    revision: str = ""
    branch: str = ""


class _Vendor(msgspec.Struct, frozen=True):
    """Where a CI says things: templates over its variables, empty where it doesn't."""

    marker: str
    url: str = ""
    number: str = ""
    revision: str = ""
    branch: str = ""
    value: str = ""


#: In the order of asking: some set an older one's variables too, and Jenkins' are put anywhere.
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
    """The build that this is part of; None where no CI that we know says so."""
    for name, vendor in VENDORS.items():
        marked = environ.get(vendor.marker)
        if marked and vendor.value in {"", marked}:
            return Build(
                ci=name,
                url=_filled(vendor.url, environ),
                number=_filled(vendor.number, environ),
                revision=_filled(vendor.revision, environ),
                branch=_filled(vendor.branch, environ),
            )
    return None


def is_ci(environ: Mapping[str, str]) -> bool:
    """Whether this is any CI at all: what pytest goes by, or one that we know."""
    return bool(environ.get("CI") or environ.get("BUILD_NUMBER")) or detect(environ) is not None


def revision(folder: Path, environ: Mapping[str, str]) -> str:
    """The commit that is worked on: by the CI's word, or git's; empty where neither knows.

    Args:
        folder: Inside the work tree.
        environ: The CI's variables.

    Returns:
        Its hash; with ``-dirty`` behind it where files differ from it.
    """
    build = detect(environ)
    if build is not None and build.revision:
        return build.revision
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    unlocked = {**environ, "GIT_OPTIONAL_LOCKS": "0"}  # somebody may be committing meanwhile
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
