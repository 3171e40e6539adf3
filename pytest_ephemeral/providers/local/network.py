"""Loopback addresses of environments' own, and who listens where."""

from __future__ import annotations

import errno
import secrets
import socket
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Final

import msgspec

from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.providers.local.listening import find_listening_sockets

#: Of 127.0.0.0/8, what neither people nor systemd-resolved (127.0.0.53) nor Debian (127.0.1.1) use.
_FIRST, _LAST = 64, 254
_ATTEMPTS = 50
#: Where free ports are looked for: above what servers usually have, below what Linux gives to
#: outgoing connections (net.ipv4.ip_local_port_range, ip(7)), which would have them now and then.
_FREE_PORTS: Final = range(20_000, 32_000)
#: The advice for an application that can't listen on one address only.
EVERYWHERE_CURE: Final = (
    "let the application listen on $HOST. If it can only listen on every address, let it listen "
    "on $PORT, and set `free-port = true` in its template"
)
EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to


class AddressClaim(msgspec.Struct, frozen=True):
    """An address that no other environment of this machine gets.

    Attributes:
        host: The address.
        ports: By endpoint name.
        holder: What holds the address: it lasts until this, and every copy of it, is closed.
        port_holders: The same for each of the ports, where no other environment may have them.
    """

    host: str
    ports: Mapping[str, int]
    holder: socket.socket
    port_holders: tuple[socket.socket, ...] = ()

    @property
    def descriptors(self) -> list[int]:
        """What has to be kept open as long as the claim is needed."""
        return [holder.fileno() for holder in (self.holder, *self.port_holders)]

    def close(self) -> None:
        """Let go of it, as far as this process is concerned."""
        for holder in (self.holder, *self.port_holders):
            holder.close()


class ListeningProcess(msgspec.Struct, frozen=True):
    """A process that accepts connections."""

    pid: int
    program: str
    host: str
    port: int

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.program} (pid {self.pid}) listens on {host}:{self.port}"


