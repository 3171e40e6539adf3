"""``with``: its command ends when a signal asks for it."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import Any

import pytest

from pytest_ephemeral.cli import with_command
from pytest_ephemeral.cli.output import Printer


def test_sigterm_during_start_ends_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """The signal arrives when the process exists, but ``Popen`` has not returned yet."""
    started: list[subprocess.Popen[bytes]] = []

    class Popen(subprocess.Popen[bytes]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)
            os.kill(os.getpid(), signal.SIGTERM)

    def stop(*_: object) -> None:
        raise InterruptedError("as the program itself does at SIGTERM")

    monkeypatch.setattr(with_command.subprocess, "Popen", Popen)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        status = with_command._run(["sleep", "600"], os.environ, Printer(as_json=False))
        assert status == 128 + signal.SIGTERM
    finally:
        signal.signal(signal.SIGTERM, before)
        left = [one for one in started if one.poll() is None]
        for one in left:
            one.kill()
            one.wait()
    assert not left
