"""The DNS backend ``hosts``: a name in a hosts(5) file, for a pipeline on one machine.

A change replaces the file atomically, under a lock of this backend. The lines of other names stay
the same, byte for byte.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from pytest_ephemeral import files
from pytest_ephemeral.errors import DnsError, NameChangedError
from pytest_ephemeral.promotion.dns import (
    DnsRecord,
    format_records,
    kind_of,
    normalize_name,
    sort_records,
)
from pytest_ephemeral.tables import Promotion

DEFAULT_FILE: Final = ".ephemeral/hosts"

#: The file must be readable for all users: a resolver runs as the user of its process.
_MODE: Final = 0o644


class Hosts:
    """See ``DnsBackend``. A hosts file has addresses only, and no TTL."""

    def __init__(self, promotion: Promotion, root: Path) -> None:
        self.name = normalize_name(promotion.record)
        named = root / (promotion.file or DEFAULT_FILE)
        _check_links(named)
        self.file = named.resolve()

    def read(self) -> list[DnsRecord]:
        """See ``DnsBackend``: the addresses of all lines with the name."""
        found: dict[str, list[str]] = {}
        for line in self._lines():
            address, names = _parse(line)
            if self.name in names:
                found.setdefault(kind_of(address), []).append(address)
        return sort_records(
            DnsRecord(kind=kind, values=sorted(each)) for kind, each in found.items()
        )

    def records_for(self, host: str, ttl: int, now: Sequence[DnsRecord]) -> list[DnsRecord]:  # noqa: ARG002
        """See ``DnsBackend``: a record with one address."""
        kind = kind_of(host)
        if kind == "CNAME":
            raise DnsError(
                f"{self.file} can only hold addresses, and {self.name} should point to {host}: "
                'use dns = "rfc2136" or "route53" for it'
            )
        return [DnsRecord(kind=kind, values=[host])]

    def swap(self, old: Sequence[DnsRecord], new: Sequence[DnsRecord]) -> str:
        """See ``DnsBackend``. Returns an empty string: a change has no id."""
        with self._lock():
            now = self.read()
            if now != sort_records(old):
                raise NameChangedError(
                    f"someone else changed {self.file}: {self.name} is {format_records(now)} "
                    f"there, expected {format_records(old)}"
                )
            lines = [kept for line in self._lines() if (kept := self._without(line)) is not None]
            if lines and not lines[-1].endswith("\n"):
                lines[-1] += "\n"
            lines += [f"{value}\t{self.name}\n" for record in new for value in record.values]
            self._replace("".join(lines))
        return ""

    def find_lagging(self, expected: Sequence[DnsRecord], change: str) -> str:  # noqa: ARG002
        """See ``DnsBackend``. There is only one file to check."""
        now = self.read()
        return "" if now == sort_records(expected) else f"{self.file} has {format_records(now)}"

    def addresses(self) -> list[str]:
        """See ``DnsBackend``: the addresses in the file."""
        return [value for record in self.read() for value in record.values]

    def _lines(self) -> list[str]:
        try:
            # Other lines may have any encoding, and must stay the same.
            return self.file.read_bytes().decode(errors="surrogateescape").splitlines(keepends=True)
        except FileNotFoundError:
            return []
        except OSError as error:
            raise DnsError(f"{self.file} can't be read: {error.strerror}") from error

    def _without(self, line: str) -> str | None:
        """The line without the name; None if it has no other name."""
        address, names = _parse(line)
        if self.name not in names:
            return line
        entry, mark, comment = line.partition("#")
        others = [name for name in entry.split()[1:] if normalize_name(name) != self.name]
        if not others:
            return None
        return " ".join([address, *others]) + (f" #{comment}" if mark else "\n")

    def _replace(self, text: str) -> None:
        try:
            mode = self.file.stat().st_mode & 0o777
        except FileNotFoundError:
            mode = _MODE
        files.replace(self.file, [text.encode(errors="surrogateescape")], mode=mode)

    @contextmanager
    def _lock(self) -> Iterator[None]:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            with files.hold_lock(self.file.with_name(f".{self.file.name}.lock")):
                yield
        except OSError as error:
            hint = "permission denied: see who owns it"
            if error.errno == errno.EBUSY:
                hint = "it is mounted into this container, and can't be replaced: use another file"
            raise DnsError(f"{self.file} can't be changed: {error.strerror}; {hint}") from error


def _check_links(file: Path) -> None:
    """Refuse a path with a symbolic link of another user.

    Raises:
        DnsError: The path has such a link.
    """
    if not hasattr(os, "getuid"):
        return
    trusted = {0, os.getuid()}
    for part in [file, *file.parents]:
        if part.is_symlink() and part.lstat().st_uid not in trusted:
            raise DnsError(
                f"{file}: {part} is a symbolic link of another user: use the path it leads to"
            )


def _parse(line: str) -> tuple[str, set[str]]:
    """A line's address and names; both are empty for a comment or an empty line."""
    words = line.partition("#")[0].split()
    return (words[0], {normalize_name(name) for name in words[1:]}) if words else ("", set())
