"""Fixtures for tests of promotion: two environments, and a production name."""

import pytest

from support.promotion import make_stage, served, stage

__all__ = ["make_stage", "served", "stage"]


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide container engines, as these tests must not reap the containers of other tests."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
