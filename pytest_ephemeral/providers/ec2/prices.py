"""What an environment costs, before it is paid: hours times what its instances cost an hour."""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.providers.ec2.tables import Ec2Template


class Prices:
    """Dollars an hour by instance type, by region.

    The table that comes with this is a small one of on-demand Linux prices, rounded up; a user's
    own file, of the same form, replaces it: ``{"us-east-1": {"t3.small": 0.0208}}``. The region
    ``*`` holds for those that are not listed.

    Args:
        file: A user's own.

    Raises:
        ConfigurationError: The file is none.
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
        """What an instance costs an hour; None when that is not known."""
        for place in (region, "*"):
            price = self._table.get(place, {}).get(instance_type)
            if price is not None:
                return float(price)
        return None


def of(template: Ec2Template, root: Path) -> Prices:
    """The table that holds for a template: its own file, or the one that comes with this."""
    return Prices(None if template.prices is None else root / template.prices)


def check(template: Ec2Template, prices: Prices, region: str, hours: float) -> None:
    """Refuse what could cost more than it may.

    Args:
        template: What is to be launched: the dearest of its types decides.
        prices: Of today.
        region: Where.
        hours: How long it may live.

    Raises:
        ConfigurationError: It could cost more, or what it costs is not known.
    """
    if template.max_cost is None:
        return
    allowed = float(template.max_cost.removeprefix("$"))
    for kind in template.instance_types():
        hourly = prices.hourly(kind, region)
        if hourly is None:
            raise ConfigurationError(
                f"templates.{template.name}.max-cost: what {kind} costs in {region} is not in "
                "the table of prices: name a file of yours that has it, with prices = FILE"
            )
        cost = hourly * template.count * hours
        if cost > allowed:
            raise ConfigurationError(
                f"templates.{template.name}.max-cost: {template.count} x {kind} for {hours:g} h "
                f"would cost ${cost:.2f} in {region}, more than {template.max_cost}: nothing was "
                "launched. Shorten its ttl, or take a smaller instance-type"
            )
