"""Progress of launches, bakes and removals, for the user."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

from pytest_ephemeral.environments import readiness
from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.masking import mask
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import Order, Provider

Phase = Literal[
    "bake",
    "launch",
    "ready",
    "seen",
    "seed",
    "freeze",
    "baseline",
    "up",
    "rollback",
    "restored",
    "destroy",
    "destroyed",
    "kept",
    "warning",
]


class Progress(msgspec.Struct, frozen=True):
    """One progress event.

    Attributes:
        subject: The environment's id; during a bake, the image's name.
        phase: The phase that has begun; ``seen`` is a result of the readiness checks.
        text: Details; for ``up``, the URL.
        seconds: The time since the phase began; for ``up``, since the launch began.
        live: Whether the text is a line of output of the install script or build command.
    """

    subject: str
    phase: Phase
    text: str = ""
    seconds: float = 0.0
    live: bool = False


class Timed(msgspec.Struct, frozen=True):
    """An environment, and how many seconds each phase took."""

    environment: Environment
    seconds: dict[str, float]


class PhaseTimer(msgspec.Struct):
    """Times the phases of one launch, and reports when each one begins."""

    say: Callable[[Progress], None]
    seconds: dict[str, float] = msgspec.field(default_factory=dict)

    @contextmanager
    def phase(self, subject: str, phase: Phase) -> Iterator[None]:
        """Report that a phase begins, and time the block, even if it raises."""
        self.say(Progress(subject, phase))
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = time.monotonic() - started

    def total(self) -> float:
        """The time of all phases so far, in seconds."""
        return sum(self.seconds.values())


def connect(order: Order, say: Callable[[Progress], None], cancelled: threading.Event) -> Order:
    """Connect an order to the run: its messages become progress, and it can be cancelled."""
    id = order.environment.id
    return msgspec.structs.replace(
        order,
        tell=lambda line: say(Progress(id, "launch", line)),
        warn=lambda line: say(Progress(id, "warning", line)),
        cancelled=cancelled,
    )


def wait_until_ready(
    environment: Environment,
    provider: Provider,
    order: Order,
    *,
    cancelled: threading.Event,
    say: Callable[[Progress], None],
) -> None:
    """Wait until an environment is ready, and report the results of its checks meanwhile.

    Args:
        environment: The environment, after its launch or its rollback.
        provider: Its provider.
        order: The order that it was launched with.
        cancelled: Ends the wait with an error when it is set.
        say: Receives progress.

    Raises:
        LaunchError: It did not become ready.
    """
    template, started = order.template, time.monotonic()
    probes = readiness.probes_for(environment, template, provider, order.headers)
    timeout = template.ready.timeout if template.ready else readiness.DEFAULT_TIMEOUT

    def tell(seen: str) -> None:
        text = mask(seen, order.secrets)
        say(Progress(environment.id, "seen", text, time.monotonic() - started))

    try:
        readiness.wait(
            environment, provider, probes, timeout=timeout, cancelled=cancelled, tell=tell
        )
    except LaunchError as error:
        raise type(error)(mask(str(error), order.secrets)) from None
    if shared := readiness.shared_listener(environment, provider):
        say(Progress(environment.id, "warning", shared))
