"""The board's server and its token."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import waitress

from pytest_ephemeral import machine
from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.project import Project
from pytest_ephemeral.promotion.board import app


def token(file: Path | None) -> str:
    """The token of this machine's board: made once, so that links stay valid.

    Args:
        file: Where it is kept; by default in this machine's state directory.

    Raises:
        ConfigurationError: It can't be kept there, or the file has no token.
    """
    file = file or machine.state_directory() / "board-token"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except FileExistsError:
            found = file.read_text().strip()
        else:
            with os.fdopen(descriptor, "w") as stream:
                found = secrets.token_urlsafe(24)
                stream.write(f"{found}\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the board's token can't be kept in {file}: {error}") from error
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
    made = waitress.create_server(
        app.create(project, token), host=host, port=port, threads=4, ident=None
    )
    url_host = f"[{host}]" if ":" in host else host
    try:
        yield f"http://{url_host}:{made.effective_port}/?token={token}", made.run
    finally:
        made.close()
