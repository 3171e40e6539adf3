"""Progress of launches, bakes and removals, for people who wait."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import msgspec

Phase = Literal[
    "bake", "launch", "ready", "seen", "seed", "up", "destroy", "destroyed", "kept", "warning"
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
