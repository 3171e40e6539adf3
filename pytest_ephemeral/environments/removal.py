"""The removal of an environment, for whoever destroys it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

from pytest_ephemeral import providers
from pytest_ephemeral.environments.ledger import Ledger
from pytest_ephemeral.errors import EphemeralError, StoreError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.abilities import SupportsStagedDestroy


def remove(
    ledger: Ledger, environment: Environment, accepted: Callable[[], None] = lambda: None
) -> None:
    """Remove all of an environment, then its record, never in the other order.

    Args:
        ledger: Where its record is.
        environment: Up, half-made, or gone already.
        accepted: Called once the platform has agreed to remove it; what is left is to wait.

    Raises:
        DestroyError: Something remains, and so does the record, which says why.
    """
    recorded = None
    with suppress(StoreError):  # a store on a full disk takes no more changes, but removals
        recorded = ledger.change(environment.id, state="destroying")
    # The record has more than the failed launch returned: the place, and the pending requests.
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
