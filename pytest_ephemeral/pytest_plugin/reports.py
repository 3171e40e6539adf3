"""Add environments to the reports of tests: sections for failed tests, properties and links."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

import pytest

from pytest_ephemeral import urls
from pytest_ephemeral.broker.protocol import Evidence, Settings

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment

#: The largest number of log lines in a failed test's report.
LOG_LINES: Final = 100

_LINKED = pytest.StashKey[set[str]]()


class Evidencer:
    """Makes the sections of failed tests' reports.

    Args:
        config: pytest's configuration.
        settings: The settings of this run.
    """

    def __init__(self, config: pytest.Config, settings: Settings) -> None:
        self._settings = settings
        self._template = config.option.ephemeral_template
        self._config_file = config.option.ephemeral_config
        # Found now, as a failed test may have replaced the functions for it.
        self._root = os.path.relpath(config.rootpath, config.invocation_params.dir)
        self._here = os.path.relpath(config.invocation_params.dir, config.rootpath)

    def section(self, evidence: Evidence, test: str) -> tuple[str, str]:
        """A section of a failed test's report.

        Args:
            evidence: The environment's log and state.
            test: The test's id.

        Returns:
            Its title and text.
        """
        environment = evidence.environment
        lines = [f"{environment.id}  {urls.hide_password(environment.url)}".rstrip()]
        if evidence.died:
            lines += [evidence.died]
        logs = evidence.logs.rstrip().splitlines()
        lines += ["its log during this test:" if logs else "it printed nothing during this test"]
        if len(logs) > LOG_LINES:
            lines += [f"    ({len(logs) - LOG_LINES} more lines; --ephemeral-logs DIR writes all)"]
        lines += [f"    {line}" for line in logs[-LOG_LINES:]]
        lines += ["run it again:", f"    {self._rerun(evidence, test)}"]
        if evidence.kept and self._settings.attach is None:
            lines += ["it is still up. To destroy it:"]
            lines += [f"    {destroy(environment.id, self._settings)}"]
        return f"ephemeral environment {environment.id}", "\n".join(lines) + "\n"

    def _rerun(self, evidence: Evidence, test: str) -> str:
        """The command that runs a test again, with the same environment or the same image."""
        words = ["pytest", "--ephemeral-env"]
        if self._settings.attach is not None:
            words += ["--ephemeral-attach", urls.hide_password(self._settings.attach)]
        elif evidence.kept:
            words += ["--ephemeral-attach", evidence.environment.id]
        else:
            words += ["--ephemeral-bake", "never"]
            if self._template:
                words += ["--ephemeral-template", self._template]
        if self._config_file:
            words += ["--ephemeral-config", self._config_file]
        return shlex.join([*words, self._from_here(test)])

    def _from_here(self, test: str) -> str:
        """A test's id, made relative to the folder in which pytest was started."""
        if self._here != "." and test.startswith(f"{self._here}/"):
            return test.removeprefix(f"{self._here}/")
        return test if self._root == "." else f"{self._root}/{test}"


def destroy(id: str, settings: Settings) -> str:
    """The command that destroys an environment."""
    words = ["pytest-ephemeral", "down", id]
    if settings.config is not None:
        words += ["--config", str(settings.config)]
    return shlex.join(words)


def _properties(environment: Environment) -> list[tuple[str, object]]:
    """The properties of an environment for JUnit XML."""
    found = [
        ("ephemeral_environment", environment.id),
        ("ephemeral_template", environment.template),
        ("ephemeral_image", " ".join(image.key for image in environment.images)),
        ("ephemeral_url", urls.hide_password(environment.url)),
    ]
    return [(name, value) for name, value in found if value]


def add_environments(
    item: pytest.Item, report: pytest.TestReport, used: Iterable[Environment]
) -> None:
    """Add the environments that a test used to its reports: JUnit XML, pytest-html, Allure.

    All data is in the reports, which xdist's workers send to the controller. JUnit XML is written
    from the last report of a test.

    Args:
        item: The test.
        report: The report of the phase that has just ended.
        used: The environments that the test has used so far; each is added once.
    """
    linked = item.stash.setdefault(_LINKED, set())
    for environment in used:
        if environment.id in linked:
            continue
        linked.add(environment.id)
        item.user_properties.extend(_properties(environment))
        report.user_properties.extend(_properties(environment))
        if environment.url:
            _link(item.config, report, environment)


def _link(config: pytest.Config, report: pytest.TestReport, environment: Environment) -> None:
    url = urls.hide_password(environment.url)
    if config.pluginmanager.hasplugin("html"):
        extras = config.pluginmanager.getplugin("html").extras
        known = getattr(report, "extras", [])
        report.extras = [*known, extras.url(url, name=environment.id)]  # type: ignore[attr-defined]
    if config.pluginmanager.hasplugin("allure_listener"):
        import allure

        dynamic: Any = allure.dynamic  # it has no annotations
        dynamic.link(url, name=environment.id)
