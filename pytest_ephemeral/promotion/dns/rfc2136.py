"""The DNS backend ``rfc2136``: dynamic updates of BIND, Knot, PowerDNS and other servers.

The prerequisite section of an update (RFC 2136, section 2.4) lists the records that must exist and
the types that must not. The server checks it and changes the zone in one atomic act.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.query
import dns.rcode
import dns.rdatatype
import dns.tsig
import dns.update

from pytest_ephemeral import interpolation
from pytest_ephemeral.errors import (
    ConfigurationError,
    DnsError,
    DnsUnavailableError,
    NameChangedError,
)
from pytest_ephemeral.promotion.dns import (
    KINDS,
    DnsRecord,
    check_alias,
    check_zone,
    format_records,
    kind_of,
    normalize_name,
    resolve,
    sort_records,
)
from pytest_ephemeral.tables import Promotion

#: The time-out of a request in seconds.
TIMEOUT: Final = 5.0

_PORT: Final = 53
_CHANGED: Final = frozenset({dns.rcode.NXRRSET, dns.rcode.YXRRSET, dns.rcode.NXDOMAIN})
_PASSING: Final = frozenset({dns.rcode.SERVFAIL})
_HINTS: Final[Mapping[dns.rcode.Rcode, str]] = {
    dns.rcode.REFUSED: "is `key` the one that the zone's allow-update or update-policy names?",
    dns.rcode.NOTAUTH: "is it the primary server of the zone, and does it know the key?",
    dns.rcode.NOTZONE: "is `zone` right?",
    dns.rcode.NOTIMP: "does it take dynamic updates?",
}


class Rfc2136:
    """See ``DnsBackend``."""

    def __init__(self, promotion: Promotion, root: Path) -> None:
        if promotion.zone is None or promotion.server is None:
            raise ConfigurationError(f"promotion.{promotion.name}: it needs zone and server")
        check_zone(promotion, promotion.zone)
        self.name = dns.name.from_text(promotion.record)
        self.zone = dns.name.from_text(promotion.zone)
        self.server = _host_and_port(promotion.server, _PORT)
        self._servers = list(promotion.servers)
        self._key = _key(promotion, root)
        self._record, self._zone = promotion.record, promotion.zone

    def read(self) -> list[DnsRecord]:
        """See ``DnsBackend``: one query of the primary server for each type."""
        return self._query_all(self.server, self._key)

    def records_for(self, host: str, ttl: int, now: Sequence[DnsRecord]) -> list[DnsRecord]:  # noqa: ARG002
        """See ``DnsBackend``: an address record, or a CNAME."""
        kind = kind_of(host)
        if kind == "CNAME":
            check_alias(self._record, self._zone, host)
        return [DnsRecord(kind=kind, ttl=ttl, values=[normalize_name(host)])]

    def swap(self, old: Sequence[DnsRecord], new: Sequence[DnsRecord]) -> str:
        """See ``DnsBackend``: one update with prerequisites, deletions and additions."""
        update = dns.update.UpdateMessage(self.zone)
        before = {record.kind: record for record in old}
        for kind in KINDS:
            if kind in before:
                update.present(self.name, kind, *map(_add_dot(kind), before[kind].values))
            else:
                update.absent(self.name, kind)
        for kind in before:
            update.delete(self.name, kind)
        for record in new:
            for value in record.values:
                update.add(self.name, record.ttl, record.kind, _add_dot(record.kind)(value))
        code = self._send(update, self.server, self._key).rcode()
        if code in _CHANGED:
            raise NameChangedError(
                f"someone else changed {self._record}: it is {format_records(self.read())} on "
                f"{_format_server(self.server)}, expected {format_records(old)}"
            )
        _check(code, self.server, f"the update of {self._record}")
        return ""

    def find_lagging(self, expected: Sequence[DnsRecord], change: str) -> str:  # noqa: ARG002
        """See ``DnsBackend``: queries each address of the zone's NS records, or of ``servers``."""
        due = sort_records(expected)
        behind = []
        for name, addresses in self._authorities():
            answers = {address: self._answer(address) for address in addresses}
            answered = [answer for answer in answers.values() if not isinstance(answer, str)]
            # Some addresses may be unreachable from here; all that answer must be up to date.
            if answered and all(answer == due for answer in answered):
                continue
            details = [
                f"{_format_server(address)}: {_format_answer(answer)}"
                for address, answer in answers.items()
                if answer != due
            ]
            behind.append(f"{name} ({'; '.join(details) or 'it has no address'})")
        return ", ".join(behind)

    def addresses(self) -> list[str]:
        """See ``DnsBackend``. The system's resolver follows a CNAME."""
        found = []
        for record in self.read():
            for value in record.values:
                found += resolve(value) if record.kind == "CNAME" else [value]
        return list(dict.fromkeys(found))

    # -- queries -----------------------------------------------------------------------------

    def _query_all(self, server: tuple[str, int], key: dns.tsig.Key | None) -> list[DnsRecord]:
        records = []
        for kind in KINDS:
            rrset = self._rrset(server, self.name, kind, key)
            if rrset is not None:
                values = sorted(_normalize_value(kind, each) for each in rrset)
                records.append(DnsRecord(kind=kind, ttl=rrset.ttl, values=values))
        return sort_records(records)

    def _rrset(
        self, server: tuple[str, int], name: dns.name.Name, kind: str, key: dns.tsig.Key | None
    ) -> Any:
        """An authoritative server's record set of a name and type; None if there is none."""
        query = dns.message.make_query(name, kind)
        query.flags &= ~dns.flags.RD
        answer = self._send(query, server, key)
        if answer.rcode() != dns.rcode.NXDOMAIN:
            _check(answer.rcode(), server, f"{name.to_text(omit_final_dot=True)} {kind}")
        if not answer.flags & dns.flags.AA:
            raise DnsError(
                f"{_format_server(server)} is not authoritative for {name}: is `server` right?"
            )
        wanted = dns.rdatatype.from_text(kind)
        found = (one for one in answer.answer if one.name == name and one.rdtype == wanted)
        return next(found, None)

    def _answer(self, server: tuple[str, int]) -> list[DnsRecord] | str:
        """The records from an authoritative server, or the reason why there is no answer."""
        try:
            return self._query_all(server, self._key if server == self.server else None)
        except DnsError as error:
            return str(error)

    def _authorities(self) -> Iterator[tuple[str, list[tuple[str, int]]]]:
        """The authoritative servers of the zone, with their addresses."""
        if self._servers:
            for server in self._servers:
                yield server, [_host_and_port(server, _PORT)]
            return
        named = self._rrset(self.server, self.zone, "NS", self._key)
        for target in sorted(each.target for each in named or ()):
            yield target.to_text(omit_final_dot=True), self._addresses_of(target)

    def _addresses_of(self, name: dns.name.Name) -> list[tuple[str, int]]:
        """The addresses of a name server, from its own zone or the system's resolver."""
        found: list[str] = []
        if name.is_subdomain(self.zone):
            for kind in ("A", "AAAA"):
                found += [
                    str(each) for each in self._rrset(self.server, name, kind, self._key) or ()
                ]
        else:
            found = resolve(name.to_text(omit_final_dot=True))
        return [(address, self.server[1]) for address in found]

    def _send(
        self, message: dns.message.Message, server: tuple[str, int], key: dns.tsig.Key | None
    ) -> dns.message.Message:
        if key is not None:
            message.use_tsig(key)
        where = socket.gethostbyname(server[0]) if kind_of(server[0]) == "CNAME" else server[0]
        try:
            if isinstance(message, dns.update.UpdateMessage):
                return dns.query.tcp(message, where, timeout=TIMEOUT, port=server[1])
            answer, _ = dns.query.udp_with_fallback(message, where, timeout=TIMEOUT, port=server[1])
        except dns.tsig.PeerBadTime as error:
            raise DnsError(
                f"{_format_server(server)} reports that its clock and this machine's "
                "differ: correct one of them"
            ) from error
        except dns.tsig.PeerError as error:
            raise DnsError(
                f"{_format_server(server)} rejects the key {key and key.name}: {error}"
            ) from error
        except dns.tsig.BadSignature as error:
            raise DnsError(
                f"the answer of {_format_server(server)} is signed with another key"
            ) from error
        except dns.exception.Timeout as error:
            raise DnsUnavailableError(
                f"{_format_server(server)} did not answer within {TIMEOUT:g} s"
            ) from error
        except dns.exception.FormError as error:
            raise DnsUnavailableError(
                f"the answer of {_format_server(server)} is not signed, or is broken: {error}"
            ) from error
        except (dns.exception.DNSException, OSError, EOFError) as error:
            raise DnsUnavailableError(
                f"{_format_server(server)} can't be reached: {error}"
            ) from error
        return answer


