"""What a machine lacks: a test that needs it is left out, and one line in the end says so."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NoReturn

import pytest

_REASON = re.compile(r"(?:Skipped: )?without (.*?): ")


def skip_without(what: str, why: str) -> NoReturn:
    """Leave a test out.

    Args:
        what: That is not here, such as ``BIND``.
        why: How that is seen, or how to have it.
    """
    pytest.skip(f"without {what}: {why}")


def missing(reasons: Iterable[str]) -> str:
    """Say in one line what was not there, and for how many tests; empty where nothing was."""
    matches = (_REASON.match(reason) for reason in reasons)
    counts = Counter(match[1] for match in matches if match)
    return ", ".join(f"{what} ({count})" for what, count in counts.most_common())
