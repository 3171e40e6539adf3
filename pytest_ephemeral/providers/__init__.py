"""The table of providers.

A new provider needs a module, a row in this table, an extra in pyproject.toml and a page of docs,
and must pass ``tests/providers``. The protocol of all providers is in ``protocol``, optional
protocols are in ``abilities``. Third parties register a class under the entry-point group
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

#: By the provider's name: ``module:class``, and the extra that it needs, or None.
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
    """Load a provider by its name; each is made once in a process.

    Raises:
        ConfigurationError: There is no such provider. The message has the closest name.
        UnavailableError: It needs an extra that is not installed. The message names the extra.
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
    """The names of all providers: the package's own, then those of third parties."""
    return [*TABLE, *(point.name for point in _entry_points())]


def _entry_points() -> EntryPoints:
    """The providers of third parties. Imported here, as ``importlib.metadata`` takes 5 ms."""
    from importlib.metadata import entry_points

    return entry_points(group="pytest_ephemeral.providers")


def missing_extra(provider: str, extra: str | None, error: ImportError) -> UnavailableError:
    """The error for a provider whose library is not installed.

    Args:
        provider: The provider's name.
        extra: The extra that installs the library; None for the module's own name.
        error: The failed import.
    """
    install = f"pip install 'pytest-ephemeral[{extra}]'" if extra else f"pip install {error.name}"
    return UnavailableError(
        f"the provider {provider!r} needs {error.name!r}, which is not installed: {install}"
    )
