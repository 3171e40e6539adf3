"""Name servers for tests: BIND on loopback, a primary and a secondary, without privileges."""

from __future__ import annotations

import shutil
import socket
import socketserver
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import dns.message
import dns.query
import dns.rdatatype

from support.promotion import BLOCK, free_port
from support.waiting import until

#: The programs of BIND that tests need.
PROGRAMS = ("named", "tsig-keygen", "nsupdate")
ZONE = "example.test"
#: The servers' addresses for clients. BIND only listens on addresses of interfaces, so each server
#: has its own port of 127.0.0.1, and a relay forwards requests to it.
PRIMARY, SECONDARY = f"127.78.{BLOCK}.1", f"127.78.{BLOCK}.2"

OPTIONS = """
include "{folder}/key"; include "{folder}/reader";
controls {{ }};
options {{
  directory "{folder}"; pid-file "{folder}/pid"; session-keyfile "{folder}/session.key";
  listen-on port {own} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
  recursion no; dnssec-validation no; allow-transfer {{ any; }}; allow-notify {{ any; }};
  notify-delay 0; serial-query-rate 1000;
}};
"""
PRIMARY_ZONE = """
zone "{zone}" {{
  type primary; file "zone"; allow-update {{ key "promote"; }};
  notify explicit; also-notify {{ 127.0.0.1 port {second}; }};
}};
"""
SECONDARY_ZONE = """
zone "{zone}" {{ type secondary; file "copy"; primaries {{ 127.0.0.1 port {first}; }}; }};
"""
RECORDS = """\
$TTL 60
@ SOA ns1 hostmaster 1 60 1 3600 1
@ NS ns1
@ NS ns2
ns1 A {primary}
ns2 A {secondary}
old 300 A 127.9.9.9
"""


class Nameserver:
    """A zone's primary and secondary, and the key that may change the zone."""

    def __init__(self, folder: Path, port: int, own_port: int) -> None:
        self.folder = folder
        self.port = port
        self.own_port = own_port
        #: The key that may change the zone, and one that may not.
        self.key = folder / "primary" / "key"
        self.reader = folder / "primary" / "reader"
        self.address = f"{PRIMARY}:{port}"

    def ask(self, name: str, kind: str = "A", server: str = PRIMARY) -> tuple[list[str], int]:
        """Query a server; return the sorted values, and the TTL in seconds."""
        query = dns.message.make_query(f"{name}.", kind)
        answer = dns.query.udp(query, server, port=self.port, timeout=5)
        for rrset in answer.answer:
            if rrset.rdtype == dns.rdatatype.from_text(kind):
                return sorted(str(value) for value in rrset), rrset.ttl
        return [], 0

    def update(self, *commands: str) -> None:
        """Change the zone with BIND's own ``nsupdate``."""
        script = "\n".join([f"server {PRIMARY} {self.port}", f"zone {ZONE}", *commands, "send", ""])
        command: list[str | Path] = [find_program("nsupdate"), "-k", self.key]
        subprocess.run(command, input=script, text=True, check=True, capture_output=True)


@contextmanager
def running(folder: Path) -> Iterator[Nameserver]:
    """Start both servers, and wait until they answer."""
    port, first, second = (free_port(PRIMARY, SECONDARY, "127.0.0.1") for _ in range(3))
    made = Nameserver(folder, port, first)
    words = {"primary": PRIMARY, "secondary": SECONDARY, "first": first, "second": second}
    with ExitStack() as stack:
        for name, address, own, zone in (
            ("primary", PRIMARY, first, PRIMARY_ZONE),
            ("secondary", SECONDARY, second, SECONDARY_ZONE),
        ):
            place = folder / name
            place.mkdir()
            for key, owner in (("key", "promote"), ("reader", "reader")):
                generate = [find_program("tsig-keygen"), owner]
                made_key = subprocess.run(generate, check=True, capture_output=True)
                (place / key).touch(mode=0o600)
                (place / key).write_bytes(made_key.stdout)
            (place / "zone").write_text(RECORDS.format(**words))
            text = OPTIONS.format(folder=place, own=own) + zone.format(zone=ZONE, **words)
            (place / "named.conf").write_text(text)
            stack.enter_context(_named(place))
            until(partial(_listens, "127.0.0.1", own))
            stack.callback(Relay(address, port, own).stop)
            until(partial(_serves, made, address))
        yield made


