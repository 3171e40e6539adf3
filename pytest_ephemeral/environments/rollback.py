"""Roll an environment back to its baseline: the state in which it was ready and seeded."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from pytest_ephemeral import providers
from pytest_ephemeral.environments.seeding import run_step
from pytest_ephemeral.errors import ConfigurationError, EnvironmentGoneError, EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.abilities import SupportsRollback
from pytest_ephemeral.providers.protocol import UNSEEDED, Order, Provider
from pytest_ephemeral.tables import Template


class Baselines:
    """The environments of a run that have a baseline, each with its order.

    A lock for each environment prevents a rollback from creating resources during its removal.
    """

    def __init__(self) -> None:
        self._orders: dict[str, Order] = {}
        self._locks: dict[str, threading.RLock] = {}

    def add(self, order: Order, environment: Environment) -> None:
        """Add an environment, or replace its order after a rollback.

        Args:
            order: The order that it was launched with.
            environment: Its current state.
        """
        order = msgspec.structs.replace(order, environment=environment)
        self._orders[environment.id] = order

    @contextmanager
    def use(self, id: str) -> Iterator[Order]:
        """Lock an environment for a rollback.

        Raises:
            EnvironmentGoneError: It has no baseline, or is being destroyed.
        """
        with self._lock(id):
            if id not in self._orders:
                raise EnvironmentGoneError(f"{id} has no baseline: it is being destroyed")
            yield self._orders[id]

    @contextmanager
    def give_up(self, id: str) -> Iterator[None]:
        """Lock an environment for its removal, and remove its baseline."""
        with self._lock(id):
            self._orders.pop(id, None)
            yield

    def _lock(self, id: str) -> threading.RLock:
        return self._locks.setdefault(id, threading.RLock())  # setdefault is atomic


def check(template: Template, root: Path) -> None:
    """Check before a launch that environments of a template can be rolled back.

    Args:
        template: The template.
        root: The folder of the configuration file.

    Raises:
        EphemeralError: They can't; the message has the reason.
    """
    if template.reset is None:
        _require(template, providers.load(template.provider)).check_rollback(template, root)


def take_baseline(order: Order, provider: Provider) -> Environment:
    """Take the baseline of an environment that is ready and seeded.

    Args:
        order: The order that it was launched with, with its current state.
        provider: Its provider.

    Returns:
        The environment; its handle may have changed.

    Raises:
        EphemeralError: The baseline can't be taken.
    """
    if order.template.reset is not None:
        return order.environment
    return _require(order.template, provider).take_baseline(order)


def roll_back(order: Order, provider: Provider) -> Environment:
    """Roll an environment back: with the template's ``reset`` command, or else by its provider.

    Args:
        order: The order that it was launched with, with its current state.
        provider: Its provider.

    Returns:
        The environment; its handle may have changed.

    Raises:
        EphemeralError: The rollback failed, and the environment can't be used any more.
    """
    template, environment = order.template, order.environment
    if template.reset is not None:
        run_step("reset", environment, provider, template.reset, order.secrets)
        return environment
    try:
        return _require(template, provider).roll_back(order)
    except EphemeralError as error:
        raise EphemeralError(
            f"{environment.id} can't be put back to its baseline: {error}"
        ) from error


@contextmanager
def explain_expiry(environment: Environment, provider: Provider) -> Iterator[None]:
    """Explain an error of the block, if the cause is that the environment has expired.

    Args:
        environment: The environment that is rolled back.
        provider: Its provider.

    Raises:
        EnvironmentGoneError: The block raised an error, and the environment has expired.
        EphemeralError: The block raised another error.
    """
    try:
        yield
    except (EphemeralError, OSError) as error:
        if _has_expired(environment, provider):
            raise EnvironmentGoneError(
                f"{environment.id} expired at {environment.expires_at:%H:%M:%S} UTC, while it was "
                f"put back to its baseline. Give the template {environment.template} a longer ttl"
            ) from error
        if isinstance(error, OSError):
            raise EphemeralError(
                f"{environment.id} can't be put back to its baseline: {error}"
            ) from error
        raise


def _has_expired(environment: Environment, provider: Provider) -> bool:
    until = environment.expires_at
    if until is None or datetime.now(UTC) < until:
        return False
    with suppress(EphemeralError, OSError):
        return provider.status(environment).state == "gone"
    return False


def seed_again(order: Order, environment: Environment, provider: Provider) -> None:
    """Seed an environment again, if its provider's baseline is from before the seed.

    Args:
        order: The order that it was launched with.
        environment: The environment after the rollback; it is ready.
        provider: Its provider.

    Raises:
        LaunchError: The seed failed.
    """
    if (seed := order.template.seed) is not None and UNSEEDED in environment.handle:
        run_step("seed", environment, provider, seed, order.secrets)


def _require(template: Template, provider: Provider) -> SupportsRollback:
    if isinstance(provider, SupportsRollback):
        return provider
    raise ConfigurationError(
        f"templates.{template.name}: the provider {template.provider!r} can't put an environment "
        "back to its baseline, so rollback can't be used with it. Write a command of your own that "
        'does (`reset = "COMMAND"` in the template), or give each test an environment of its own '
        "(the fixture ephemeral_env_function)"
    )
