"""Freeze the memory of a ready and seeded environment; the next one resumes from there."""

from __future__ import annotations

import msgspec

from pytest_ephemeral.environments.progress import PhaseTimer, Progress
from pytest_ephemeral.masking import mask
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.abilities import SupportsFreeze
from pytest_ephemeral.providers.protocol import COLD_BOOT, TO_FREEZE, Order, Provider


def freeze_if_asked(
    order: Order, environment: Environment, provider: Provider, timer: PhaseTimer
) -> Environment:
    """Freeze an environment if its template requires it; warn if it was booted, not resumed.

    Args:
        order: The order that it was launched with.
        environment: The environment; it is ready and seeded.
        provider: Its provider.
        timer: Times the phase, and reports progress.

    Returns:
        The environment; its handle may have changed.
    """
    if TO_FREEZE in environment.handle and isinstance(provider, SupportsFreeze):
        order = msgspec.structs.replace(order, environment=environment)
        with timer.phase(environment.id, "freeze"):
            environment = provider.freeze(order)
    if why := environment.handle.get(COLD_BOOT):
        text = f"it was booted, not resumed from memory: {mask(why, order.secrets)}"
        timer.say(Progress(environment.id, "warning", text))
    return environment
