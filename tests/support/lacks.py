"""Skip tests for lack of a program, and list what a machine lacks in one line at the end."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from typing import NoReturn

import pytest

_REASON = re.compile(r"(?:Skipped: )?without (.*?): ")


def skip_without(what: str, why: str) -> NoReturn:
    """Skip a test for lack of something.

    Args:
        what: What this machine lacks, such as ``BIND``.
        why: The error, or how to install it.
    """
    pytest.skip(f"without {what}: {why}")


def missing(reasons: Iterable[str]) -> str:
    """What the machine lacks, each with the number of skipped tests, in one line."""
    matches = (_REASON.match(reason) for reason in reasons)
    counts = Counter(match[1] for match in matches if match)
    return ", ".join(f"{what} ({count})" for what, count in counts.most_common())
