"""DNS backends, which serve production names, and the table of them.

A name is never set, only changed: ``swap`` gives the expected and the new records, and either all
of it happens or nothing. Third parties register a class under the entry-point group
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

#: Name → ``module:class``, and the extra to install for it.
TABLE: Mapping[str, tuple[str, str | None]] = {
    "hosts": ("pytest_ephemeral.promotion.dns.hosts:Hosts", None),
    "rfc2136": ("pytest_ephemeral.promotion.dns.rfc2136:Rfc2136", "dns"),
    "route53": ("pytest_ephemeral.promotion.dns.route53:Route53", "aws"),
}

#: The types of record that point a name somewhere.
KINDS: Final = ("A", "AAAA", "CNAME")


class DnsRecord(Model, frozen=True, kw_only=True):
    """The record set of one name and type.

    Attributes:
        kind: ``A``, ``AAAA`` or ``CNAME``.
        ttl: Seconds it may be remembered; 0 where the service has none to set.
        values: Addresses, or the name it is an alias of; sorted, without a final dot.
        rest: What else the service itself knows of it (an alias's target, a weight), as it
            writes it.
    """

    kind: str
    ttl: int = 0
    values: list[str] = msgspec.field(default_factory=list)
    rest: dict[str, Any] = msgspec.field(default_factory=dict)

    def __str__(self) -> str:
        told = [self.kind, *([f"{self.ttl}s"] if self.ttl else []), *self.values]
        return " ".join([*told, *(f"{key}={value}" for key, value in self.rest.items())])


class DnsBackend(Protocol):
    """One production name at the server that serves it.

    Made with the promotion's table and the folder of the configuration; nothing is connected to
    until it is asked for something.
    """

    def read(self) -> list[DnsRecord]:
        """The current records, as the authoritative server returns them; see ``sort_records``.

        Raises:
            DnsError: It refuses the query, or can't be reached.
        """

    def records_for(self, host: str, ttl: int, now: Sequence[DnsRecord]) -> list[DnsRecord]:
        """The records that make the name point to a host.

        Args:
            host: An address, or a name.
            ttl: Seconds they may be remembered.
            now: Its current records; what must not change (a weight) is taken from them.

        Raises:
            DnsError: Such a name can't point to such a host here.
        """

    def swap(self, old: Sequence[DnsRecord], new: Sequence[DnsRecord]) -> str:
        """Replace exactly these records with those, atomically.

        Returns:
            What to give to ``find_lagging``.

        Raises:
            NameChangedError: The records are not ``old``. Nothing was changed.
            DnsUnavailableError: It is unknown whether it happened: read the records again.
            DnsError: It was refused. Nothing was changed.
        """

    def find_lagging(self, expected: Sequence[DnsRecord], change: str) -> str:
        """Which authoritative servers do not return these records yet, for people.

        Args:
            expected: The records that all should return.
            change: What ``swap`` returned; empty when nothing was swapped.

        Returns:
            Empty when all do.
        """

    def addresses(self) -> list[str]:
        """The addresses that a client gets for the name now."""


def load(promotion: Promotion, root: Path) -> DnsBackend:
    """The backend of a promotion.

    Args:
        promotion: Its table.
        root: The folder of the configuration file.

    Raises:
        ConfigurationError: There is none of that name, or it needs other keys.
        UnavailableError: It needs an extra that is not installed; names it.
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
    raise ConfigurationError(f"promotion.{promotion.name}: no dns {name!r}.{known}")


def sort_records(records: Iterable[DnsRecord]) -> list[DnsRecord]:
    """Records in a fixed order, for comparison."""
    return sorted(records, key=lambda record: (KINDS.index(record.kind), record.values))


def format_records(records: Sequence[DnsRecord]) -> str:
    """Records as text for people."""
    return ", ".join(map(str, records)) or "nothing"


def kind_of(host: str) -> str:
    """The type of record that points to a host."""
    try:
        return "A" if ipaddress.ip_address(host).version == 4 else "AAAA"
    except ValueError:
        return "CNAME"


def normalize_name(name: str) -> str:
    """A name for comparison: in lower case, without the final dot."""
    return name.lower().removesuffix(".")


def resolve(name: str) -> list[str]:
    """The addresses of a name, by the system's resolver; none when it has none."""
    try:
        found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except OSError:
        return []
    return list(dict.fromkeys(str(address[0]) for *_, address in found))


def check_zone(promotion: Promotion, zone: str) -> None:
    """Check that a promotion's name is in its zone.

    Raises:
        ConfigurationError: It is not in it.
    """
    record, zone = normalize_name(promotion.record), normalize_name(zone)
    if record != zone and not record.endswith(f".{zone}"):
        raise ConfigurationError(
            f"promotion.{promotion.name}.record: {record} is not in the zone {zone}"
        )


def check_alias(record: str, zone: str, host: str) -> None:
    """Refuse an alias for the zone's own name, which no zone may have.

    Raises:
        DnsError: RFC 1034, 3.6.2: beside a CNAME there may be nothing, and a zone has its SOA.
    """
    if normalize_name(record) == normalize_name(zone):
        raise DnsError(
            f"{record} is the zone's own name, which can't be an alias of {host}: "
            "promote an environment that has an address"
        )
