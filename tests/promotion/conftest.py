"""Two environments that answer, and a name for one of them."""

import pytest

from support.promotion import make_stage, served, stage

__all__ = ["make_stage", "served", "stage"]


@pytest.fixture(autouse=True)
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    """What other tests have left on an engine is none of these tests' to reap."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
