"""The user data of instances: the shell scripts beside this file, with their settings."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Final, Protocol

import msgspec

from pytest_ephemeral.interpolation import worth_masking
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import install_script

#: EC2 takes no more user data than this, before base64.
LIMIT: Final = 16384

#: Where the image's content is installed, and found again.
PREFIX: Final = "/opt/pytest-ephemeral"

#: Where its processes start, and write.
STATE: Final = "/var/lib/pytest-ephemeral"

#: Where a running instance keeps its variables; see ``common.sh``.
VARIABLES: Final = '"${PYTEST_EPHEMERAL_RUN:-/run/pytest-ephemeral}/variables"'

#: A whole one: what has no end yet may go on.
_LINE: Final = re.compile(r"pytest-ephemeral:([a-z0-9-]+):(\d+)\| ?(.*?)\r?\n")


class Line(msgspec.Struct, frozen=True):
    """A line on a console that one of the scripts has put there.

    Attributes:
        part: The process that printed it, or ``bake``, or ``end``.
        number: Which of its lines; 0 for one of the script's own.
    """

    part: str
    number: int
    text: str


class Delivery(msgspec.Struct, frozen=True):
    """How a file gets to a bake: from a URL, on a disk of its own, or in the script itself."""

    name: str
    digest: str
    url: str = ""
    content: bytes = b""
    device: str = ""
    size: int = 0


class GuestTemplate(Protocol):
    """What is asked of a template whose processes run in a guest."""

    @property
    def user_data(self) -> str | None:
        """A shell script that is run first."""

    def endpoints(self) -> dict[str, int]:
        """Its ports by name."""

    def processes(self) -> dict[str, str]:
        """Its commands by process name."""


def boot_script(
    environment: Environment,
    template: GuestTemplate,
    variables: Mapping[str, str],
    secrets: Sequence[str],
    prefix: str,
    *,
    host: str = "",
    standby: bool = False,
) -> str:
    """What an environment's instance runs at its first boot.

    Args:
        environment: Which.
        template: Its processes and ports.
        variables: Of the template, filled in; they win.
        secrets: What must not be on the console.
        prefix: Where its image has been installed.
        host: Its address, if nothing need be asked for it. Its expiry is then seen to outside.
        standby: Whether its instance may be kept for others, which a tag of it says.
    """
    settings = {
        "PREFIX": prefix,
        "SECRETS": "\n".join(worth_masking(secrets)),
        "HOST": host,
        "STANDBY": "yes" if standby else "",
        "EXPIRE": "" if host else _base64(_text("expire.sh").encode()),
        "VARIABLES": assignments(_own_variables(environment, template)),
        "OVERRIDES": assignments(variables),
    }
    processes = [
        f"process {name} {shlex.quote(command)}" for name, command in template.processes().items()
    ]
    own = [] if template.user_data is None else [f"sh -c {shlex.quote(template.user_data)}"]
    return _script(settings, "boot.sh", [*own, *processes])


def _own_variables(environment: Environment, template: GuestTemplate) -> dict[str, str]:
    variables = {"PYTEST_EPHEMERAL_ENVIRONMENT": environment.id}
    for name, port in template.endpoints().items():
        variables[f"PORT_{name.upper().replace('-', '_')}"] = str(port)
        variables.setdefault("PORT", str(port))
    return variables


def guest_variables(
    environment: Environment, template: GuestTemplate, variables: Mapping[str, str], *, host: str
) -> dict[str, str]:
    """All that ``boot_script`` lets processes see, where it need ask nobody.

    Args:
        environment: Which.
        template: Its ports.
        variables: Of the template, filled in; they win.
        host: Its address.
    """
    fixed = {"HOST": host, "STATE": STATE, "PREFIX": PREFIX}
    return {**_own_variables(environment, template), **fixed, **variables}


def bake_script(
    steps: str | Sequence[str],
    *,
    prefix: str,
    artifact: Delivery | None = None,
    files: Delivery | None = None,
    before: Sequence[str] = (),
    variables: Mapping[str, str],
    result_url: str = "",
    minutes: int | None,
    after: Sequence[str] = (),
) -> str:
    """What a bake's instance, or a verifying one, runs at its first boot.

    Args:
        steps: A script's text, or shell commands.
        prefix: Where it installs.
        artifact: What it installs.
        files: A compressed tar, unpacked into the folder that the steps start in.
        before: Shell commands that run first, in the same shell; ``$1`` is a folder for them.
        variables: What the script may see besides; shown nowhere.
        result_url: Where the outcome and the log are put; empty to tell by the console alone.
        minutes: After how many it ends itself, should nobody come back for it; None where its
            end is seen to outside.
        after: Commands for when its outcome has been told.
    """
    settings = {
        "PREFIX": prefix,
        "SECRETS": "\n".join(worth_masking(variables.values())),
        "EXPIRE": "" if minutes is None else _base64(_text("expire.sh").encode()),
        "MINUTES": "" if minutes is None else str(minutes),
        **_delivery_settings("ARTIFACT", artifact),
        **_delivery_settings("FILES", files),
        "RESULT_URL": result_url,
    }
    exported = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    function = ["steps() {", *exported, *before, *_commands(steps), "}"]
    return _script(settings, "bake.sh", after, before=function)


def _delivery_settings(what: str, delivery: Delivery | None) -> dict[str, str]:
    given = delivery or Delivery("", "")
    return {
        f"{what}_NAME": given.name,
        f"{what}_DIGEST": given.digest.removeprefix("sha256:"),
        f"{what}_URL": given.url,
        f"{what}_CONTENT": _base64(given.content),
        f"{what}_DEVICE": given.device,
        f"{what}_SIZE": str(given.size),
    }


def _commands(steps: str | Sequence[str]) -> list[str]:
    """The shell commands that run a script's text, or some steps."""
    if not isinstance(steps, str):
        return [f"sh -ec {shlex.quote(step)}" for step in steps] or [":"]
    write = f"printf '%s' {_base64(steps.encode())} | base64 -d >\"$1/install\""
    *interpreter, _ = install_script.command(steps.encode(), "install")
    run = f'{shlex.join(interpreter)} "$1/install"'.strip()
    return [write, 'chmod +x "$1/install"', run]


