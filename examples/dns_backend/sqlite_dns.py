"""A DNS backend in one file: a name in the SQLite database of a PowerDNS server.

PowerDNS reads its table ``records`` for every query, so that a change is visible at once:
https://doc.powerdns.com/authoritative/backends/generic-sqlite3.html
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

from pytest_ephemeral.errors import DnsError, NameChangedError
from pytest_ephemeral.promotion.dns import (
    KINDS,
    DnsRecord,
    check_zone,
    format_records,
    kind_of,
    normalize_name,
    resolve,
    sort_records,
)
from pytest_ephemeral.tables import Promotion


class SqliteDns:
    """``[promotion.NAME]`` with ``dns = "powerdns-sqlite"``, ``zone``, ``record`` and ``file``."""

    def __init__(self, promotion: Promotion, root: Path) -> None:
        self.name = normalize_name(promotion.record)
        self.zone = normalize_name(promotion.zone or "")
        check_zone(promotion, self.zone)
        self.file = root / (promotion.file or "pdns.sqlite3")

    def read(self) -> list[DnsRecord]:
        with self._open() as database:
            return self._select(database)

    def records_for(self, host: str, ttl: int, now: Sequence[DnsRecord]) -> list[DnsRecord]:  # noqa: ARG002
        return [DnsRecord(kind=kind_of(host), ttl=ttl, values=[normalize_name(host)])]

    def swap(self, old: Sequence[DnsRecord], new: Sequence[DnsRecord]) -> str:
        with self._open() as database:
            database.execute("BEGIN IMMEDIATE")  # from here on, nobody else writes
            if (now := self._select(database)) != sort_records(old):
                raise NameChangedError(
                    f"someone else changed {self.name}: it is {format_records(now)} "
                    f"in {self.file}, expected {format_records(old)}"
                )
            database.execute("DELETE FROM records WHERE name = ?", [self.name])
            database.executemany(
                "INSERT INTO records (domain_id, name, type, ttl, content) "
                "SELECT id, ?, ?, ?, ? FROM domains WHERE name = ?",
                [
                    (self.name, record.kind, record.ttl, value, self.zone)
                    for record in new
                    for value in record.values
                ],
            )
            database.execute("COMMIT")
        return ""

    def find_lagging(self, expected: Sequence[DnsRecord], change: str) -> str:  # noqa: ARG002
        now = self.read()
        return "" if now == sort_records(expected) else f"{self.file} has {format_records(now)}"

    def addresses(self) -> list[str]:
        found = self.read()
        values = [value for record in found for value in record.values]
        return resolve(values[0]) if found and found[0].kind == "CNAME" else values

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        try:
            with closing(sqlite3.connect(f"file:{self.file}?mode=rw", uri=True)) as database:
                database.isolation_level = None  # transactions are begun and ended here
                yield database
        except sqlite3.Error as error:
            raise DnsError(f"{self.file}: {error}") from error

    def _select(self, database: sqlite3.Connection) -> list[DnsRecord]:
        rows = database.execute(
            "SELECT type, ttl, content FROM records WHERE name = ? ORDER BY content", [self.name]
        )
        found: dict[str, DnsRecord] = {}
        for kind, ttl, value in rows:
            if kind in KINDS:
                found.setdefault(kind, DnsRecord(kind=kind, ttl=ttl or 0)).values.append(value)
        return sort_records(found.values())
