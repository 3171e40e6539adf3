"""The user data of instances: the shell scripts in this folder, with their settings."""

from __future__ import annotations

import base64
import re
import shlex
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Final, Protocol

import msgspec

from pytest_ephemeral.masking import worth_masking
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import install_script

#: The largest size of user data that EC2 accepts, in bytes, before base64.
LIMIT: Final = 16384

#: The folder that the image's content is installed in.
PREFIX: Final = "/opt/pytest-ephemeral"

#: The working folder of the processes, which they may write to.
STATE: Final = "/var/lib/pytest-ephemeral"

#: The file with a running instance's variables; see ``common.sh``.
VARIABLES: Final = '"${PYTEST_EPHEMERAL_RUN:-/run/pytest-ephemeral}/variables"'

#: A complete line of a script on the console; a line without an end may still grow.
_LINE: Final = re.compile(r"pytest-ephemeral:([a-z0-9-]+):(\d+)\| ?(.*?)\r?\n")


class Line(msgspec.Struct, frozen=True):
    """A line on a console that one of the scripts has written.

    Attributes:
        part: The process that printed it, or ``bake``, or ``end``.
        number: The number of the line within its part; 0 for a line of the script itself.
    """

    part: str
    number: int
    text: str


class Delivery(msgspec.Struct, frozen=True):
    """A file for a bake, and how it gets there: from a URL, on a disk, or in the script."""

    name: str
    digest: str
    url: str = ""
    content: bytes = b""
    device: str = ""
    size: int = 0


class GuestTemplate(Protocol):
    """The parts of a template that the boot script needs."""

    @property
    def user_data(self) -> str | None:
        """A shell script that runs before the processes."""

    def endpoints(self) -> dict[str, int]:
        """The ports by name."""

    def processes(self) -> dict[str, str]:
        """The commands by process name."""


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
    """The script that an environment's instance runs at its first boot.

    Args:
        environment: The environment.
        template: The template: its processes and ports.
        variables: The template's variables, filled in; they override all others.
        secrets: Values to mask on the console.
        prefix: The folder that the image is installed in.
        host: The instance's address, if known. The script then has no timer for the expiry, which
            is handled outside the guest.
        standby: Whether the instance may be put on standby; the script then checks its tag.
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
    """The variables that ``boot_script`` gives to processes, for a known address.

    Args:
        environment: The environment.
        template: The template: its ports.
        variables: The template's variables, filled in; they override all others.
        host: The instance's address.
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
    """The script that an instance runs at its first boot to install or to verify.

    Args:
        steps: A script's text, or shell commands.
        prefix: The folder to install into.
        artifact: The artifact to install.
        files: A compressed tar, unpacked into the folder that the steps start in.
        before: Shell commands that run first, in the same shell; ``$1`` is a folder for them.
        variables: Further variables for the steps; their values are masked in the output.
        result_url: A URL to upload the result and the log to; empty for the console alone.
        minutes: Minutes after which the instance shuts itself down, if it still runs; None if
            something outside the guest ends it.
        after: Shell commands to run after the result is reported.
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
    """A script that downloads and runs a script that is too large for user data."""
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
    """The lines of our scripts on a console, without those of the kernel and others."""
    return [Line(found[1], int(found[2]), found[3]) for found in _LINE.finditer(console)]


def last_words(console: str) -> str:
    """The last ``end`` line: how a process ended, or a bake's exit status; empty if none."""
    found = [line.text for line in lines(console) if line.part == "end"]
    return found[-1] if found else ""


def _script(
    settings: Mapping[str, str], name: str, after: Sequence[str], before: Sequence[str] = ()
) -> str:
    head = ["#!/bin/sh", *(f"{key}={shlex.quote(value)}" for key, value in settings.items())]
    return "\n".join([*head, *before, _text("common.sh"), _text(name), *after, ""])


def _text(name: str) -> str:
    return files(__package__).joinpath(name).read_text()


def assignments(variables: Mapping[str, str]) -> str:
    """Variables as shell assignments, one on each line."""
    return "\n".join(f"{name}={shlex.quote(value)}" for name, value in variables.items())


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