def download_script(url: str) -> str:
    """A script that runs another, which is too large for user data, from its URL."""
    return (
        "#!/bin/sh\n"
        "umask 077\n"
        "boot=${PYTEST_EPHEMERAL_ROOT:-}/tmp/pytest-ephemeral-boot\n"
        'mkdir -p "${boot%/*}"\n'
        f'if curl -sSf --retry 5 {shlex.quote(url)} -o "$boot"; then exec sh "$boot"; fi\n'
        "echo 'pytest-ephemeral:bake:1| this instance can not get its script from the bucket: see'"
        " 'that its subnet leads there, and that the image has curl' >>"
        '"${PYTEST_EPHEMERAL_CONSOLE:-/dev/console}"\n'
        "echo 'pytest-ephemeral:end:0| 1' >>"
        '"${PYTEST_EPHEMERAL_CONSOLE:-/dev/console}"\n'
    )


def lines(console: str) -> list[Line]:
    """What the scripts have put on a console, among all that a kernel and others have."""
    return [Line(found[1], int(found[2]), found[3]) for found in _LINE.finditer(console)]


def last_words(console: str) -> str:
    """What was said last of all: how a process ended, or a bake's exit status; or nothing."""
    said = [line.text for line in lines(console) if line.part == "end"]
    return said[-1] if said else ""


def _script(
    settings: Mapping[str, str], name: str, after: Sequence[str], before: Sequence[str] = ()
) -> str:
    head = ["#!/bin/sh", *(f"{key}={shlex.quote(value)}" for key, value in settings.items())]
    return "\n".join([*head, *before, _text("common.sh"), _text(name), *after, ""])


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text()


def assignments(variables: Mapping[str, str]) -> str:
    """Variables as a shell reads them."""
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
