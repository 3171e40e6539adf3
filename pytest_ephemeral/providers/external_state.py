"""Refuse rollbacks of templates whose state is outside of their environments."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Final

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.tables import Template

#: The start of a database's URL: the scheme (``postgresql+psycopg``, ``jdbc:mysql``), a user if
#: there is one, and the host. ``$HOST`` does not match: it is the environment's own host.
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
        template: The template.
        environ: The environment variables, for ``{env:…}``.
        commands: The template's commands.
        own: The hosts that are part of the environment.

    Raises:
        ConfigurationError: It uses such a database, which is named.
    """
    texts = {f"env.{name}": fill(value, environ) for name, value in template.env.items()}
    texts |= {"command": " ".join(commands)}
    for where, text in texts.items():
        for host in _DATABASE.findall(text):
            if host not in own:
                raise ConfigurationError(
                    f"templates.{template.name}.{where}: the database at {host} is not part of the "
                    "environment, so a rollback can't put it back. Have the environment start a "
                    'database of its own, or put it back by a command: reset = "COMMAND"'
                )


def refuse_folder(template: Template, what: str, path: str | Path) -> None:
    """Refuse to roll back a template that writes to a folder of this machine, or of a file server.

    Args:
        template: The template.
        what: The part of the template that writes, such as ``service web``.
        path: The folder; on a file server, it is written like ``:/export``.

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
    """Fill in ``{env:…}`` in a template's value; a variable that is not set becomes empty."""
    return re.sub(r"\{env:(\w+)\}", lambda found: environ.get(found[1], ""), value)
