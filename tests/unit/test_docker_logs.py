"""An engine's logs: whole lines, read between marks, with secrets masked."""

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
    """An engine's response: frames of a channel and a text that starts with a timestamp."""
    data = b""
    for channel, text in pieces:
        piece = text.encode()
        data += bytes([channel, 0, 0, 0]) + len(piece).to_bytes(4, "big") + piece
    return io.BytesIO(data)


def lines(*pieces: tuple[int, str]) -> list[str]:
    return [line for _, line in logs._lines(stream(*pieces))]  # type: ignore[arg-type]


def test_line_fragments_are_joined() -> None:
    """The engine may split a line, with frames of the other channel in between."""
    assert lines(
        (1, "2026-01-02T03:04:05.000000001Z a long"),
        (2, "2026-01-02T03:04:05.000000002Z oh\n"),
        (1, "2026-01-02T03:04:05.000000003Z  line\n"),
        (1, "2026-01-02T03:04:05.000000004Z unfinished"),
    ) == ["oh\n", "a long line\n", "unfinished"]


def test_a_character_split_across_frames_is_decoded() -> None:
    """A frame can end in the middle of a character."""
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
def test_timestamps_are_parsed_to_nanoseconds(stamp: str, when: int) -> None:
    """Docker writes UTC, and Podman a time zone offset."""
    assert logs._when(stamp) == when


@pytest.mark.parametrize("mark", [Mark(1), Mark(1795733249000000000, 3), logs.BEGINNING])
def test_a_mark_round_trips_through_text(mark: Mark) -> None:
    """A mark is sent as text."""
    assert Mark.read(str(mark)) == mark


# -- secrets ---------------------------------------------------------------------------------------


def masking_of(variables: dict[str, str], *secrets: str) -> tuple[Masking, dict[str, str]]:
    """The masking for a container with these variables, and its labels."""
    labels = masking.labels_for(variables, secrets)
    env = [f"{name}={value}" for name, value in variables.items()]
    return Masking.of([{"Env": env, "Labels": labels}]), labels


def test_labels_record_only_the_position_of_secrets() -> None:
    """Labels have neither a part of the secret nor its length."""
    masked, labels = masking_of({"URL": f"redis://:{SECRET}@db"}, SECRET)
    assert labels == {masking.SPANS: "URL=9-3"}
    assert (
        labels == masking_of({"URL": "redis://:another, longer one@db"}, "another, longer one")[1]
    )
    assert masked(f"to redis://:{SECRET}@db\n") == "to redis://:***@db\n"


def test_masking_accepts_any_variable_name() -> None:
    """Engines allow every character but the equals sign."""
    masked, _ = masking_of({"app.key+1": SECRET}, SECRET)
    assert masked(SECRET) == "***"


def test_secrets_of_other_containers_are_masked() -> None:
    """A service may pass a secret to another one, which may log it."""
    labels = masking.labels_for({"KEY": SECRET}, [SECRET])
    configs = [{"Env": [f"KEY={SECRET}"], "Labels": labels}, {"Env": [], "Labels": {}}]
    assert Masking.of(configs)(f"login with {SECRET}\n") == "login with ***\n"


def test_remembered_secrets_are_masked() -> None:
    """The process that launched the environment remembers secrets that no label records."""
    masking.remember("web-1", [SECRET])
    assert masking.labels_for({}, [SECRET]) == {masking.SPANS: ""}
    assert Masking.of([], "web-1")(f"asked with {SECRET}\n") == "asked with ***\n"
    masking.forget("web-1")
    assert Masking.of([], "web-1").secrets == ()


@pytest.mark.parametrize(
    "label", ["KEY", "KEY=", "KEY=x-y", "=1-2", "KEY=0-99999999999999", "KEY=0-6", "KEY=0+4"]
)
def test_invalid_secret_labels_are_ignored(label: str) -> None:
    """An invalid label is no error, and masks nothing."""
    config = {"Env": ["KEY=value"], "Labels": {masking.SPANS: label}}
    assert Masking.of([config])("some text\n") == "some text\n"


@given(st.text(min_size=4, max_size=20), st.text(max_size=60), st.text(max_size=60))
def test_any_secret_is_masked(secret: str, before: str, after: str) -> None:
    """No line of the secret appears in the logs."""
    masked, _ = masking_of({"A": f"{before}{secret}{after}"}, secret)
    for line in secret.splitlines():
        if len(line) >= 4:
            assert masked(line) == "***"
            assert masked(before + line + after).count("***") >= 1


def test_short_values_are_not_masked() -> None:
    """A short value occurs in too many words of a log."""
    masked, _ = masking_of({}, "ab")
    assert masked("abab\n") == "abab\n"