def _check(code: dns.rcode.Rcode, server: tuple[str, int], what: str) -> None:
    if code == dns.rcode.NOERROR:
        return
    hint = f": {_HINTS[code]}" if code in _HINTS else ""
    kind = DnsUnavailableError if code in _PASSING else DnsError
    raise kind(f"{_format_server(server)} answered {dns.rcode.to_text(code)} to {what}{hint}")


def _add_dot(kind: str) -> Any:
    """A value in the format of DNS messages: names end with a dot."""
    return (lambda value: f"{value}.") if kind == "CNAME" else str


def _normalize_value(kind: str, value: Any) -> str:
    return normalize_name(value.target.to_text()) if kind == "CNAME" else str(value)


def _format_answer(answer: list[DnsRecord] | str) -> str:
    return answer if isinstance(answer, str) else format_records(answer)


def _format_server(server: tuple[str, int]) -> str:
    return f"{server[0]}:{server[1]}"


def _host_and_port(text: str, port: int) -> tuple[str, int]:
    """``host``, ``host:port``, ``[v6]:port`` or a bare IPv6 address."""
    found = re.fullmatch(r"\[([^\]]+)\](?::(\d+))?|([^:]+)(?::(\d+))?", text)
    if found is None:
        return text, port
    return found[1] or found[3], int(found[2] or found[4] or port)


