"""DNS updates (RFC 2136) with BIND, verified by queries to its servers."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_ephemeral.errors import (
    ConfigurationError,
    DnsError,
    DnsUnavailableError,
    NameChangedError,
)
from pytest_ephemeral.promotion.dns import DnsRecord
from support.nameserver import (
    PRIMARY,
    SECONDARY,
    ZONE,
    Nameserver,
)
from support.rfc2136 import ALIAS, SIX, A, B, backend, impatient, name, nameserver, promotion, relay
from support.waiting import until

__all__ = ["impatient", "name", "nameserver", "relay"]


def test_a_record_is_created_replaced_and_removed(nameserver: Nameserver, name: str) -> None:
    """The primary server has each change at once."""
    zone = backend(nameserver, name)
    assert zone.read() == []

    zone.swap([], [A])
    assert nameserver.ask(name) == (["127.1.1.1"], 5)
    zone.swap([A], [B])
    assert nameserver.ask(name) == (["127.2.2.2"], 7)
    assert zone.addresses() == ["127.2.2.2"]
    zone.swap([B], [])
    assert nameserver.ask(name) == ([], 0)


def test_a_wildcard_answers_for_every_name(nameserver: Nameserver, name: str) -> None:
    """A wildcard covers the name that a promotion checks and publishes, too."""
    record = f"*.{name}"
    backend(nameserver, record).swap([], [A])

    for asked in (promotion(nameserver, record).host, f"any.{name}"):
        assert nameserver.ask(asked) == (["127.1.1.1"], 5)
    assert backend(nameserver, record).read() == [A]


@pytest.mark.parametrize(
    ("old", "new"), [([A], [SIX]), ([A], [ALIAS]), ([ALIAS], [A]), ([A, SIX], [B]), ([A], [B, SIX])]
)
def test_a_record_can_change_its_type(
    nameserver: Nameserver, name: str, old: list[DnsRecord], new: list[DnsRecord]
) -> None:
    """The change is one update, as no record may exist beside a CNAME."""
    zone = backend(nameserver, name)
    zone.swap([], old)

    zone.swap(old, new)

    assert zone.read() == new


@pytest.mark.parametrize("wrong", [[], [B], [SIX], [A, SIX], [ALIAS]])
def test_a_swap_from_other_records_is_refused(
    nameserver: Nameserver, name: str, wrong: list[DnsRecord]
) -> None:
    """The server checks the old records; the error shows the current ones."""
    zone = backend(nameserver, name)
    zone.swap([], [A])

    with pytest.raises(NameChangedError, match=r"it is A 5s 127\.1\.1\.1 on"):
        zone.swap(wrong, [B])

    assert nameserver.ask(name) == (["127.1.1.1"], 5)


def test_all_authoritative_servers_are_queried(nameserver: Nameserver, name: str) -> None:
    """The zone names the servers and their addresses; the secondary is updated later."""
    zone = backend(nameserver, name)

    zone.swap([], [A])

    until(lambda: not zone.find_lagging([A], ""))
    assert nameserver.ask(name, server=SECONDARY) == (["127.1.1.1"], 5)
    behind = zone.find_lagging([B], "")
    assert f"ns1.{ZONE} ({PRIMARY}:{nameserver.port}: A 5s 127.1.1.1)" in behind
    assert f"ns2.{ZONE} ({SECONDARY}:{nameserver.port}: A 5s 127.1.1.1)" in behind


@pytest.mark.usefixtures("impatient")
def test_the_servers_can_be_configured(nameserver: Nameserver, name: str) -> None:
    """The setting is for zones whose servers can't be reached by the addresses in the zone."""
    zone = backend(nameserver, name, servers=[nameserver.address, "127.78.0.99:1"])
    zone.swap([], [A])

    assert "127.78.0.99:1" in zone.find_lagging([A], "")


def test_a_wrong_key_is_refused(nameserver: Nameserver, name: str, tmp_path: Path) -> None:
    """The message names the key."""
    other = tmp_path / "other.key"
    other.touch(mode=0o600)
    other.write_text(nameserver.key.read_text().replace("promote", "nobody"))

    with pytest.raises(DnsError, match="rejects the key nobody"):
        backend(nameserver, name, key=str(other)).swap([], [A])


def test_an_update_without_a_key_is_refused(nameserver: Nameserver, name: str) -> None:
    """A query needs no key."""
    zone = backend(nameserver, name, key=None)
    assert zone.read() == []

    with pytest.raises(DnsError, match=r"REFUSED.*is `key` the one"):
        zone.swap([], [A])


def test_a_wrong_clock_is_named(
    nameserver: Nameserver, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signature is valid for five minutes."""
    import time

    monkeypatch.setattr("dns.message.time.time", lambda now=time.time: now() - 3600)

    with pytest.raises(DnsError, match=r"its clock and this machine.s differ"):
        backend(nameserver, name).swap([], [A])


@pytest.mark.parametrize("form", ["file", "hmac-sha256:promote:{secret}", "promote:{secret}"])
def test_the_key_can_come_from_a_variable(
    nameserver: Nameserver, name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The value is in the format of tsig-keygen or of ``nsupdate -y``."""
    text = nameserver.key.read_text()
    secret = text.partition('secret "')[2].partition('"')[0]
    monkeypatch.setenv("SHOP_KEY", text if form == "file" else form.format(secret=secret))

    backend(nameserver, name, key="{env:SHOP_KEY}").swap([], [A])

    assert nameserver.ask(name)[0] == ["127.1.1.1"]


def test_a_world_readable_key_is_refused(nameserver: Nameserver, tmp_path: Path) -> None:
    """The error names the command that restricts the permissions."""
    file = tmp_path / "key"
    file.write_text(nameserver.key.read_text())
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match=f"chmod o= {file}"):
        backend(nameserver, f"a.{ZONE}", key=str(file))


@pytest.mark.parametrize("text", ["", "nonsense", 'key "a" { secret "%%"; };', "a:b:c:d"])
def test_an_invalid_key_is_refused(nameserver: Nameserver, tmp_path: Path, text: str) -> None:
    """The error comes before any query, and does not show the file's content."""
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_text(text)

    with pytest.raises(ConfigurationError, match=r"production\.key: not a TSIG key") as caught:
        backend(nameserver, f"a.{ZONE}", key=str(tmp_path / "key"))
    assert not text or text not in str(caught.value)
    with pytest.raises(ConfigurationError, match="can't be read"):
        backend(nameserver, f"a.{ZONE}", key=str(tmp_path / "none"))


def test_a_name_outside_of_its_zone_is_refused(nameserver: Nameserver) -> None:
    """The error comes before any query."""
    with pytest.raises(ConfigurationError, match=r"shop\.other\.test is not in the zone"):
        backend(nameserver, "shop.other.test")


def test_the_zone_apex_cannot_be_an_alias(nameserver: Nameserver) -> None:
    """DNS allows no CNAME at the apex, and servers would ignore it silently."""
    with pytest.raises(DnsError, match="the zone's own name"):
        backend(nameserver, ZONE).records_for("elsewhere.example.org", 5, [])


def test_a_server_that_is_not_authoritative_is_refused(nameserver: Nameserver) -> None:
    """A resolver would answer from its cache."""
    zone = backend(nameserver, "shop.other.test", zone="other.test")

    with pytest.raises(DnsError):
        zone.read()


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_down_is_unavailable(name: str, nameserver: Nameserver) -> None:
    """The error is temporary, as the server may come back."""
    with pytest.raises(DnsUnavailableError):
        backend(nameserver, name, server="127.78.0.98:1").read()