def has_own_addresses() -> bool:
    """Whether all of 127.0.0.0/8 is this machine's, as on Linux, or only 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((f"127.{_FIRST}.0.1", 0))
        except OSError:
            return False
    return True


def claim(ports: Mapping[str, int], *, free_port: bool = False) -> AddressClaim:
    """An address on which these ports are free; where there is only one, other ports that are.

    Args:
        ports: The template's, by endpoint name.
        free_port: Whether to take other ports, which no other environment of this machine has, for
            an application that listens on every address.

    Raises:
        LaunchError: A port is taken on all addresses; says by whom.
    """
    if sys.platform != "linux" or not has_own_addresses():
        return _claim_ports(ports)
    if free_port:
        return _claim_free_ports(ports)
    for _ in range(_ATTEMPTS):
        host = _random_host()
        if (holder := _hold(f"address/{host}")) is None:
            continue
        try:
            taken = [port for port in ports.values() if not _is_free(host, port)]
        except BaseException:
            holder.close()
            raise
        if not taken:
            return AddressClaim(host, dict(ports), holder)
        holder.close()
        _raise_if_taken_everywhere(taken)
    raise LaunchError(
        f"no loopback address was found on which {_list(ports.values())} can be listened on, "
        f"in {_ATTEMPTS} attempts. See what listens: ss -ltnp"
    )


def _claim_free_ports(names: Iterable[str]) -> AddressClaim:
    """An address, and a port for each name that nobody has, on whatever address."""
    holders: list[socket.socket] = []
    try:
        host = _hold_one(holders, "address", _random_host)
        ports = {name: int(_hold_one(holders, "port", _random_port)) for name in names}
    except BaseException:
        for holder in holders:
            holder.close()
        raise
    return AddressClaim(host, ports, holders[0], tuple(holders[1:]))


def _hold_one(holders: list[socket.socket], kind: str, draw: Callable[[], str]) -> str:
    """Hold the first that is drawn and that nobody holds."""
    for _ in range(_ATTEMPTS):
        if (drawn := draw()) and (holder := _hold(f"{kind}/{drawn}")) is not None:
            holders.append(holder)
            return drawn
    raise LaunchError(
        f"no free {kind} was found in {_ATTEMPTS} attempts. See what listens: ss -ltnp"
    )


def _random_host() -> str:
    host = f"127.{_FIRST + secrets.randbelow(_LAST - _FIRST + 1)}"
    return f"{host}.{secrets.randbelow(256)}.{1 + secrets.randbelow(254)}"


def _random_port() -> str:
    """A port that is free on every address, of IPv4 and of IPv6; empty if the one drawn is not."""
    port = _FREE_PORTS.start + secrets.randbelow(len(_FREE_PORTS))
    try:
        with socket.socket() as four:
            four.bind(("", port))  # without SO_REUSEADDR: whoever has it on one address is seen
        with socket.socket(socket.AF_INET6) as six:
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            six.bind(("::", port))
    except OSError as error:
        return "" if error.errno == errno.EADDRINUSE else str(port)  # there may be no IPv6
    return str(port)


def _hold(name: str) -> socket.socket | None:
    """Bind a name that stands for an address or a port, and vanishes with its last holder."""
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        holder.bind(f"\0pytest-ephemeral/{name}".encode())
    except OSError:
        holder.close()
        return None
    return holder


def _is_free(host: str, port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except PermissionError as error:
            raise LaunchError(
                f"only root may listen on port {port}. Give the template one from 1024 on, and "
                f"let the application take it from $PORT"
            ) from error
        except OSError as error:
            if error.errno != errno.EADDRINUSE:
                raise LaunchError(f"port {port} can't be listened on: {error.strerror}") from error
            return False
    return True


def _raise_if_taken_everywhere(ports: Iterable[int]) -> None:
    everywhere = {port for host, port in find_listening_sockets().values() if host in EVERY_ADDRESS}
    for port in everywhere.intersection(ports):
        known = [one for one in listeners() if one.port == port and one.host in EVERY_ADDRESS]
        who = str(known[0]) if known else "by another user's process (sudo ss -ltnp names it)"
        raise LaunchError(
            f"port {port} is taken on every address of this machine: {who}. Stop it, or give the "
            f"template another port. If it is another environment of yours, {EVERYWHERE_CURE}"
        )


def _claim_ports(ports: Mapping[str, int]) -> AddressClaim:
    """Free ports of 127.0.0.1. They are not held: an application could not bind them then."""
    probes = {name: socket.socket() for name in ports}
    try:
        for probe in probes.values():
            probe.bind(("127.0.0.1", 0))
        free = {name: probe.getsockname()[1] for name, probe in probes.items()}
    finally:
        for probe in probes.values():
            probe.close()
    return AddressClaim("127.0.0.1", free, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM))


def listeners(pids: Iterable[int] | None = None) -> list[ListeningProcess]:
    """Who accepts TCP connections, as far as this user may see.

    Args:
        pids: Only these processes; by default all.
    """
    sockets = find_listening_sockets()
    return [
        ListeningProcess(pid, _program(pid), *sockets[inode])
        for pid in (_all_pids() if pids is None else pids)
        for inode in sorted(_socket_inodes(pid) & sockets.keys())
    ]


def foreign_listener(addresses: Iterable[tuple[str, int]], pids: Iterable[int]) -> str:
    """Who else than these processes would get a connection to one of these addresses.

    Args:
        addresses: Host and port of each.
        pids: The processes that may listen there.

    Returns:
        The first such listener, for people; empty when there is none, or it can't be told.
    """
    sockets = find_listening_sockets()
    due = set(addresses)
    wanted = {
        inode
        for inode, (host, port) in sockets.items()
        if (host, port) in due or (host in EVERY_ADDRESS and port in {one[1] for one in due})
    }
    try:
        foreign = wanted.difference(*(_inodes_or_refused(pid) for pid in pids))
    except PermissionError:  # one of them has become another user's: it may be the one
        return ""
    own_ports = {sockets[inode][1] for inode in wanted - foreign}
    for inode in sorted(foreign):
        host, port = sockets[inode]
        if host in EVERY_ADDRESS and port in own_ports:
            continue  # the kernel prefers who listens on the very address
        known = [one for one in listeners() if (one.host, one.port) == (host, port)]
        return str(known[0]) if known else f"another user's process listens on {host}:{port}"
    return ""


def shared_listener(ports: Iterable[int], find_pids: Callable[[], Iterable[int]]) -> str:
    """Which of these processes listens on every address, at a port that others may have, too.

    Args:
        ports: An environment's.
        find_pids: Finds its processes; called only if anybody listens like that.

    Returns:
        The first such listener, for people; empty when there is none.
    """
    everywhere = {port for host, port in find_listening_sockets().values() if host in EVERY_ADDRESS}
    shared = {port for port in everywhere.intersection(ports) if not _is_held(f"port/{port}")}
    if not shared:
        return ""
    mine = listeners(find_pids())
    found = (one for one in mine if one.host in EVERY_ADDRESS and one.port in shared)
    return next(map(str, found), "")


def _is_held(name: str) -> bool:
    if (holder := _hold(name)) is None:
        return True
    holder.close()
    return False


def _inodes_or_refused(pid: int) -> set[str]:
    """As ``_socket_inodes``, but says so if this user may not look."""
    try:
        next(Path(f"/proc/{pid}/fd").iterdir(), None)
    except PermissionError:
        raise
    except OSError:
        return set()
    return _socket_inodes(pid)


def _all_pids() -> Iterator[int]:
    if Path("/proc").is_dir():
        yield from (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())


def _socket_inodes(pid: int) -> set[str]:
    found = set()
    with suppress(OSError):  # it has ended meanwhile, or is another user's
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                target = str(descriptor.readlink())
                if target.startswith("socket:["):
                    found.add(target[8:-1])
    return found


def _program(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return "?"


def _list(ports: Iterable[int]) -> str:
    return ", ".join(map(str, ports))
