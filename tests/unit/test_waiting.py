"""Waiting for conditions, as the conformance suite does."""

import pytest

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.testing import waiting


def test_until_gone_names_the_remaining_items() -> None:
    """The message lists them when the time is over."""
    with pytest.raises(AssertionError, match="left: \\['web', 'db'\\]"):
        waiting.until_gone(lambda: ["web", "db"], within=0.02)


def test_until_gone_retries_after_errors() -> None:
    """An engine may refuse a request while it removes something."""
    looks = iter([OSError("too early"), EphemeralError("in the middle of it"), []])

    def look() -> list[str]:
        seen = next(looks)
        if isinstance(seen, Exception):
            raise seen
        return seen

    waiting.until_gone(look)


@pytest.mark.parametrize(("waited", "counted"), [(0.0, 10.0), (4.0, 6.0), (10.0, 1.0)])
def test_idle_clock_discounts_waiting_for_a_processor(
    monkeypatch: pytest.MonkeyPatch, waited: float, counted: float
) -> None:
    """This time does not count, but a tenth of the elapsed time always does."""
    times, stalls = iter([100.0, 110.0]), iter([50.0, 50.0 + waited])
    monkeypatch.setattr(waiting.time, "monotonic", lambda: next(times))
    monkeypatch.setattr(waiting, "_waited", lambda: next(stalls))
    clock = waiting.idle_clock()
    now = clock()
    monkeypatch.undo()
    assert now == pytest.approx(counted)


def test_missing_pressure_information_counts_as_no_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, every second counts towards a time limit."""
    monkeypatch.setattr(waiting, "_PRESSURE", waiting.Path("/nowhere"))
    assert waiting._waited() == 0.0
