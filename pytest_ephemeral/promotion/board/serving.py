"""The board's server and its token."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from pytest_ephemeral import files, machine
from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.project import Project
from pytest_ephemeral.promotion.board import app, limits

#: Permissions that let others read a file, or change it.
_OTHERS = 0o077


def token(file: Path | None) -> str:
    """The token of this machine's board: made once, so that links stay valid.

    Args:
        file: Where it is kept; by default in this machine's state directory.

    Raises:
        ConfigurationError: It can't be kept there, others can read it, or it is not a token.
    """
    file = file or machine.state_directory() / "board-token"
    try:
        if not file.exists():
            # Whole or not at all: neither a full disk nor a second board leaves half a token.
            with suppress(FileExistsError):
                files.create(file, [f"{secrets.token_urlsafe(24)}\n".encode()], mode=0o600)
        status = file.stat()
        found = file.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the board's token can't be kept in {file}: {error}") from error
    if hasattr(os, "getuid") and (status.st_mode & _OTHERS or status.st_uid != os.getuid()):
        raise ConfigurationError(
            f"{file} belongs to another user, or others can read it: chmod 600 {file}, or remove it"
        )
    if len(found) < 16:
        raise ConfigurationError(f"{file} has no token in it: remove the file to get a new one")
    return found


@contextmanager
def server(
    project: Project, token: str, host: str, port: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The board, listening.

    Args:
        project: Whose environments.
        token: What lets people in.
        host: The address to listen on.
        port: 0 for any.

    Returns:
        A context manager that yields the link with the token, and a function that serves.

    Raises:
        OSError: The port is in use.
    """
    made = limits.LimitedServer(app.create(project, token), host=host, port=port, **limits.SETTINGS)
    url_host = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{url_host}:{made.effective_port}/?token={token}", made.run
    finally:
        made.close()
