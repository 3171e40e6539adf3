"""The DNS backend for a hosts file: a swap is atomic and changes only one name."""

from __future__ import annotations

import os
import stat
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.errors import ConfigurationError, DnsError, NameChangedError
from pytest_ephemeral.promotion import dns
from pytest_ephemeral.promotion.dns import DnsRecord
from pytest_ephemeral.tables import Promotion

NAME = "shop.example.test"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """The path of the hosts file, which does not exist yet."""
    return tmp_path / "etc" / "hosts"


@pytest.fixture
def hosts(file: Path) -> Any:
    """The DNS backend for the file."""
    return dns.load(Promotion(name="p", dns="hosts", record=NAME, file=str(file)), file.parent)


def a(*values: str) -> list[DnsRecord]:
    return [DnsRecord(kind="A", values=list(values))]


@pytest.mark.skipif(os.getuid() != 0, reason="only root can make another user's link")
def test_another_users_link_is_not_followed(tmp_path: Path) -> None:
    """It may lead to any file that we can write, so its target stays unchanged."""
    target = tmp_path / "passwd"
    target.write_text("root:x:0:0\n")
    link = tmp_path / "hosts"
    link.symlink_to(target)
    os.chown(link, 4242, 4242, follow_symlinks=False)
    promotion = Promotion(name="p", dns="hosts", record=NAME, file=str(link))
    with pytest.raises(DnsError, match="symbolic link of another user"):
        dns.load(promotion, tmp_path)
    assert target.read_text() == "root:x:0:0\n"


def test_a_new_name_creates_the_file(hosts: Any, file: Path) -> None:
    """The new file is readable for all users."""
    assert hosts.read() == []

    hosts.swap([], a("127.0.0.5"))

    assert file.read_text() == f"127.0.0.5\t{NAME}\n"
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert hosts.addresses() == ["127.0.0.5"]
    assert hosts.find_lagging(a("127.0.0.5"), "") == ""
    assert "A 127.0.0.5" in hosts.find_lagging(a("127.0.0.6"), "")


def test_other_lines_stay_byte_for_byte(hosts: Any, file: Path) -> None:
    """These are comments, blank lines, other names and invalid UTF-8."""
    before = b"# mine\n\n127.0.0.1\tlocalhost  me\n::1 localhost\n127.0.0.9 SHOP.example.test\n"
    after = b"\xff\xfe odd\n10.0.0.1 shop.example.test.other not-shop.example.test"
    file.parent.mkdir()
    file.write_bytes(before + after)

    hosts.swap(a("127.0.0.9"), a("127.0.0.5"))

    kept = before.replace(b"127.0.0.9 SHOP.example.test\n", b"")
    assert file.read_bytes() == kept + after + b"\n127.0.0.5\tshop.example.test\n"


def test_a_shared_line_keeps_its_other_names(hosts: Any, file: Path) -> None:
    """The line's comment is kept, too."""
    file.parent.mkdir()
    file.write_text(f"127.0.0.9 one {NAME} two # both\n127.0.0.9 {NAME} three\n")

    hosts.swap(a("127.0.0.9", "127.0.0.9"), a("127.0.0.5"))

    assert file.read_text() == f"127.0.0.9 one two # both\n127.0.0.9 three\n127.0.0.5\t{NAME}\n"


@pytest.mark.parametrize("wrong", [[], a("127.0.0.8"), a("127.0.0.9", "127.0.0.8")])
def test_a_swap_from_other_records_is_refused(
    hosts: Any, file: Path, wrong: list[DnsRecord]
) -> None:
    """The error shows the current records, and the file stays unchanged."""
    hosts.swap([], a("127.0.0.9"))
    before = file.read_bytes()

    with pytest.raises(NameChangedError, match=r"A 127\.0\.0\.9 there"):
        hosts.swap(wrong, a("127.0.0.5"))

    assert file.read_bytes() == before


def test_a_name_may_have_ipv4_and_ipv6(hosts: Any) -> None:
    """One swap can write A and AAAA records."""
    both = [DnsRecord(kind="A", values=["127.0.0.1"]), DnsRecord(kind="AAAA", values=["::1"])]

    hosts.swap([], both)

    assert hosts.read() == both
    assert hosts.records_for("::1", 30, []) == [both[1]]


def test_a_cname_is_refused(hosts: Any) -> None:
    """A hosts file has only addresses, so a load balancer's name can't be used."""
    with pytest.raises(DnsError, match="can only hold addresses"):
        hosts.records_for("balancer.example.org", 30, [])


def test_swap_preserves_file_permissions(hosts: Any, file: Path) -> None:
    """The umask of this process does not matter."""
    hosts.swap([], a("127.0.0.9"))
    file.chmod(0o640)
    before = os.umask(0o077)
    try:
        hosts.swap(a("127.0.0.9"), a("127.0.0.5"))
    finally:
        os.umask(before)

    assert stat.S_IMODE(file.stat().st_mode) == 0o640


def test_swap_follows_a_symbolic_link(tmp_path: Path, file: Path) -> None:
    """The link's target changes, and the link stays a link."""
    file.parent.mkdir()
    file.write_text("")
    link = tmp_path / "link"
    link.symlink_to(file)

    hosts = dns.load(Promotion(dns="hosts", record=NAME, file="link"), tmp_path)
    hosts.swap([], a("127.0.0.5"))

    assert link.is_symlink()
    assert NAME in file.read_text()


def test_one_of_many_concurrent_swaps_wins(hosts: Any) -> None:
    """Compare and swap is atomic."""
    hosts.swap([], a("127.0.0.1"))
    won: list[str] = []
    together = threading.Barrier(8)

    def swap(address: str) -> None:
        together.wait()
        try:
            hosts.swap(a("127.0.0.1"), a(address))
            won.append(address)
        except NameChangedError:
            pass

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(swap, [f"127.0.1.{n}" for n in range(8)]))

    assert len(won) == 1
    assert hosts.addresses() == won


def test_an_unreadable_file_is_named(hosts: Any, file: Path) -> None:
    """Reading raises a DnsError if the path is a folder."""
    file.mkdir(parents=True)

    with pytest.raises(DnsError, match="can't be read"):
        hosts.read()


def test_an_unknown_dns_backend_gets_a_suggestion(tmp_path: Path) -> None:
    """The error names the closest backend."""
    with pytest.raises(
        ConfigurationError, match=r"promotion\.p\.dns: no DNS backend 'host'\. Did you mean 'hosts'"
    ):
        dns.load(Promotion(name="p", dns="host", record=NAME), tmp_path)
