"""The cost of an environment, before it is launched: hours times the hourly price."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.providers.ec2.tables import Ec2Template


class Prices:
    """Hourly prices in US dollars, by region and instance type.

    The built-in table is small: on-demand prices for Linux, rounded up. A user's own file replaces
    it: ``{"us-east-1": {"t3.small": 0.0208}}``. The region ``*`` stands for all regions that are
    not listed.

    Args:
        file: The user's own file; None for the built-in table.

    Raises:
        ConfigurationError: The file can't be read, or has another form.
    """

    def __init__(self, file: Path | None = None) -> None:
        if file is None:
            self._table = json.loads(files(__package__).joinpath("prices.json").read_text())
            return
        try:
            self._table = json.loads(file.read_text())
            self._table = {
                region: {kind: float(price) for kind, price in types.items()}
                for region, types in self._table.items()
            }
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise ConfigurationError(
                f"the prices in {file} can't be read: {error}. Expected JSON such as "
                '{"us-east-1": {"t3.small": 0.0208}}'
            ) from error

    def hourly(self, instance_type: str, region: str) -> float | None:
        """The price of an instance in US dollars an hour; None if the table does not have it."""
        for place in (region, "*"):
            price = self._table.get(place, {}).get(instance_type)
            if price is not None:
                return float(price)
        return None


def of(template: Ec2Template, root: Path) -> Prices:
    """The prices for a template: from its own file, or the built-in table."""
    return Prices(None if template.prices is None else root / template.prices)


def check(template: Ec2Template, prices: Prices, region: str, hours: float) -> None:
    """Check a template's cost until expiry against its ``max-cost``.

    Args:
        template: The template; each of its instance types must be cheap enough.
        prices: The prices.
        region: The region to launch in.
        hours: Hours until expiry.

    Raises:
        ConfigurationError: It could cost more, or a price is not known.
    """
    if template.max_cost is None:
        return
    allowed = float(template.max_cost.removeprefix("$"))
    for kind in template.instance_types():
        hourly = prices.hourly(kind, region)
        if hourly is None:
            raise ConfigurationError(
                f"templates.{template.name}.max-cost: the price of {kind} in {region} is not "
                "known: set `prices` to a file that has it"
            )
        cost = hourly * template.count * hours
        if cost > allowed:
            raise ConfigurationError(
                f"templates.{template.name}.max-cost: {template.count} x {kind} for {hours:g} h "
                f"would cost ${cost:.2f} in {region}, more than {template.max_cost}: nothing was "
                "launched. Shorten its ttl, or take a smaller instance-type"
            )
