"""Exempt environments from proxies, which can't reach an address that only this machine has.

Clients read ``NO_PROXY`` or ``no_proxy`` at each request, or when the client is made. For urllib,
requests, httpx and curl, both are lists of hosts, separated by commas.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Final

VARIABLES: Final = ("no_proxy", "NO_PROXY")
PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")


def exempt(environ: Mapping[str, str], host: str) -> dict[str, str]:
    """The environment variables with which clients connect to a host without a proxy.

    Args:
        environ: The current environment variables.
        host: A host name or an address.

    Returns:
        The variables to set; empty if no proxy is set. In that case ``NO_PROXY`` must not be
        set: on macOS, Python would then ignore the system's proxy settings.
    """
    if not host or not any(name.lower() in PROXIES and value for name, value in environ.items()):
        return {}
    found: dict[str, str] = {}
    for name, other in (VARIABLES, VARIABLES[::-1]):
        listed = environ.get(name) or environ.get(other) or ""
        hosts = [one for one in map(str.strip, listed.split(",")) if one]
        if "*" not in hosts:
            found[name] = ",".join(dict.fromkeys([*hosts, host]))
    return found


class Exemptions:
    """The hosts to which this process connects without a proxy, until they are removed again.

    Args:
        environ: The environment variables of this process, which are changed.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._environ = environ
        self._before: dict[str, str | None] = {}
        self._set: dict[str, str] = {}

    def add(self, host: str) -> None:
        """Let clients connect to a host without a proxy from now on."""
        for name, value in exempt(self._environ, host).items():
            if self._environ.get(name) != self._set.get(name):
                self._before[name] = self._environ.get(name)  # set by other code since
            self._environ[name] = self._set[name] = value

    def restore(self) -> None:
        """Restore the variables, except those that other code has set in the meantime."""
        for name, value in self._set.items():
            if self._environ.get(name) != value:
                continue
            if (before := self._before.get(name)) is None:
                del self._environ[name]
            else:
                self._environ[name] = before
        self._set.clear()
        self._before.clear()
