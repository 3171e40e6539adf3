"""The search for the configuration file, shared by pytest and the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_ephemeral import discovery
from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.project import Project


@pytest.fixture
def monorepo(tmp_path: Path) -> Path:
    """Two applications with a configuration each, and one without."""
    for name in ("shop", "blog"):
        (tmp_path / name / "tests" / "acceptance").mkdir(parents=True)
        (tmp_path / name / "tests" / "acceptance" / "test_x.py").touch()
        (tmp_path / name / "ephemeral.toml").touch()
    (tmp_path / "none").mkdir()
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        (["shop"], "shop"),
        (["shop/tests/acceptance/test_x.py::test_it[a::b]"], "shop"),
        (["shop/tests", "shop/tests/acceptance/test_x.py"], "shop"),
        (["blog/tests/../tests"], "blog"),
        (["shop", "blog"], None),
        (["nowhere.module"], None),
        ([], None),
    ],
)
def test_the_search_starts_at_the_common_folder(
    monorepo: Path, arguments: list[str], found: str | None
) -> None:
    """Paths of two applications have only the folder above both in common."""
    start = discovery.common_folder(arguments, monorepo)
    expected = None if found is None else monorepo / found / "ephemeral.toml"
    assert discovery.find(start) == expected


def test_a_missing_configuration_error_lists_subfolders(monorepo: Path) -> None:
    """A user in the folder above the applications sees where to go."""
    with pytest.raises(ConfigurationError, match=r"in the folder of blog/.*toml or shop/eph"):
        Project.open(None, monorepo)
    with pytest.raises(ConfigurationError, match="pytest-ephemeral init"):
        Project.open(None, monorepo / "none")
