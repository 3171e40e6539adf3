"""Buildkite: an annotation of the build, and its meta-data, with the command of its agent.

https://buildkite.com/docs/agent/cli/reference/annotate
https://buildkite.com/docs/agent/cli/reference/meta-data
"""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from pytest_ephemeral.publishers.channels import (
    Channel,
    HandoverChannel,
    Host,
    LimitedChannel,
    drop_empty,
)
from pytest_ephemeral.publishers.events import EnvironmentEvent
from pytest_ephemeral.publishers.outbox import ATTEMPT, DeliveryError
from pytest_ephemeral.publishers.text import markdown_line

if TYPE_CHECKING:
    from pytest_ephemeral.publishers.outbox import Attempts, Outbox

AGENT: Final = "buildkite-agent"


def annotation(event: EnvironmentEvent) -> tuple[list[str], str]:
    """The command that annotates the build, and its input.

    The context is the environment's, so a later annotation replaces the earlier one.
    """
    style = {"up": "info", "kept": "success", "leaked": "error"}.get(event.outcome, "default")
    context = f"ephemeral-{event.environment.id}"
    command = [AGENT, "annotate", "--context", context[:100]]
    return [*command, *(["--style", style] if style != "default" else [])], markdown_line(event)


def meta_data(name: str, value: str) -> tuple[list[str], str]:
    """The command that sets one key, and its input. Buildkite rejects an empty value."""
    return [AGENT, "meta-data", "set", name], value


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """Buildkite's channels."""
    outbox = host.outbox("buildkite-agent")
    yield "annotation", LimitedChannel(_Annotation(outbox))

    def put(values: dict[str, str]) -> None:
        for name, value in drop_empty(values).items():
            outbox.put(partial(_run, *meta_data(name, value)))

    yield "meta-data", HandoverChannel(put)


class _Annotation(msgspec.Struct, frozen=True):
    outbox: Outbox

    def tell(self, event: EnvironmentEvent) -> None:
        self.outbox.put(partial(_run, *annotation(event)))


def _run(command: Sequence[str], text: str, _: Attempts) -> None:
    try:
        done = subprocess.run(
            command, input=text, text=True, capture_output=True, timeout=ATTEMPT, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DeliveryError(f"{command[0]} {command[1]}: {type(error).__name__}") from None
    if done.returncode != 0:
        reason = " ".join(done.stderr.split())[-200:]
        raise DeliveryError(f"{command[0]} {command[1]} exited with {done.returncode}: {reason}")
