"""Databases that a template names, and that are not part of its environments."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.tables import Template

#: The beginning of a database's URL: its scheme (``postgresql+psycopg``, ``jdbc:mysql``), perhaps a
#: user, and its host. One that is filled in later, as ``$HOST`` is, is the environment's own.
_DATABASE: Final = re.compile(
    r"\b(?:jdbc:)?(?:postgres(?:ql)?|mysql|mariadb|rediss?|mongodb|amqps?|mssql|sqlserver|clickhouse"
    r"|cassandra|nats|kafka)(?:\+\w+)?://(?:[^@/\s]*@)?([\w.-]+)",
    re.IGNORECASE,
)


def refuse_databases(
    template: Template,
    environ: dict[str, str],
    *,
    commands: Iterable[str] = (),
    own: Collection[str] = (),
) -> None:
    """Refuse to roll back a template that uses a database elsewhere.

    Args:
        template: Which.
        environ: What ``{env:…}`` stands for.
        commands: Its commands.
        own: Hosts that are part of the environment.

    Raises:
        ConfigurationError: It does; names it.
    """
    texts = {f"env.{name}": fill(value, environ) for name, value in template.env.items()}
    texts |= {"command": " ".join(commands)}
    for where, text in texts.items():
        for host in _DATABASE.findall(text):
            if host not in own:
                raise ConfigurationError(
                    f"templates.{template.name}.{where}: the database at {host} is not part of the "
                    "environment, so a rollback can't put it back. Have the environment start a "
                    'database of its own, or put it back by a command of yours: reset = "COMMAND"'
                )


def refuse_folder(template: Template, what: str, path: str | Path) -> None:
    """Refuse to roll back a template that writes to a folder of this machine, or of a file server.

    Args:
        template: Which.
        what: What it is to the template, such as ``service web``.
        path: The folder, such as ``:/export`` of a file server.

    Raises:
        ConfigurationError: Always.
    """
    is_served = ":/" in str(path) or str(path).startswith("//")  # by NFS, or by SMB
    where = "of a file server" if is_served else "of this machine"
    raise ConfigurationError(
        f"templates.{template.name}: {what} is bound to {path} {where}, which a rollback "
        "can't put back. Mount it read-only, use a named volume, or put it back by a command of "
        'yours: reset = "COMMAND"'
    )


def fill(value: str, environ: dict[str, str]) -> str:
    """A template's value with its ``{env:…}`` filled in, as far as they are known."""
    return re.sub(r"\{env:(\w+)\}", lambda found: environ.get(found[1], ""), value)
