"""Text from outside is printed so that neither a terminal nor a CI server interprets it."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ephemeral.text import one_line, printable

HOSTILE = [
    "fine\n##vso[task.setvariable variable=SECRET]x",
    "fine\r\n::error title=x::y",
    "fine ##teamcity[setParameter name='a' value='b']",
    "fine ##[error]x",
    "\x1b]0;title\x07\x1b[31mred",
    "a\u2028b\u0085c\x0bd",
    "\u202egnirts desrever",
    "\x9b31m",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_one_line_removes_control_characters(text: str) -> None:
    """The result has no line ends of any kind, and no commands of CI servers."""
    safe = one_line(text)
    assert len(safe.splitlines()) <= 1
    assert safe.isprintable()
    assert not re.search(r"##\w*\[", safe)


@given(st.text())
def test_any_text_becomes_one_line(text: str) -> None:
    """A second call changes nothing."""
    safe = one_line(text)
    assert safe.isprintable()
    assert len(safe.splitlines()) <= 1
    assert one_line(safe) == safe


@pytest.mark.parametrize("text", HOSTILE)
def test_printable_keeps_only_line_breaks(text: str) -> None:
    """Messages of ours may have several lines."""
    safe = printable(f"first\n{one_line(text)}\nlast")
    assert safe.splitlines()[0] == "first"
    assert safe.splitlines()[-1] == "last"
    assert len(safe.splitlines()) == 3
    assert "\x1b" not in safe


def test_one_line_keeps_ordinary_text() -> None:
    """This includes umlauts, emoji, and number signs that start no command."""
    for text in ("Größe 1.2 · läuft", "✅ ok", "## Heading", "issue #12 [urgent]"):
        assert one_line(text) == text
