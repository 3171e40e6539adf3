"""Problems are described in one line where their full text would repeat or mislead."""

import pytest

from pytest_ephemeral import early_environment
from pytest_ephemeral.broker.entries import Entry
from pytest_ephemeral.broker.failures import Failures
from pytest_ephemeral.broker.protocol import Key
from pytest_ephemeral.environments.removal import describe_problem


@pytest.mark.parametrize(
    "problem",
    ["web-a1 could not be removed: no answer.\nmore", "no answer.\nmore", "no answer"],
)
def test_a_failed_removal_is_described_once(problem: str) -> None:
    """Some providers' errors begin with the same words as the line."""
    assert describe_problem("web-a1", problem) == "web-a1 could not be removed: no answer"


def test_a_repeated_failure_does_not_announce_the_log_that_it_leaves_out() -> None:
    """From the second time on, only the first line is shown, without what leads to the log."""
    problem = "the image 'web' could not be baked: status 1. It printed last:\nboom"
    entry, failures = Entry(Key("web", "session", ""), problem=problem), Failures()
    failures.add(entry)
    assert failures.describe(entry) == problem
    repeated = "the image 'web' could not be baked: status 1. (details at the first failure)"
    assert failures.describe(entry) == repeated


def test_early_environment_refuses_a_session() -> None:
    """With the wrong object, it would silently find no environment."""
    with pytest.raises(TypeError, match=r"needs session\.config"):
        early_environment(object())  # type: ignore[arg-type]
