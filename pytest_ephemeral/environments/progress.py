"""Progress of launches, bakes and removals, for people who wait."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

from pytest_ephemeral import interpolation
from pytest_ephemeral.environments import readiness
from pytest_ephemeral.errors import LaunchError
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
        subject: The environment's id, or the image's name while it is baked.
        phase: What is going on; ``seen`` is what it is not ready for yet.
        text: More about it; the URL when it is up.
        seconds: Since the phase began, or for ``up`` since bringing it up began.
        live: A line that the phase's own program printed.
    """

    subject: str
    phase: Phase
    text: str = ""
    seconds: float = 0.0
    live: bool = False


class Timed(msgspec.Struct, frozen=True):
    """An environment that is up, and how long each phase took, in seconds."""

    environment: Environment
    seconds: dict[str, float]


class PhaseTimer(msgspec.Struct):
    """Times the phases of one launch, and reports each as it begins."""

    say: Callable[[Progress], None]
    seconds: dict[str, float] = msgspec.field(default_factory=dict)

    @contextmanager
    def phase(self, subject: str, phase: Phase) -> Iterator[None]:
        """Time a block, however it ends."""
        self.say(Progress(subject, phase))
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[phase] = time.monotonic() - started

    def total(self) -> float:
        """All phases so far, in seconds."""
        return sum(self.seconds.values())


def connect(order: Order, say: Callable[[Progress], None], cancelled: threading.Event) -> Order:
    """An order whose provider is heard, as progress, and hears when it may give up."""
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
    """Wait until an environment is ready, and report what it is not ready for yet.

    Args:
        environment: As it was launched, or put back.
        provider: What runs it.
        order: What it was launched with.
        cancelled: Once set, it is not waited for any more.
        say: Told of progress.

    Raises:
        LaunchError: It did not become ready.
    """
    template, started = order.template, time.monotonic()
    probes = readiness.probes_for(environment, template, provider, order.headers)
    timeout = template.ready.timeout if template.ready else readiness.DEFAULT_TIMEOUT

    def tell(seen: str) -> None:
        text = interpolation.mask(seen, order.secrets)
        say(Progress(environment.id, "seen", text, time.monotonic() - started))

    try:
        readiness.wait(
            environment, provider, probes, timeout=timeout, cancelled=cancelled, tell=tell
        )
    except LaunchError as error:
        raise type(error)(interpolation.mask(str(error), order.secrets)) from None
    if shared := readiness.shared_listener(environment, provider):
        say(Progress(environment.id, "warning", shared))
