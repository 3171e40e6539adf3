"""Dynamic updates, against BIND: every step seen by asking the servers."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import (
    ConfigurationError,
    DnsError,
    DnsUnavailableError,
    NameChangedError,
    PromotionError,
)
from pytest_ephemeral.promotion import dns
from pytest_ephemeral.promotion.dns import DnsRecord, rfc2136
from pytest_ephemeral.tables import Promotion
from support.lacks import skip_without
from support.nameserver import (
    PRIMARY,
    PROGRAMS,
    SECONDARY,
    ZONE,
    Nameserver,
    Relay,
    answer_with,
    find_program,
    lose_answers,
    running,
)
from support.promotion import V1, V2, Site, Stage, free_port
from support.waiting import until

_numbers = itertools.count()


@pytest.fixture(scope="module")
def nameserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nameserver]:
    """BIND, primary and secondary."""
    if not all(map(find_program, PROGRAMS)):
        skip_without("BIND", "apt-get install bind9 bind9-dnsutils")
    with running(tmp_path_factory.mktemp("bind")) as made:
        yield made


@pytest.fixture
def name() -> str:
    """A name of the zone that no other test uses."""
    return f"shop-{next(_numbers)}.{ZONE}"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that does not answer is not waited for long."""
    monkeypatch.setattr(rfc2136, "TIMEOUT", 0.4)


@pytest.fixture
def relay(nameserver: Nameserver, impatient: None) -> Iterator[Relay]:
    """Something between us and BIND that can go wrong, and little patience with it."""
    made = Relay("127.0.0.1", free_port("127.0.0.1"), nameserver.own_port)
    yield made
    made.stop()


def promotion(nameserver: Nameserver, name: str, **changes: Any) -> Promotion:
    settings = {
        "name": "production",
        "dns": "rfc2136",
        "zone": ZONE,
        "record": name,
        "server": nameserver.address,
        "key": str(nameserver.key),
    }
    return Promotion(**{**settings, **changes})


def backend(nameserver: Nameserver, name: str, **changes: Any) -> Any:
    return dns.load(promotion(nameserver, name, **changes), Path("/"))


A = DnsRecord(kind="A", ttl=5, values=["127.1.1.1"])
B = DnsRecord(kind="A", ttl=7, values=["127.2.2.2"])
SIX = DnsRecord(kind="AAAA", ttl=5, values=["2001:db8::1"])
ALIAS = DnsRecord(kind="CNAME", ttl=5, values=["elsewhere.example.org"])


def test_a_record_is_created_replaced_and_removed(nameserver: Nameserver, name: str) -> None:
    """Clients see each at once, by the primary's word."""
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
    """Also for the name that a promotion checks and publishes."""
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
    """In one update: beside a CNAME nothing may be, at no moment."""
    zone = backend(nameserver, name)
    zone.swap([], old)

    zone.swap(old, new)

    assert zone.read() == new


@pytest.mark.parametrize("wrong", [[], [B], [SIX], [A, SIX], [ALIAS]])
def test_a_swap_from_other_records_is_refused(
    nameserver: Nameserver, name: str, wrong: list[DnsRecord]
) -> None:
    """The server itself holds it against the zone, and changes nothing; what is there is shown."""
    zone = backend(nameserver, name)
    zone.swap([], [A])

    with pytest.raises(NameChangedError, match=r"it is A 5s 127\.1\.1\.1 on"):
        zone.swap(wrong, [B])

    assert nameserver.ask(name) == (["127.1.1.1"], 5)


def test_all_authoritative_servers_are_queried(nameserver: Nameserver, name: str) -> None:
    """Those that the zone names, at the addresses the zone gives; the secondary has it later."""
    zone = backend(nameserver, name)

    zone.swap([], [A])

    until(lambda: not zone.find_lagging([A], ""))
    assert nameserver.ask(name, server=SECONDARY) == (["127.1.1.1"], 5)
    behind = zone.find_lagging([B], "")
    assert f"ns1.{ZONE} ({PRIMARY}:{nameserver.port}: A 5s 127.1.1.1)" in behind
    assert f"ns2.{ZONE} ({SECONDARY}:{nameserver.port}: A 5s 127.1.1.1)" in behind


@pytest.mark.usefixtures("impatient")
def test_the_servers_can_be_configured(nameserver: Nameserver, name: str) -> None:
    """Where those that the zone names can't be reached from here."""
    zone = backend(nameserver, name, servers=[nameserver.address, "127.78.0.99:1"])
    zone.swap([], [A])

    assert "127.78.0.99:1" in zone.find_lagging([A], "")


def test_a_wrong_key_is_refused(nameserver: Nameserver, name: str, tmp_path: Path) -> None:
    """And the message says which key."""
    other = tmp_path / "other.key"
    other.touch(mode=0o600)
    other.write_text(nameserver.key.read_text().replace("promote", "nobody"))

    with pytest.raises(DnsError, match="rejects the key nobody"):
        backend(nameserver, name, key=str(other)).swap([], [A])


