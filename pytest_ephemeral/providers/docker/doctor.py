"""The checks of ``pytest-ephemeral doctor`` for the container providers."""

from __future__ import annotations

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.docker import endpoint
from pytest_ephemeral.providers.protocol import Check


def engine_check() -> Check:
    """Check that a container engine answers."""
    try:
        engine = endpoint.find()
        version = engine.call("GET", "/version", timeout=10)
    except (EphemeralError, TimeoutError) as error:
        what, _, hint = str(error).rpartition(": ")
        return Check(name="engine", ok=False, detail=what or str(error), hint=hint)
    components = [part["Name"] for part in version.get("Components") or ()]
    product = "Podman" if any("Podman" in name for name in components) else "Docker"
    return Check(
        name="engine",
        ok=True,
        detail=f"{product} {version['Version']} ({version['Os']}/{version['Arch']}) "
        f"at {engine.address}",
    )
