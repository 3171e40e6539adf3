"""``with``: run a command while an environment is up."""

from __future__ import annotations

import argparse
import os
import re
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

from pytest_ephemeral import proxies
from pytest_ephemeral.cli import progress
from pytest_ephemeral.cli.arguments import add_command, add_template_arguments
from pytest_ephemeral.cli.output import Printer
from pytest_ephemeral.cli.owner import lease
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.errors import EnvironmentDiedError

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Subcommands
    from pytest_ephemeral.models import Environment

_EPILOG: Final = """\
Without a command, it starts your shell.

Variables of the command: EPHEMERAL_URL, EPHEMERAL_URL_<ENDPOINT>, EPHEMERAL_ENV (the id).
In its arguments: {url}, {url:ENDPOINT}, {id}.

The exit status is the command's. It is 1 if the command succeeded but the environment stopped \
by itself, and 6 if something may have leaked.
"""

#: The exit statuses of shells for commands that can't be run.
_NOT_EXECUTABLE, _NOT_FOUND = 126, 127

_PLACEHOLDER: Final = re.compile(r"\{(url|id)(?::([^{}]+))?\}")


def add_to(commands: Subcommands) -> None:
    """Add the command."""
    parser = add_command(
        commands,
        "with",
        run_with,
        "bring an environment up, run a command, and destroy the environment",
        usage="pytest-ephemeral with [-h] [--ttl TIME] [TEMPLATE] [-- COMMAND…]",
        epilog=_EPILOG,
    )
    add_template_arguments(parser)
    parser.set_defaults(takes_command=True)


def run_with(arguments: argparse.Namespace, output: Printer) -> int:
    """Bring an environment up, run the command, and destroy the environment in every case."""
    if output.as_json:
        arguments.parser.error("--json can't be used here: stdout belongs to the command")
    command = arguments.command or [os.environ.get("SHELL") or "/bin/sh"]
    shown: list[Callable[[Progress], None]] = [progress.log]

    def say(event: Progress) -> None:
        shown[-1](event)

    status = 0
    try:
        with ExitStack() as stack:
            with progress.show() as live:
                shown.append(live)
                held = stack.enter_context(
                    lease(arguments.template, arguments.config, say, ttl=arguments.ttl)
                )
            shown.pop()  # the spinner has ended: the command prints now
            words = [fill(word, held.environment) for word in command]
            status = _run(words, {**os.environ, **variables(held.environment)}, output)
    except EnvironmentDiedError as error:
        if status == 0:
            raise
        output.say(f"error: {error}")  # it may be the reason for the command's failure
    return status


def variables(environment: Environment) -> dict[str, str]:
    """The environment variables that tell a command the environment's URL, endpoints and id.

    They include ``NO_PROXY``, extended by the endpoints' hosts; see ``proxies.exempt``.
    """
    found = {"EPHEMERAL_URL": environment.url, "EPHEMERAL_ENV": environment.id}
    for name, endpoint in environment.endpoints.items():
        found[f"EPHEMERAL_URL_{name.upper().replace('-', '_')}"] = endpoint.url
        found |= proxies.exempt({**os.environ, **found}, endpoint.host)
    return found


def fill(word: str, environment: Environment) -> str:
    """Replace ``{url}``, ``{url:ENDPOINT}`` and ``{id}`` in an argument; the rest is unchanged.

    Raises:
        NothingMatchedError: The environment has no such endpoint.
    """

    def value(found: re.Match[str]) -> str:
        kind, name = found.groups()
        if kind == "id":
            return found[0] if name else environment.id
        return environment.url_for(name) if name else environment.url

    return _PLACEHOLDER.sub(value, word)


def _run(command: Sequence[str], variables: Mapping[str, str], output: Printer) -> int:
    """Run a command as a shell does: Ctrl-C reaches it directly, SIGTERM is passed on to it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopped = threading.Event()
    # Handlers instead of SIG_IGN, which the command would inherit.
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: stopped.set())  # until the command is started
    try:
        process = subprocess.Popen(command, env=variables)
        signal.signal(signal.SIGTERM, lambda *_: process.terminate())
        if stopped.is_set():
            process.terminate()
        status = process.wait()
    except FileNotFoundError:
        output.say(f"error: {command[0]}: command not found")
        return _NOT_FOUND
    except OSError as error:
        output.say(f"error: {command[0]}: {error.strerror}")
        return _NOT_EXECUTABLE
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status
