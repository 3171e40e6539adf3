"""What passes between a broker and its borrowers. Every worker loads it: nothing of it is heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment


class Look(NamedTuple):
    """How an environment is right before a test: why it can't be used, and its log's end."""

    problem: str
    mark: str


class Evidence(NamedTuple):
    """What an environment has to say about a failed test."""

    environment: Environment
    died: str
    logs: str
    kept: bool
