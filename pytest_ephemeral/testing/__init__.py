"""The conformance suite: tests of all that a provider must do, for your own provider.

Subclass ``ProviderConformance`` in a test module, give it a ``bench`` fixture, and run pytest. Add
``BakerConformance`` if the provider bakes images, ``PartsConformance`` if an environment has
several processes or services, ``OwnerConformance`` if environments end by themselves when their
owner dies or they expire, and ``RollbackConformance`` if they can be rolled back.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest

pytest.register_assert_rewrite(f"{__name__}.conformance", f"{__name__}.abilities")

from pytest_ephemeral.testing.abilities import (  # noqa: E402
    BakerConformance,
    OwnerConformance,
    PartsConformance,
    RollbackConformance,
)
from pytest_ephemeral.testing.bench import Bench, Kind, Launcher, bake, get, make_order  # noqa: E402
from pytest_ephemeral.testing.conformance import (  # noqa: E402
    ProviderConformance,
    ProviderFixtures,
)

#: The suite's web application, ``python3 application.py HOST PORT``, for a bench's image.
APPLICATION: Final = Path(__file__).with_name("application.py")

__all__ = [
    "APPLICATION",
    "BakerConformance",
    "Bench",
    "Kind",
    "Launcher",
    "OwnerConformance",
    "PartsConformance",
    "ProviderConformance",
    "ProviderFixtures",
    "RollbackConformance",
    "bake",
    "get",
    "make_order",
]
