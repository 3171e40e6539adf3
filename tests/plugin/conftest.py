"""A project for every test of the plugin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module

import pytest

from support.plugin_project import PluginProject, make_project

# Import these modules once: modules that an inner pytest imports are unloaded at its end.
for name in (
    *("broker.server", "broker.process", "images.stages", "providers.local"),
    "pytest_plugin.controller",
):
    import_module(f"pytest_ephemeral.{name}")


@pytest.fixture
def project(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[PluginProject]:
    """A project with a small application. Its environments must leave no traces."""
    project = make_project(pytester.path, monkeypatch, tmp_path_factory)
    yield project
    clean, traces = project.clean_within(30), project.traces()
    if not clean:
        project.destroy_all()
    assert clean, traces


@pytest.fixture
def run(pytester: pytest.Pytester) -> Callable[..., pytest.RunResult]:
    """Run pytest in the project, in this process."""

    def run(*arguments: str) -> pytest.RunResult:
        return pytester.runpytest_inprocess("-p", "no:randomly", "--ephemeral-env", *arguments)

    return run
