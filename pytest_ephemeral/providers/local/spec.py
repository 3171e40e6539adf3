"""Make the orders for a guard from an order for an environment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from pytest_ephemeral.providers.endpoints import make_endpoints
from pytest_ephemeral.providers.local import guard, network
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.reference import places
from pytest_ephemeral.providers.local.tables import LocalTemplate
from pytest_ephemeral.providers.protocol import Order

#: The variables of this process that applications get; templates set all others.
_ALLOWED: Final = ("PATH", "LANG", "LC_*", "TZ")


def make_spec(
    order: Order, place: Folder, claim: network.AddressClaim, descriptors: Sequence[int]
) -> guard.Spec:
    """The orders for a guard.

    Args:
        order: The order for the environment.
        place: The environment's folder.
        claim: The environment's address and ports.
        descriptors: Locks and claims that the guard holds while it lives.
    """
    template, expires_at = order.template, order.environment.expires_at
    assert isinstance(template, LocalTemplate)
    return guard.Spec(
        id=order.environment.id,
        control=place.path,
        processes={
            name: ["/bin/sh", "-c", command] for name, command in template.processes().items()
        },
        directory=place.state,
        variables=_variables(order, place, claim),
        logs=place.logs,
        readonly=[] if order.image is None else [Path(order.image.reference)],
        places={} if order.image is None else places(order.image),
        mark=place.mark,
        remove=[place.path],
        secrets=order.secrets,
        expires_at=None if expires_at is None else expires_at.timestamp(),
        settle=order.settle,
        descriptors=descriptors,
    )


def _variables(order: Order, place: Folder, claim: network.AddressClaim) -> dict[str, str]:
    """All variables of the application; the template's override the others."""
    variables = {
        name: value
        for name, value in os.environ.items()
        if any(fnmatchcase(name, pattern) for pattern in _ALLOWED)
    }
    variables |= {
        "HOME": str(place.state),
        "STATE": str(place.state),
        "TMPDIR": str(place.temporary),
        "HOST": claim.host,
        # If the image can't be mounted read-only, Python run by root would write caches into it.
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    if order.image is not None:
        variables["PREFIX"] = order.image.reference
    for name, port in claim.ports.items():
        variables[f"PORT_{name.upper().replace('-', '_')}"] = str(port)
        variables.setdefault("PORT", str(port))
    for endpoint in make_endpoints(claim.host, claim.ports, order.template.scheme).values():
        variables.setdefault("URL", endpoint.url)
    return {**variables, **order.variables}
