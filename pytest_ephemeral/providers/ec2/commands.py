"""Commands inside an instance, by Systems Manager: what EC2 has in place of ``docker exec``."""

from __future__ import annotations

import math
import shlex
import subprocess
import time
from collections.abc import Sequence
from itertools import chain, repeat
from typing import Any, Final

from pytest_ephemeral import aws
from pytest_ephemeral.errors import EnvironmentGoneError, UnavailableError
from pytest_ephemeral.providers.ec2 import guest

_PAUSES: Final = (0.05, 0.1, 0.2, 0.5, 1.0)
_ENDED: Final = frozenset({"Success", "Failed", "Cancelled", "TimedOut"})
#: Seconds an instance may take until its agent has registered.
REGISTERING: Final = 120.0
#: SSM has none longer: two days.
LONGEST: Final = 172800.0
#: Seconds more than the command's own in which its outcome is known.
GRACE: Final = 10.0
#: What ``timeout -s KILL`` exits with when the time was over.
_KILLED: Final = 137


def run(
    region: str | None, id: str, instance: str, argv: Sequence[str], *, timeout: float | None
) -> subprocess.CompletedProcess[str]:
    """Run a command with the application's variables, and wait for it.

    Args:
        region: Where the instance is.
        id: The environment's, for messages.
        instance: On which.
        argv: The command.
        timeout: Seconds it may take.

    Raises:
        subprocess.TimeoutExpired: It took longer, and was killed.
        EnvironmentGoneError: The instance is not there any more.
        UnavailableError: The instance has no agent that registers with Systems Manager.
    """
    client = aws.client("ssm", region)
    limit = LONGEST if timeout is None else timeout
    command, started = _send(client, id, instance, script(argv, timeout), limit)
    pauses = chain(_PAUSES, repeat(_PAUSES[-1]))
    while (found := _invocation(client, command, instance))["Status"] not in _ENDED:
        if time.monotonic() - started > limit + GRACE:
            client.cancel_command(CommandId=command, InstanceIds=[instance])
            raise subprocess.TimeoutExpired(list(argv), limit)
        time.sleep(next(pauses))
    status, out = int(found["ResponseCode"]), str(found["StandardOutputContent"])
    errors = str(found["StandardErrorContent"])
    killed = status == _KILLED and time.monotonic() - started >= limit
    if found["Status"] == "TimedOut" or killed:
        raise subprocess.TimeoutExpired(list(argv), limit, out, errors)
    if found["Status"] == "Cancelled":
        raise EnvironmentGoneError(f"{id}: the command was cancelled: its instance has ended")
    return subprocess.CompletedProcess(list(argv), status, out, errors)


def script(argv: Sequence[str], timeout: float | None) -> str:
    """What the agent's shell is given: the variables, then the command, killed at its time."""
    command = shlex.join(argv)
    if timeout is not None:
        # GNU timeout and busybox's both have -s; the command gets a process group of its own,
        # all of which is killed.
        command = f"timeout -s KILL {math.ceil(timeout * 1000) / 1000:g} {command}"
    return (
        f"set -a\n[ ! -e {guest.VARIABLES} ] || . {guest.VARIABLES}\nset +a\n{command} </dev/null\n"
    )


def _send(client: Any, id: str, instance: str, text: str, limit: float) -> tuple[str, float]:
    """Have a script run; which command that is, and the time before which it did not begin."""
    from botocore.exceptions import ClientError

    deadline = time.monotonic() + min(limit, REGISTERING)
    while True:
        started = time.monotonic()
        try:
            with aws.explained():
                sent = client.send_command(
                    InstanceIds=[instance],
                    DocumentName="AWS-RunShellScript",
                    Parameters={
                        "commands": [text],
                        "executionTimeout": [str(max(1, math.ceil(limit + GRACE)))],
                    },
                )
            return str(sent["Command"]["CommandId"]), started
        except ClientError as error:
            if aws.code(error) != "InvalidInstanceId":
                raise
            if time.monotonic() > deadline:
                raise UnavailableError(
                    f"{id}: the agent of {instance} is not registered with Systems Manager, which "
                    "is what commands are run by. Give the template an instance-profile with "
                    "AmazonSSMManagedInstanceCore, and the image the SSM agent"
                ) from error
        time.sleep(2)


def _invocation(client: Any, command: str, instance: str) -> dict[str, Any]:
    from botocore.exceptions import ClientError

    try:
        found: dict[str, Any] = client.get_command_invocation(
            CommandId=command, InstanceId=instance
        )
    except ClientError as error:
        if aws.code(error) in {"InvocationDoesNotExist", *aws.THROTTLED}:
            return {"Status": "Pending"}  # it is on its way, or can't be asked for now
        raise
    return found
