"""Removing an environment: what every way down ends in, whoever goes it."""

from __future__ import annotations

from contextlib import suppress

from pytest_ephemeral import providers
from pytest_ephemeral.environments.ledger import Ledger
from pytest_ephemeral.errors import StoreError
from pytest_ephemeral.models import Environment


def remove(ledger: Ledger, environment: Environment) -> None:
    """Remove all of an environment, then its record: never the other way round.

    Args:
        ledger: Where its record is.
        environment: Up, half-made, or gone already.

    Raises:
        DestroyError: Something remains, and so does the record.
    """
    recorded = None
    with suppress(StoreError):  # a store on a full disk takes no more changes, but removals
        recorded = ledger.change(environment.id, state="destroying")
    # The record knows more than whoever waited for a launch that failed: where, and what was asked.
    providers.load(environment.provider).destroy(recorded or environment)
    ledger.remove(environment.id)
