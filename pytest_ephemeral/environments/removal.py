"""Destroy one environment and remove its record: used by the lifecycle, the reaper and others."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pytest_ephemeral import providers
from pytest_ephemeral.errors import EphemeralError, StoreError
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.abilities import SupportsStagedDestroy


def remove(
    ledger: Ledger, environment: Environment, accepted: Callable[[], None] = lambda: None
) -> None:
    """Destroy all resources of an environment, and then remove its record.

    Args:
        ledger: The ledger with its record.
        environment: The environment; it may be incomplete, or gone already.
        accepted: Called once the platform has accepted the request to destroy it.

    Raises:
        DestroyError: Something is left. The record stays, with the reason.
    """
    recorded = None
    with suppress(StoreError):  # a full disk must not prevent the removal
        recorded = ledger.change(environment.id, state="destroying")
    # After a failed launch, the record's handle has more than ``environment``: it was journaled.
    provider = providers.load(environment.provider)
    target = recorded or environment
    try:
        if isinstance(provider, SupportsStagedDestroy):
            provider.destroy_in_stages(target, accepted)
        else:
            provider.destroy(target)
    except EphemeralError as error:
        with suppress(StoreError):
            ledger.change(environment.id, problem=str(error))
        raise
    ledger.remove(environment.id)


def describe_problem(id: str, problem: str) -> str:
    """One line that says that an environment could not be removed, and why.

    Args:
        id: The environment's id.
        problem: The text of the error; some providers' errors begin with the same words.
    """
    start = f"{id} could not be removed: "
    return start + problem.splitlines()[0].removeprefix(start).removesuffix(".")
