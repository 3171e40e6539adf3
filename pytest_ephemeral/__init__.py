"""An environment of its own for every test stage.

Importing this package loads only this file, because pytest imports it in every run, even without
``--ephemeral-env``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_ephemeral.errors import EphemeralError
    from pytest_ephemeral.models import Endpoint, Environment
    from pytest_ephemeral.pytest_plugin.fixtures import early_environment, environment_fixture
    from pytest_ephemeral.tables import Template

    __version__: str

__all__ = [
    "Endpoint",
    "Environment",
    "EphemeralError",
    "Template",
    "early_environment",
    "environment_fixture",
]

_HOMES = {
    "Endpoint": "pytest_ephemeral.models",
    "Environment": "pytest_ephemeral.models",
    "EphemeralError": "pytest_ephemeral.errors",
    "Template": "pytest_ephemeral.tables",
    "early_environment": "pytest_ephemeral.pytest_plugin.fixtures",
    "environment_fixture": "pytest_ephemeral.pytest_plugin.fixtures",
}


def __getattr__(name: str) -> Any:
    """Import a public name when it is first used (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        return version("pytest-ephemeral")
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None
    from importlib import import_module

    return getattr(import_module(home), name)
