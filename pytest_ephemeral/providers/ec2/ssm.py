"""Run commands inside an instance by AWS Systems Manager (SSM)."""

from __future__ import annotations

import math
import shlex
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pytest_ephemeral import aws
from pytest_ephemeral.errors import EnvironmentGoneError, UnavailableError
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.ec2 import user_data

#: Seconds between the first two polls of a command, and between later ones at most.
_PAUSE: Final = 0.05
_LONGEST_PAUSE: Final = 1.0
_ENDED: Final = frozenset({"Success", "Failed", "Cancelled", "TimedOut"})
#: Seconds after which an instance's agent is registered at the latest, and between attempts.
REGISTERING: Final = 120.0
_REGISTERING_PAUSE: Final = 2.0
#: The longest time-out that SSM accepts, in seconds: two days.
LONGEST: Final = 172800.0
#: Seconds after a command's time-out by which SSM reports its result.
GRACE: Final = 10.0
#: The exit status of ``timeout -s KILL`` after a time-out.
_KILLED: Final = 137

Alive = Callable[[], bool]


def run(
    client: Any, id: str, instance: str, argv: Sequence[str], *, timeout: float | None, alive: Alive
) -> subprocess.CompletedProcess[str]:
    """Run a command with the application's variables, and wait until it ends.

    Args:
        client: An SSM client of the instance's region.
        id: The environment's id, for messages.
        instance: The instance's id.
        argv: The command.
        timeout: Seconds after which it is killed; None for SSM's limit of two days.
        alive: Whether the instance has not ended, asked while SSM does not list it.

    Returns:
        Its exit status and output; SSM truncates output to 24,000 characters.

    Raises:
        subprocess.TimeoutExpired: It took longer, and was killed.
        EnvironmentGoneError: The instance has ended.
        UnavailableError: No agent on the instance is registered with Systems Manager.
    """
    limit = LONGEST if timeout is None else timeout
    command, started = _send(client, id, instance, script(argv, timeout), limit, alive=alive)
    found = waiting.wait_until(
        lambda: aws.poll(client, lambda polling: _find_ended(polling, command, instance)),
        within=limit + GRACE,
        every=_PAUSE,
        longest=_LONGEST_PAUSE,
    )
    if found is None:
        client.cancel_command(CommandId=command, InstanceIds=[instance])
        raise subprocess.TimeoutExpired(list(argv), limit)
    if found["Status"] == "Cancelled":
        raise EnvironmentGoneError(f"{id}: the command was cancelled: its instance has ended")
    return _completed(argv, found, limit, time.monotonic() - started)


def _completed(
    argv: Sequence[str], found: Mapping[str, Any], limit: float, took: float
) -> subprocess.CompletedProcess[str]:
    status = int(found["ResponseCode"])
    output = str(found["StandardOutputContent"]), str(found["StandardErrorContent"])
    if found["Status"] == "TimedOut" or (status == _KILLED and took >= limit):
        raise subprocess.TimeoutExpired(list(argv), limit, *output)
    return subprocess.CompletedProcess(list(argv), status, *output)


def script(argv: Sequence[str], timeout: float | None) -> str:
    """The shell script that sets the variables and runs the command, with its time-out.

    Args:
        argv: The command.
        timeout: Seconds after which it is killed; None for no limit.
    """
    command = shlex.join(argv)
    if timeout is not None:
        # Both GNU's and busybox's timeout have -s. They kill the command's process group.
        command = f"timeout -s KILL {math.ceil(timeout * 1000) / 1000:g} {command}"
    load = f"[ ! -e {user_data.VARIABLES} ] || . {user_data.VARIABLES}"
    return f"set -a\n{load}\nset +a\n{command} </dev/null\n"


def _send(
    client: Any, id: str, instance: str, text: str, limit: float, *, alive: Alive
) -> tuple[str, float]:
    """Send a script; return the command's id, and the time before it was sent."""
    from botocore.exceptions import ClientError

    def send() -> tuple[str, float]:
        started = time.monotonic()
        with aws.translate_errors():
            answer = client.send_command(
                InstanceIds=[instance],
                DocumentName="AWS-RunShellScript",
                Parameters={
                    "commands": [text],
                    "executionTimeout": [str(max(1, math.ceil(limit + GRACE)))],
                },
            )
        return str(answer["Command"]["CommandId"]), started

    try:
        return waiting.retry(
            send,
            when=lambda error: aws.code(error) == "InvalidInstanceId" and alive(),
            within=min(limit, REGISTERING),
            every=_REGISTERING_PAUSE,
        )
    except ClientError as error:
        if aws.code(error) != "InvalidInstanceId":
            raise
        raise UnavailableError(
            f"{id}: the agent of {instance} is not registered with Systems Manager, which runs "
            "the commands. Give the template an instance-profile with "
            "AmazonSSMManagedInstanceCore, and install the SSM agent in the image"
        ) from error


def _find_ended(client: Any, command: str, instance: str) -> dict[str, Any] | None:
    """SSM's description of a command that has ended; None while it runs."""
    from botocore.exceptions import ClientError

    try:
        found: dict[str, Any] = client.get_command_invocation(
            CommandId=command, InstanceId=instance
        )
    except ClientError as error:
        if aws.code(error) == "InvocationDoesNotExist":
            return None  # a new command may not be visible yet
        raise
    return found if found["Status"] in _ENDED else None
