"""Keep clients from asking a proxy for an environment that only this machine reaches.

Clients read ``NO_PROXY`` and ``no_proxy`` when they ask, or when they are made: urllib, requests,
httpx and curl all take a list of hosts, with commas between, in either.
"""

from __future__ import annotations

from collections.abc import Mapping, MutableMapping
from typing import Final

VARIABLES: Final = ("no_proxy", "NO_PROXY")
PROXIES: Final = ("http_proxy", "https_proxy", "all_proxy")


def exempt(environ: Mapping[str, str], host: str) -> dict[str, str]:
    """The variables that make clients reach a host without a proxy.

    Args:
        environ: The variables there are.
        host: A host's name or address.

    Returns:
        What to set; empty where no proxy is set. There ``NO_PROXY`` stays as it is, because
        Python asks macOS for its proxies only while no variable says anything of them.
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
    """The hosts that this process reaches without a proxy, until they are taken back.

    Args:
        environ: The variables of this process.
    """

    def __init__(self, environ: MutableMapping[str, str]) -> None:
        self._environ = environ
        self._before: dict[str, str | None] = {}
        self._set: dict[str, str] = {}

    def add(self, host: str) -> None:
        """Have clients reach a host without a proxy from now on."""
        for name, value in exempt(self._environ, host).items():
            if self._environ.get(name) != self._set.get(name):
                self._before[name] = self._environ.get(name)  # somebody has set it meanwhile
            self._environ[name] = self._set[name] = value

    def take_back(self) -> None:
        """Set the variables as they were, but for one that somebody has set meanwhile."""
        for name, value in self._set.items():
            if self._environ.get(name) != value:
                continue
            if (before := self._before.get(name)) is None:
                del self._environ[name]
            else:
                self._environ[name] = before
        self._set.clear()
        self._before.clear()
