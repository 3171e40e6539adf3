"""Errors for local environments that can't be started, with their remedies."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pytest_ephemeral.errors import EphemeralError, LaunchError
from pytest_ephemeral.providers.local import control_socket, guard
from pytest_ephemeral.providers.local.control_socket import GuardAddress
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.provider import LocalProvider
from pytest_ephemeral.providers.local.tables import LocalTemplate
from pytest_ephemeral.testing.bench import make_order


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "{folder}: no space left on device; make room, or set PYTEST_EPHEMERAL_S"),
        (errno.EROFS, "{folder}: read-only file system; set PYTEST_EPHEMERAL_STATE to a folder"),
        (errno.EMFILE, "too many open files; raise the limit on open files: ulimit -n 1024"),
        (errno.EAGAIN, "resource temporarily unavailable; raise the limit on processes: ulimit"),
        (errno.EIO, "{folder}: input/output error"),
    ],
    ids=lambda value: errno.errorcode[value] if isinstance(value, int) else "",
)
def test_system_errors_are_reported_with_a_remedy(
    monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    """The message has the error's text, and the folder if the file system is the reason."""

    def refuse(_: guard.Spec) -> guard.Guard:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(guard, "start", refuse)
    provider = LocalProvider()
    order = make_order(LocalTemplate(name="full", command="exec sleep 60", port=18481), None)
    try:
        with pytest.raises(LaunchError) as refused:
            provider.launch(order)
    finally:
        provider.destroy(order.environment)
    assert f"{order.environment.id} could not be started: " in str(refused.value)
    assert message.format(folder=Folder.of(order.environment.id).path) in str(refused.value)


def test_a_socket_creation_failure_is_reported_as_such(tmp_path: Path) -> None:
    """An earlier version blamed another guard with the same id."""
    with pytest.raises(EphemeralError, match=r"socket can't be created in .*gone: No such file"):
        control_socket.listen(GuardAddress("full-abc", tmp_path / "gone"))
