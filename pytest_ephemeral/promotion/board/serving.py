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

#: The permissions of the group and of other users.
_OTHERS = 0o077


def token(file: Path | None) -> str:
    """Read the token of this machine's board. It is made once, so that links stay valid.

    Args:
        file: The file with the token; by default in this machine's state directory.

    Raises:
        ConfigurationError: The file can't be read or written, others can read it, or it has no
            token.
    """
    file = file or machine.state_directory() / "board-token"
    try:
        if not file.exists():
            # Atomic: neither a full disk nor a second board leaves a part of a token.
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
    """Open the board's port.

    Args:
        project: The project with the environments.
        token: The token to sign in with.
        host: The address to listen on.
        port: The port to listen on; 0 for any free port.

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