def _key(promotion: Promotion, root: Path) -> dns.tsig.Key | None:
    """Load the TSIG key of the setting ``key``; None if it has none.

    Raises:
        ConfigurationError: The file is missing, readable for all users, or is not a TSIG key.
    """
    if promotion.key is None:
        return None
    where = f"promotion.{promotion.name}.key"
    if interpolation.references(promotion.key, "env"):
        given = {"key": promotion.key}
        filled = interpolation.fill(given, environ=os.environ, images={}, where=where)
        return _read_key(filled.variables["key"], where)
    try:
        text = (root / promotion.key).read_text()
        mode = (root / promotion.key).stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"{where}: {root / promotion.key} can't be read: {error}"
        ) from None
    if mode & 0o007:
        raise ConfigurationError(
            f"{where}: all users can read {root / promotion.key}: chmod o= {root / promotion.key}"
        )
    return _read_key(text, where)


def _read_key(text: str, where: str) -> dns.tsig.Key:
    """Parse a key: the output of ``tsig-keygen``, or ``[algorithm:]name:secret`` (nsupdate)."""
    if clause := re.search(r'key\s+"?([^"\s{]+)"?\s*\{(.*?)\}', text, re.DOTALL):
        name, body = clause.groups()
        fields = dict(re.findall(r'(algorithm|secret)\s+"?([^";\s]+)"?\s*;', body))
        algorithm, secret = fields.get("algorithm", "hmac-sha256"), fields.get("secret", "")
    else:
        *before, name, secret = ["", *text.strip().split(":")]
        algorithm = before[-1] if len(before) > 1 else "hmac-sha256"
    try:
        base64.b64decode(secret, validate=True)
        if name and secret:
            return dns.tsig.Key(name, secret, algorithm)
    except (ValueError, binascii.Error, dns.exception.DNSException):
        pass
    raise ConfigurationError(
        f"{where}: not a TSIG key. Make one with `tsig-keygen NAME > FILE`, or give "
        "{env:NAME} with algorithm:name:secret in it"
    )