def _serves(nameserver: Nameserver, address: str) -> bool:
    return bool(nameserver.ask(f"ns1.{ZONE}", server=address)[0])


def _listens(address: str, port: int) -> bool:
    socket.create_connection((address, port)).close()
    return True


def find_program(name: str) -> str:
    """The path of a program of BIND, or empty; some are in ``/usr/sbin``."""
    return shutil.which(name) or shutil.which(name, path="/usr/sbin") or ""


@contextmanager
def _named(folder: Path) -> Iterator[None]:
    # A copy, as Debian's AppArmor profile for the original path allows only its own folders.
    program = shutil.copy(find_program("named"), folder / "named")
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [program, "-g", "-n", "1", "-c", folder / "named.conf"], stdout=log, stderr=log
        )
    try:
        yield
    finally:
        process.terminate()
        process.wait()


#: Changes the handling of a message: returns the answer for the client, or None for no answer.
Fault = Callable[[bytes, Callable[[bytes], bytes]], bytes | None]


class Relay:
    """Forwards messages to a name server, with an optional fault."""

    def __init__(self, host: str, port: int, there: int) -> None:
        self._there = ("127.0.0.1", there)
        self.fault: Fault | None = None
        relay = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                head = self.rfile.read(2)
                if len(head) < 2:
                    return
                message = self.rfile.read(struct.unpack("!H", head)[0])
                if (answer := relay._answer(message)) is not None:
                    self.wfile.write(struct.pack("!H", len(answer)) + answer)

        class DatagramHandler(socketserver.BaseRequestHandler):
            def handle(self) -> None:
                message, back = self.request
                if (answer := relay._answer(message)) is not None:
                    back.sendto(answer, self.client_address)

        self.address = f"{host}:{port}"
        self._servers: list[Any] = [
            socketserver.ThreadingTCPServer((host, port), Handler),
            socketserver.ThreadingUDPServer((host, port), DatagramHandler),
        ]
        self._threads = [
            threading.Thread(target=server.serve_forever, args=(0.01,)) for server in self._servers
        ]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        for server, thread in zip(self._servers, self._threads, strict=True):
            server.shutdown()
            thread.join()
            server.server_close()

    def _answer(self, message: bytes) -> bytes | None:
        return self._pass(message) if self.fault is None else self.fault(message, self._pass)

    def _pass(self, message: bytes) -> bytes:
        with socket.create_connection(self._there, timeout=5) as there:
            there.sendall(struct.pack("!H", len(message)) + message)
            with there.makefile("rb") as answer:
                return answer.read(struct.unpack("!H", answer.read(2))[0])


def is_update(message: bytes) -> bool:
    """Whether a message is an update (RFC 2136, 2.2: opcode 5)."""
    return message[2] >> 3 & 15 == 5


def answer_with(code: int, *, only_updates: bool = True) -> Fault:
    """A fault: answer with an error code, and do nothing."""

    def fault(message: bytes, on: Callable[[bytes], bytes]) -> bytes | None:
        if only_updates and not is_update(message):
            return on(message)
        flags = bytes([message[2] | 0x80, message[3] & 0xF0 | code])
        return message[:2] + flags + bytes(8)

    return fault


def lose_answers(count: int) -> Fault:
    """A fault: forward messages, but lose the answers to some updates.

    Args:
        count: The number of lost answers.
    """
    left = [count]

    def fault(message: bytes, on: Callable[[bytes], bytes]) -> bytes | None:
        answer = on(message)
        if is_update(message) and left[0] > 0:
            left[0] -= 1
            return None
        return answer

    return fault
