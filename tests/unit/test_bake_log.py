"""The log of a bake: complete in the file, shortened on the console."""

from __future__ import annotations

import time
from pathlib import Path

from pytest_ephemeral.providers.bake_log import BakeLog
from pytest_ephemeral.providers.docker.errors import build_failure
from pytest_ephemeral.providers.protocol import BakeJob
from pytest_ephemeral.tables import Recipe


def job(folder: Path, shown: list[str]) -> BakeJob:
    return BakeJob(
        recipe=Recipe(name="shop", provider="docker"),
        key="sha256:1",
        root=folder,
        artifact=None,
        log=folder / "bake.log",
        say=shown.append,
        live=shown.append,
    )


def test_partial_writes_form_whole_lines(tmp_path: Path) -> None:
    """Output may be split anywhere, and the last line may lack a line end."""
    shown: list[str] = []
    with BakeLog(job(tmp_path, shown)) as log:
        for piece in ("on", "e\ntw", "o", "\n\nth", "ree"):
            log.write(piece)
    assert (tmp_path / "bake.log").read_text() == "one\ntwo\n\nthree\n"
    assert [line.split(" s ")[1].strip() for line in shown] == ["one", "two", "", "three"]


def test_a_huge_line_is_logged_fully_and_shown_shortened(tmp_path: Path) -> None:
    """A line's length does not slow down the log."""
    shown: list[str] = []
    begun = time.process_time()
    with BakeLog(job(tmp_path, shown)) as log:
        for _ in range(4096):
            log.write("x" * 4096)
        error = log.failure("it failed")
    assert time.process_time() - begun < 3
    assert (tmp_path / "bake.log").stat().st_size == (16 << 20) + 1
    assert len(shown[0]) < 5000
    assert len(str(error)) < 10_000


PARSER = "dockerfile parse error line 3: unknown instruction: ECHO"
FLAG = "dockerfile parse error line 2: Unknown flag: link"
HERE = "FROM x\nRUN <<EOF\necho hello\nEOF\n"


def test_build_errors_come_with_advice(tmp_path: Path) -> None:
    """Each error has its own advice; a misspelled instruction gets none on here-documents."""
    log = BakeLog(job(tmp_path, []))

    def advice(said: str, dockerfile: str = "FROM x\n") -> str:
        return str(build_failure(log, said, dockerfile)).split("It printed")[0]

    assert "here-documents need Docker 23" in advice(PARSER, HERE)
    assert "Docker 23" not in advice(PARSER.replace("ECHO", "RUNN"))
    assert "if it is spelled correctly, it needs Docker 23" in advice(FLAG)
    assert "need `docker buildx`" in advice("no active sessions")
    assert "mounts of type ssh" in advice("unset ssh forward key default")
    assert "add it to the image's `secrets`" in advice("failed to solve: secret t not found")
