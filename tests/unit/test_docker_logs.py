"""What is made of an engine's logs: whole lines, between marks, and without secrets."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_ephemeral.providers.docker import logs, masking
from pytest_ephemeral.providers.docker.logs import Mark
from pytest_ephemeral.providers.docker.masking import Masking

SECRET = "pr0be-t0ken"


def stream(*pieces: tuple[int, str]) -> io.BytesIO:
    """What an engine answers: each piece on its channel, after when it was printed."""
    data = b""
    for channel, text in pieces:
        piece = text.encode()
        data += bytes([channel, 0, 0, 0]) + len(piece).to_bytes(4, "big") + piece
    return io.BytesIO(data)


def lines(*pieces: tuple[int, str]) -> list[str]:
    return [line for _, line in logs._lines(stream(*pieces))]  # type: ignore[arg-type]


def test_a_long_line_is_put_together() -> None:
    """However the engine cuts it, and whatever comes on the other channel meanwhile."""
    assert lines(
        (1, "2026-01-02T03:04:05.000000001Z a long"),
        (2, "2026-01-02T03:04:05.000000002Z oh\n"),
        (1, "2026-01-02T03:04:05.000000003Z  line\n"),
        (1, "2026-01-02T03:04:05.000000004Z unfinished"),
    ) == ["oh\n", "a long line\n", "unfinished"]


def test_a_character_may_be_cut_too() -> None:
    """A piece ends at a byte, not at a character."""
    stamp = b"2026-01-02T03:04:05Z "
    pieces = [stamp + b"caf\xc3", stamp + b"\xa9\n"]
    frames = b"".join(bytes([1, 0, 0, 0]) + len(p).to_bytes(4, "big") + p for p in pieces)
    assert [line for _, line in logs._lines(io.BytesIO(frames))] == ["café\n"]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("stamp", "when"),
    [
        ("1970-01-01T00:00:01Z", 10**9),
        ("1970-01-01T00:00:01.5Z", 15 * 10**8),
        ("1970-01-01T02:00:01.000000007+02:00", 10**9 + 7),
        ("nonsense", 0),
    ],
)
def test_when_a_line_was_printed(stamp: str, when: int) -> None:
    """As Docker says it, and as Podman does."""
    assert logs._when(stamp) == when


@pytest.mark.parametrize("mark", [Mark(1), Mark(1795733249000000000, 3), logs.BEGINNING])
def test_a_mark_is_read_as_it_was_written(mark: Mark) -> None:
    """It goes over the wire as text."""
    assert Mark.read(str(mark)) == mark


# -- secrets ---------------------------------------------------------------------------------------


def masking_of(variables: dict[str, str], *secrets: str) -> tuple[Masking, dict[str, str]]:
    """How a container with these variables masks its logs, and the labels that say so."""
    marks = masking.labels_for(variables, secrets)
    env = [f"{name}={value}" for name, value in variables.items()]
    return Masking.of({"Env": env, "Labels": marks}), marks


def test_a_secret_in_a_variable_is_known_by_its_place() -> None:
    """No label has anything of it."""
    masked, marks = masking_of({"URL": f"redis://:{SECRET}@db"}, SECRET)
    assert marks == {masking.SPANS: f"URL=9+{len(SECRET)}", masking.SEALED: ""}
    assert masked(f"to redis://:{SECRET}@db\n") == "to redis://:***@db\n"


def test_a_secret_in_no_variable_is_known_all_the_same() -> None:
    """Such as one that only the readiness probe sends; the label does not give it away."""
    masked, marks = masking_of({"MODE": "x"}, SECRET)
    assert SECRET not in str(marks)
    text = f"p{SECRET}{SECRET} pr0be-t0keN {SECRET[:-1]}\n"
    assert masked(text) == f"p****** pr0be-t0keN {SECRET[:-1]}\n"


@given(st.text(min_size=4, max_size=20), st.text(max_size=60), st.text(max_size=60))
def test_whatever_a_secret_is_it_is_not_shown(secret: str, before: str, after: str) -> None:
    """By its place or by its seal: no line that it is printed in shows it."""
    sealed, _ = masking_of({}, secret)
    for line in secret.splitlines():
        if len(line) >= 4:
            assert sealed(line) == "***"
            assert sealed(before + line + after).count("***") >= 1


def test_what_is_too_short_to_be_one_is_not_masked() -> None:
    """It would be found all over a log."""
    masked, _ = masking_of({}, "ab")
    assert masked("abab\n") == "abab\n"
