"""Logs of local processes: secrets are masked, offsets are exact, and the size is limited."""

from __future__ import annotations

import shutil
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from pytest_ephemeral.providers.local import logs
from pytest_ephemeral.providers.local.supervisor.logs import (
    SEGMENT_SIZE,
    SEGMENTS_KEPT,
    Mask,
    ProcessLog,
)

SECRETS = st.lists(st.text("ab", min_size=1, max_size=5).map(str.encode), min_size=1, max_size=3)


@given(secrets=SECRETS, pieces=st.lists(st.text("abc", max_size=6).map(str.encode), max_size=12))
def test_masking_is_independent_of_chunking(secrets: list[bytes], pieces: list[bytes]) -> None:
    """A stream that arrives in pieces is masked in the same way as the whole stream."""
    whole, cut = Mask(secrets), Mask(secrets)
    together = whole.feed(b"".join(pieces)) + whole.flush()
    assert b"".join(map(cut.feed, pieces)) + cut.flush() == together


@given(secret=st.text("ab", min_size=2, max_size=6).map(str.encode), text=st.text("abc\n"))
def test_masked_output_contains_no_secret(secret: bytes, text: str) -> None:
    """Hypothesis generates the secrets and the output."""
    mask = Mask([secret])
    assert secret not in mask.feed(text.encode()) + mask.flush()


def test_only_a_possible_secret_prefix_is_held_back() -> None:
    """A prompt without a line end appears at once, but half a secret does not."""
    mask = Mask([b"s3cret"])
    assert mask.feed(b"password: ") == b"password: "
    assert mask.feed(b"it is s3c") == b"it is "
    assert mask.feed(b"ret!") == b"***!"
    assert mask.feed(b"s3") == b""
    assert mask.feed(b"cond") == b"s3cond"


def test_the_longer_of_two_secrets_is_masked_completely() -> None:
    """If a secret begins with another, the rest of it must not be visible."""
    mask = Mask([b"abc", b"abcdef"])
    assert mask.feed(b"abc") == b""
    assert mask.feed(b"def.") == b"***."
    assert mask.feed(b"abc-") == b"***-"


def test_a_log_is_capped_and_its_offsets_stay_exact(tmp_path: Path) -> None:
    """Old segments are removed, but offsets still count from the first byte."""
    log = ProcessLog(str(tmp_path), "web", [])
    total = 0
    for number in range(SEGMENTS_KEPT * 2 + 1):
        log.write(b"%04d" % number * (SEGMENT_SIZE // 4))
        total += SEGMENT_SIZE
    mark = logs.end(tmp_path, "web")
    assert mark == total
    log.write(b"the end")
    log.close()
    assert logs.read(tmp_path, "web", mark) == b"the end"
    assert logs.read(tmp_path, "web", mark - 4, mark + 3) == b"0008the"
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= SEGMENT_SIZE * SEGMENTS_KEPT
    assert logs.read(tmp_path, "web", 0).endswith(b"0008the end")


def test_write_failures_drop_output_without_error(tmp_path: Path) -> None:
    """The log folder is removed here. An error would end the guard."""
    folder = tmp_path / "logs"
    folder.mkdir()
    log = ProcessLog(str(folder), "web", [])
    shutil.rmtree(folder)
    log.write(b"x" * (SEGMENT_SIZE * 3))
    log.close()


def test_logs_of_similarly_named_processes_are_separate(tmp_path: Path) -> None:
    """The name of a process may look like that of another process's log segment."""
    for name in ("web", "web.1"):
        log = ProcessLog(str(tmp_path), name, [])
        log.write(name.encode())
        log.close()
    assert logs.processes(tmp_path) == ["web", "web.1"]
    assert logs.read(tmp_path, "web.1") == b"web.1"
    assert logs.read(tmp_path, "web") == b"web"
