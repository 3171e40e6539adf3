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


def test_line_fragments_are_joined() -> None:
    """However the engine cuts it, and whatever comes on the other channel meanwhile."""
    assert lines(
        (1, "2026-01-02T03:04:05.000000001Z a long"),
        (2, "2026-01-02T03:04:05.000000002Z oh\n"),
        (1, "2026-01-02T03:04:05.000000003Z  line\n"),
        (1, "2026-01-02T03:04:05.000000004Z unfinished"),
    ) == ["oh\n", "a long line\n", "unfinished"]


def test_a_character_split_across_frames_is_decoded() -> None:
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
def test_timestamps_are_parsed_to_nanoseconds(stamp: str, when: int) -> None:
    """As Docker says it, and as Podman does."""
    assert logs._when(stamp) == when


@pytest.mark.parametrize("mark", [Mark(1), Mark(1795733249000000000, 3), logs.BEGINNING])
def test_a_mark_round_trips_through_text(mark: Mark) -> None:
    """It goes over the wire as text."""
    assert Mark.read(str(mark)) == mark


# -- secrets ---------------------------------------------------------------------------------------


def masking_of(variables: dict[str, str], *secrets: str) -> tuple[Masking, dict[str, str]]:
    """How an environment of one container masks its logs, and the label that says so."""
    labels = masking.labels_for(variables, secrets)
    env = [f"{name}={value}" for name, value in variables.items()]
    return Masking.of([{"Env": env, "Labels": labels}]), labels


def test_labels_record_only_the_position_of_secrets() -> None:
    """No label has anything of it, nor tells how long it is."""
    masked, labels = masking_of({"URL": f"redis://:{SECRET}@db"}, SECRET)
    assert labels == {masking.SPANS: "URL=9-3"}
    assert (
        labels == masking_of({"URL": "redis://:another, longer one@db"}, "another, longer one")[1]
    )
    assert masked(f"to redis://:{SECRET}@db\n") == "to redis://:***@db\n"


def test_masking_accepts_any_variable_name() -> None:
    """Engines take all but an equals sign."""
    masked, _ = masking_of({"app.key+1": SECRET}, SECRET)
    assert masked(SECRET) == "***"


def test_secrets_of_other_containers_are_masked() -> None:
    """One service may tell another, which may log what it was told."""
    labels = masking.labels_for({"KEY": SECRET}, [SECRET])
    configs = [{"Env": [f"KEY={SECRET}"], "Labels": labels}, {"Env": [], "Labels": {}}]
    assert Masking.of(configs)(f"login with {SECRET}\n") == "login with ***\n"


def test_remembered_secrets_are_masked() -> None:
    """Whoever launched the environment knows it; no label says anything of it."""
    masking.remember("web-1", [SECRET])
    assert masking.labels_for({}, [SECRET]) == {masking.SPANS: ""}
    assert Masking.of([], "web-1")(f"asked with {SECRET}\n") == "asked with ***\n"
    masking.forget("web-1")
    assert Masking.of([], "web-1").secrets == ()


@pytest.mark.parametrize(
    "label", ["KEY", "KEY=", "KEY=x-y", "=1-2", "KEY=0-99999999999999", "KEY=0-6", "KEY=0+4"]
)
def test_invalid_secret_labels_are_ignored(label: str) -> None:
    """It is no reason to fail, and hides nothing that is not a variable's."""
    config = {"Env": ["KEY=value"], "Labels": {masking.SPANS: label}}
    assert Masking.of([config])("some text\n") == "some text\n"


@given(st.text(min_size=4, max_size=20), st.text(max_size=60), st.text(max_size=60))
def test_any_secret_is_masked(secret: str, before: str, after: str) -> None:
    """No line that it is printed in shows it."""
    masked, _ = masking_of({"A": f"{before}{secret}{after}"}, secret)
    for line in secret.splitlines():
        if len(line) >= 4:
            assert masked(line) == "***"
            assert masked(before + line + after).count("***") >= 1


def test_short_values_are_not_masked() -> None:
    """It would be found all over a log."""
    masked, _ = masking_of({}, "ab")
    assert masked("abab\n") == "abab\n"
