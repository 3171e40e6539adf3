"""The table of providers.

A new one is one module, one row here, one extra in pyproject.toml, one page of docs, and it
passes ``tests/providers``. What a provider is stands in ``protocol``; what only some can do, in
``abilities``. Third parties register a class under the entry-point group
``pytest_ephemeral.providers``.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING

from pytest_ephemeral.errors import ConfigurationError, UnavailableError, closest
from pytest_ephemeral.providers.protocol import Provider

if TYPE_CHECKING:
    from importlib.metadata import EntryPoints

#: Name → ``module:class``, and the extra to install for it.
TABLE: Mapping[str, tuple[str, str | None]] = {
    "local": ("pytest_ephemeral.providers.local:LocalProvider", None),
    "docker": ("pytest_ephemeral.providers.docker:DockerProvider", "docker"),
    "compose": ("pytest_ephemeral.providers.compose:ComposeProvider", "docker"),
    "qemu": ("pytest_ephemeral.providers.qemu:QemuProvider", None),
    "ec2": ("pytest_ephemeral.providers.ec2:Ec2Provider", "aws"),
    "cloudformation": ("pytest_ephemeral.providers.cloudformation:CloudFormationProvider", "aws"),
}


@cache
def load(name: str) -> Provider:
    """Load the provider of that name, once in a process.

    Raises:
        ConfigurationError: There is none; names the closest.
        UnavailableError: It needs an extra that is not installed; names it.
    """
    if name in TABLE:
        path, extra = TABLE[name]
        module, _, attribute = path.partition(":")
        try:
            provider: Provider = getattr(import_module(module), attribute)()
        except ImportError as error:
            raise missing_extra(name, extra, error) from error
        return provider
    for point in _entry_points().select(name=name):
        found: Provider = point.load()()
        return found
    raise ConfigurationError(f"no provider {name!r}.{closest(name, names())}")


def names() -> list[str]:
    """The names of all providers, ours and third parties'."""
    return [*TABLE, *(point.name for point in _entry_points())]


def _entry_points() -> EntryPoints:
    """Third parties' providers. Few have any, and the library takes 5 ms to load."""
    from importlib.metadata import entry_points

    return entry_points(group="pytest_ephemeral.providers")


def missing_extra(provider: str, extra: str | None, error: ImportError) -> UnavailableError:
    """The error for a provider whose library is not installed."""
    install = f"pip install 'pytest-ephemeral[{extra}]'" if extra else f"pip install {error.name}"
    return UnavailableError(
        f"the provider {provider!r} needs {error.name!r}, which is not installed: {install}"
    )