def test_an_update_without_a_key_is_refused(nameserver: Nameserver, name: str) -> None:
    """Anyone may look; nobody may change."""
    zone = backend(nameserver, name, key=None)
    assert zone.read() == []

    with pytest.raises(DnsError, match=r"REFUSED.*is `key` the one"):
        zone.swap([], [A])


def test_a_wrong_clock_is_named(
    nameserver: Nameserver, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A signature is good for five minutes."""
    import time

    monkeypatch.setattr("dns.message.time.time", lambda now=time.time: now() - 3600)

    with pytest.raises(DnsError, match=r"its clock and this machine.s differ"):
        backend(nameserver, name).swap([], [A])


@pytest.mark.parametrize("form", ["file", "hmac-sha256:promote:{secret}", "promote:{secret}"])
def test_the_key_can_come_from_a_variable(
    nameserver: Nameserver, name: str, form: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As tsig-keygen writes it, or as nsupdate -y takes it."""
    text = nameserver.key.read_text()
    secret = text.partition('secret "')[2].partition('"')[0]
    monkeypatch.setenv("SHOP_KEY", text if form == "file" else form.format(secret=secret))

    backend(nameserver, name, key="{env:SHOP_KEY}").swap([], [A])

    assert nameserver.ask(name)[0] == ["127.1.1.1"]


def test_a_world_readable_key_is_refused(nameserver: Nameserver, tmp_path: Path) -> None:
    """With the command that closes it."""
    file = tmp_path / "key"
    file.write_text(nameserver.key.read_text())
    file.chmod(0o644)
    with pytest.raises(ConfigurationError, match=f"chmod o= {file}"):
        backend(nameserver, f"a.{ZONE}", key=str(file))


@pytest.mark.parametrize("text", ["", "nonsense", 'key "a" { secret "%%"; };', "a:b:c:d"])
def test_an_invalid_key_is_refused(nameserver: Nameserver, tmp_path: Path, text: str) -> None:
    """Before anything is asked; the secret is not shown."""
    (tmp_path / "key").touch(mode=0o600)
    (tmp_path / "key").write_text(text)

    with pytest.raises(ConfigurationError, match=r"production\.key: not a TSIG key"):
        backend(nameserver, f"a.{ZONE}", key=str(tmp_path / "key"))
    with pytest.raises(ConfigurationError, match="can't be read"):
        backend(nameserver, f"a.{ZONE}", key=str(tmp_path / "none"))


def test_a_name_outside_of_its_zone_is_refused(nameserver: Nameserver) -> None:
    """Before anything is asked."""
    with pytest.raises(ConfigurationError, match=r"shop\.other\.test is not in the zone"):
        backend(nameserver, "shop.other.test")


def test_the_zone_apex_cannot_be_an_alias(nameserver: Nameserver) -> None:
    """DNS does not allow it, and servers would ignore it silently."""
    with pytest.raises(DnsError, match="the zone's own name"):
        backend(nameserver, ZONE).records_for("elsewhere.example.org", 5, [])


def test_a_server_that_is_not_authoritative_is_refused(nameserver: Nameserver) -> None:
    """A resolver would answer from memory."""
    zone = backend(nameserver, "shop.other.test", zone="other.test")

    with pytest.raises(DnsError):
        zone.read()


@pytest.mark.usefixtures("impatient")
def test_a_server_that_is_down_is_unavailable(name: str, nameserver: Nameserver) -> None:
    """A server that is down may come back."""
    with pytest.raises(DnsUnavailableError):
        backend(nameserver, name, server="127.78.0.98:1").read()


# -- a whole promotion ----------------------------------------------------------------------------


@pytest.fixture
def production(
    make_stage: Callable[..., Stage], nameserver: Nameserver, name: str
) -> Callable[..., Stage]:
    """Makes a project whose production name is served by BIND."""

    def make(**changes: Any) -> Stage:
        settings = {
            "dns": "rfc2136",
            "zone": ZONE,
            "record": name,
            "server": nameserver.address,
            "servers": [],
            "key": str(nameserver.key),
            "record_ttl": Duration(1),
        }
        return make_stage(**{**settings, **changes})

    return make


def test_both_servers_show_promotion_and_rollback(
    production: Callable[..., Stage], nameserver: Nameserver, name: str
) -> None:
    """At each step, both servers say what they should."""
    stage = production()
    stage.promoter().promote("v1")
    assert nameserver.ask(name) == ([V1], 1)
    assert nameserver.ask(name, server=SECONDARY) == ([V1], 1)
    seen = {}

    def look(point: str) -> None:
        answers = [nameserver.ask(name, server=server)[0] for server in (PRIMARY, SECONDARY)]
        seen[point] = answers

    stage.promoter(checkpoint=look).promote("v2")

    assert seen["switch: begun"] == [[V1], [V1]]
    assert seen["switch: moved"][0] == [V2]
    assert seen["verify: begun"] == [[V2], [V2]]
    stage.promoter().rollback()
    assert nameserver.ask(name, server=SECONDARY) == ([V1], 1)


def test_a_long_ttl_is_lowered_on_both_servers(
    production: Callable[..., Stage], nameserver: Nameserver, name: str
) -> None:
    """Both servers say the old address with the short time, before the name moves."""
    nameserver.update(f"update add {name} 2 A 127.9.9.9")
    stage = production()
    seen = {}

    def look(point: str) -> None:
        seen[point] = [nameserver.ask(name, server=each) for each in (PRIMARY, SECONDARY)]

    stage.promoter(checkpoint=look).promote("v1")

    assert seen["lower-ttl: begun"][0] == (["127.9.9.9"], 2)
    assert seen["lower-ttl: done"] == [(["127.9.9.9"], 1)] * 2
    assert nameserver.ask(name) == ([V1], 1)


def test_a_change_by_nsupdate_is_not_undone(
    production: Callable[..., Stage], nameserver: Nameserver, name: str
) -> None:
    """Someone else's update is not undone, and is shown."""
    stage = production()
    stage.promoter().promote("v1")

    def meddle(point: str) -> None:
        if point == "switch: begun":
            nameserver.update(f"update delete {name} A", f"update add {name} 9 A 127.9.9.9")

    with pytest.raises(PromotionError, match=r"it is A 9s 127\.9\.9\.9 on"):
        stage.promoter(checkpoint=meddle).promote("v2")

    assert nameserver.ask(name) == (["127.9.9.9"], 9)


def test_a_refused_update_undoes_the_promotion(
    production: Callable[..., Stage], nameserver: Nameserver, name: str
) -> None:
    """A key that may not is refused at once: the name stays, and v2 gets its expiry back."""
    stage = production()
    stage.promoter().promote("v1")
    powerless = msgspec.structs.replace(stage.promotion, key=str(nameserver.reader))

    with pytest.raises(PromotionError, match=f"{nameserver.address} answered REFUSED"):
        stage.promoter(promotion=powerless).promote("v2")

    assert nameserver.ask(name)[0] == [V1]
    assert stage.get("v2").expires_at is not None


def test_an_unsigned_response_is_refused(
    production: Callable[..., Stage], nameserver: Nameserver, name: str, relay: Relay
) -> None:
    """Anyone could have sent it: neither a yes nor a no."""
    stage = production(server=relay.address, servers=[nameserver.address])
    stage.promoter().promote("v1")
    relay.fault = answer_with(5)

    with pytest.raises(PromotionError, match="is not signed"):
        stage.promoter().promote("v2")

    assert nameserver.ask(name)[0] == [V1]


def test_a_temporary_failure_is_retried(
    production: Callable[..., Stage], nameserver: Nameserver, name: str, relay: Relay
) -> None:
    """SERVFAIL is not final."""
    stage = production(server=relay.address, servers=[nameserver.address])
    failing, count = answer_with(2), itertools.count()
    relay.fault = lambda message, on: (
        failing(message, on) if next(count) in {1, 5, 6} else on(message)
    )

    stage.promoter().promote("v1")

    assert nameserver.ask(name)[0] == [V1]


def test_a_lost_response_does_not_repeat_the_update(
    production: Callable[..., Stage], nameserver: Nameserver, name: str, relay: Relay
) -> None:
    """The update was done: asked again, that is seen."""
    stage = production(server=relay.address, servers=[nameserver.address])
    stage.promoter().promote("v1")
    relay.fault = lose_answers(1)

    stage.promoter().promote("v2")

    assert nameserver.ask(name)[0] == [V2]


def test_a_silent_server_leaves_both_environments_up(
    production: Callable[..., Stage], nameserver: Nameserver, name: str, relay: Relay
) -> None:
    """Whether the name has moved can't be told, so nothing may end; later it is taken back."""
    stage = production(server=relay.address, servers=[nameserver.address])
    stage.promoter().promote("v1")
    promoter = stage.promoter()

    def silence(point: str) -> None:
        if point == "switch: begun":
            relay.fault = lambda *_: None

    promoter.checkpoint = silence
    with pytest.raises(DnsUnavailableError, match="did not answer") as caught:
        promoter.promote("v2")

    assert "Run the same command again" in "".join(caught.value.__notes__)
    assert stage.get("v1").expires_at is None
    assert stage.get("v2").expires_at is None
    relay.fault = None
    stage.abandon()
    with pytest.raises(PromotionError, match="is unchanged"):
        stage.promoter().promote("v2")
    assert nameserver.ask(name)[0] == [V1]
    assert stage.get("v2").expires_at is not None


def test_a_failed_verification_restores_the_record(
    production: Callable[..., Stage], nameserver: Nameserver, name: str, served: dict[str, Site]
) -> None:
    """On both servers."""
    stage = production()
    stage.promoter().promote("v1")
    served["v2"].refuses = stage.when_live("v2")

    with pytest.raises(PromotionError, match="503"):
        stage.promoter().promote("v2")

    assert nameserver.ask(name, server=PRIMARY) == ([V1], 1)
    assert nameserver.ask(name, server=SECONDARY) == ([V1], 1)
