"""The table of DNS backends, and their protocol.

A backend changes the records of a production name by compare-and-swap: ``swap`` has the expected
and the new records, and is atomic. Third parties register a class under the entry-point group
``pytest_ephemeral.dns``.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Final, Protocol

import msgspec

from pytest_ephemeral.errors import ConfigurationError, DnsError, UnavailableError, closest
from pytest_ephemeral.models import Model
from pytest_ephemeral.tables import Promotion

#: For each name, ``module:class`` and the extra to install; None if it needs none.
TABLE: Mapping[str, tuple[str, str | None]] = {
    "hosts": ("pytest_ephemeral.promotion.dns.hosts:Hosts", None),
    "rfc2136": ("pytest_ephemeral.promotion.dns.rfc2136:Rfc2136", "dns"),
    "route53": ("pytest_ephemeral.promotion.dns.route53:Route53", "aws"),
}

#: The types of record that make a name point to a host.
KINDS: Final = ("A", "AAAA", "CNAME")


class DnsRecord(Model, frozen=True, kw_only=True):
    """The record set of one name and type.

    Attributes:
        kind: ``A``, ``AAAA`` or ``CNAME``.
        ttl: The TTL in seconds; 0 if the service has no TTL for it.
        values: Addresses, or the target of a CNAME; sorted, without a final dot.
        rest: Further fields of the service's own format, such as an alias's target or a weight.
    """

    kind: str
    ttl: int = 0
    values: list[str] = msgspec.field(default_factory=list)
    rest: dict[str, Any] = msgspec.field(default_factory=dict)

    def __str__(self) -> str:
        words = [self.kind, *([f"{self.ttl}s"] if self.ttl else []), *self.values]
        return " ".join([*words, *(f"{key}={value}" for key, value in self.rest.items())])


class DnsBackend(Protocol):
    """One production name on its DNS server.

    The constructor has the promotion's table and the configuration's folder as arguments. It must
    not connect to the server.
    """

    def read(self) -> list[DnsRecord]:
        """The current records, as the authoritative server returns them; see ``sort_records``.

        Raises:
            DnsError: The server refuses the query, or can't be reached.
        """

    def records_for(self, host: str, ttl: int, now: Sequence[DnsRecord]) -> list[DnsRecord]:
        """Make the records that let the name point to a host.

        Args:
            host: An address, or a name.
            ttl: The TTL in seconds.
            now: The current records; fields that must not change, such as a weight, are copied.

        Raises:
            DnsError: This backend can't let the name point to this host.
        """

    def swap(self, old: Sequence[DnsRecord], new: Sequence[DnsRecord]) -> str:
        """Replace the records ``old`` with ``new``, atomically.

        Returns:
            An id of the change, for ``find_lagging``; may be empty.

        Raises:
            NameChangedError: The current records are not ``old``. Nothing was changed.
            DnsUnavailableError: It is unknown whether the records changed: read them again.
            DnsError: The server refused the change. Nothing was changed.
        """

    def find_lagging(self, expected: Sequence[DnsRecord], change: str) -> str:
        """Find authoritative servers that do not return the expected records yet.

        Args:
            expected: The records that all servers should return.
            change: The result of ``swap``; empty if nothing was changed.

        Returns:
            The servers and their answers, for the user; empty if all servers are up to date.
        """

    def addresses(self) -> list[str]:
        """The addresses that the name currently resolves to."""


def load(promotion: Promotion, root: Path) -> DnsBackend:
    """Load the backend of a promotion.

    Args:
        promotion: The promotion's table.
        root: The folder of the configuration file.

    Raises:
        ConfigurationError: There is no such backend, or the table lacks a key that it needs.
        UnavailableError: The extra that it needs is not installed.
    """
    name = promotion.dns
    if name in TABLE:
        path, extra = TABLE[name]
        module, _, attribute = path.partition(":")
        try:
            backend: DnsBackend = getattr(import_module(module), attribute)(promotion, root)
        except ImportError as error:
            raise UnavailableError(
                f"promotion.{promotion.name}: dns = {name!r} needs {error.name!r}, which is not "
                f"installed: pip install 'pytest-ephemeral[{extra}]'"
            ) from error
        return backend
    for point in entry_points(group="pytest_ephemeral.dns", name=name):
        found: DnsBackend = point.load()(promotion, root)
        return found
    others = [point.name for point in entry_points(group="pytest_ephemeral.dns")]
    known = closest(name, [*TABLE, *others])
    raise ConfigurationError(f"promotion.{promotion.name}.dns: no DNS backend {name!r}.{known}")


def sort_records(records: Iterable[DnsRecord]) -> list[DnsRecord]:
    """Records in a fixed order, for comparison."""
    return sorted(records, key=lambda record: (KINDS.index(record.kind), record.values))


def format_records(records: Sequence[DnsRecord]) -> str:
    """Records as text for people."""
    return ", ".join(map(str, records)) or "nothing"


def kind_of(host: str) -> str:
    """The type of the record for a host: ``A``, ``AAAA`` or ``CNAME``."""
    try:
        return "A" if ipaddress.ip_address(host).version == 4 else "AAAA"
    except ValueError:
        return "CNAME"


def normalize_name(name: str) -> str:
    """A name in lower case, without the final dot, for comparison."""
    return name.lower().removesuffix(".")


def resolve(name: str) -> list[str]:
    """The addresses of a name from the system's resolver; empty if it can't be resolved."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def check_zone(promotion: Promotion, zone: str) -> None:
    """Check that a promotion's name is in its zone.

    Raises:
        ConfigurationError: The name is not in the zone.
    """
    record, zone = normalize_name(promotion.record), normalize_name(zone)
    if record != zone and not record.endswith(f".{zone}"):
        raise ConfigurationError(
            f"promotion.{promotion.name}.record: {record} is not in the zone {zone}"
        )


def check_alias(record: str, zone: str, host: str) -> None:
    """Refuse a CNAME for the name of the zone itself.

    RFC 1034, section 3.6.2: a name with a CNAME has no other records, but a zone has a SOA record.

    Raises:
        DnsError: The record's name is the zone's name.
    """
    if normalize_name(record) == normalize_name(zone):
        raise DnsError(
            f"{record} is the zone's own name, which can't be an alias of {host}: "
            "promote an environment that has an address"
        )
