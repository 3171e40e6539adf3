"""What a failed compose command is quoted with: its reason, and not its progress."""

from types import SimpleNamespace

import pytest

from pytest_ephemeral.providers.compose.command import CommandResult
from pytest_ephemeral.providers.compose.launch import Launch

REASON = "dependency failed to start: container shop-db-1 is unhealthy"

#: As Compose 2 prints it where nobody watches: the reason may come before the last of the progress.
PROGRESS = [f" Container shop-worker-{number}  Created" for number in range(30)]
TAIL = [
    " Container shop-db-1  Error",
    " Container shop-web-1  Waiting",
    " Network shop_back  Removed",
]


@pytest.mark.parametrize(
    "lines",
    [[*PROGRESS, *TAIL, REASON], [*PROGRESS, REASON, *TAIL], [REASON, *PROGRESS, *TAIL]],
    ids=["last", "in the middle", "first"],
)
def test_a_dependency_that_failed_does_not_drown_in_progress(lines: list[str]) -> None:
    """The line is all that is quoted, wherever it stands."""
    launch = SimpleNamespace(order=SimpleNamespace(secrets=()))
    said = CommandResult(1, "", "\n".join(lines))
    assert Launch._error_text(launch, said).startswith(REASON)
    assert "shop-worker" not in Launch._error_text(launch, said)
