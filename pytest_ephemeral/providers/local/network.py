"""Loopback addresses of environments, and the processes that listen on addresses."""

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

#: The second bytes of addresses in 127.0.0.0/8 that people, systemd-resolved (127.0.0.53) and
#: Debian (127.0.1.1) do not use.
_FIRST, _LAST = 64, 254
_ATTEMPTS = 50
#: The range for free ports: above the usual ports of servers, below those of outgoing connections
#: (net.ipv4.ip_local_port_range, ip(7)), which would be in use now and then.
_FREE_PORTS: Final = range(20_000, 32_000)
#: The advice for an application that can't listen on one address only.
EVERYWHERE_CURE: Final = (
    "let the application listen on $HOST. If it can only listen on every address, let it listen "
    "on $PORT, and set `free-port = true` in its template"
)
LOOPBACK_CURE: Final = "start it as root with `ip link set lo up`"
EVERY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})  # noqa: S104 - compared with, not bound to


class AddressClaim(msgspec.Struct, frozen=True):
    """An address that no other environment of this machine can claim.

    Attributes:
        host: The address.
        ports: The ports, by endpoint name.
        holder: A socket that holds the claim until it and all its copies are closed.
        port_holders: The same for each port, if no other environment may have them.
    """

    host: str
    ports: Mapping[str, int]
    holder: socket.socket
    port_holders: tuple[socket.socket, ...] = ()

    @property
    def descriptors(self) -> list[int]:
        """The descriptors to keep open as long as the claim is needed."""
        return [holder.fileno() for holder in (self.holder, *self.port_holders)]

    def close(self) -> None:
        """Close this process's descriptors of the claim."""
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
    """Whether all addresses of 127.0.0.0/8 can be used, as on Linux, or only 127.0.0.1."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((f"127.{_FIRST}.0.1", 0))
        except OSError:
            return False
    return True


def is_loopback_up() -> bool:
    """Whether loopback addresses can be reached.

    In a new network namespace they can't: its loopback interface is down. Sockets can be bound to
    its addresses all the same.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("127.0.0.1", 9))  # looks for a route, and sends nothing
        except OSError as error:
            return error.errno != errno.ENETUNREACH
    return True


def claim(ports: Mapping[str, int], *, free_port: bool = False) -> AddressClaim:
    """Claim an address on which some ports are free; with one address only, other free ports.

    Args:
        ports: The template's ports, by endpoint name.
        free_port: Whether to claim other ports, which no other environment of this machine has,
            for an application that listens on every address.

    Raises:
        LaunchError: A port is in use on all addresses; the message names the process. Or the
            loopback interface is down.
    """
    if not is_loopback_up():
        raise LaunchError(f"the loopback interface is down: {LOOPBACK_CURE}")
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
    """Claim an address, and for each name a port that is free on every address."""
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
    """Draw values until one is not held by others, and hold it."""
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
    """A random port that is free on every address of IPv4 and IPv6; empty if it is in use."""
    port = _FREE_PORTS.start + secrets.randbelow(len(_FREE_PORTS))
    try:
        with socket.socket() as four:
            four.bind(("", port))  # without SO_REUSEADDR: fails if one address uses the port
        with socket.socket(socket.AF_INET6) as six:
            six.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            six.bind(("::", port))
    except OSError as error:
        return "" if error.errno == errno.EADDRINUSE else str(port)  # there may be no IPv6
    return str(port)


def _hold(name: str) -> socket.socket | None:
    """Bind an abstract socket's name for an address or a port; None if it is held by others.

    The kernel frees the name when the last copy of the socket is closed.
    """
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
    """Find free ports of 127.0.0.1. They are not held, as the application could not bind them."""
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
    """The processes that listen on TCP ports, as far as this user can see them.

    Args:
        pids: The processes to look at; by default all.
    """
    sockets = find_listening_sockets()
    return [
        ListeningProcess(pid, _program(pid), *sockets[inode])
        for pid in (_all_pids() if pids is None else pids)
        for inode in sorted(_socket_inodes(pid) & sockets.keys())
    ]


def foreign_listener(addresses: Iterable[tuple[str, int]], pids: Iterable[int]) -> str:
    """Another process that would get connections to one of an environment's addresses.

    Args:
        addresses: The hosts and ports of the environment.
        pids: The environment's processes.

    Returns:
        The first such process, for people; empty if there is none, or it can't be found out.
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
    except PermissionError:  # a process of the environment has changed its user: it may listen
        return ""
    own_ports = {sockets[inode][1] for inode in wanted - foreign}
    for inode in sorted(foreign):
        host, port = sockets[inode]
        if host in EVERY_ADDRESS and port in own_ports:
            continue  # the kernel prefers the socket on the specific address
        known = [one for one in listeners() if (one.host, one.port) == (host, port)]
        return str(known[0]) if known else f"another user's process listens on {host}:{port}"
    return ""


def shared_listener(ports: Iterable[int], find_pids: Callable[[], Iterable[int]]) -> str:
    """A process of an environment that listens on every address, on a port that is not claimed.

    Args:
        ports: The environment's ports.
        find_pids: Finds the environment's processes; called only if it may be needed.

    Returns:
        The first such process, for people; empty if there is none.
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
    """As ``_socket_inodes``, but raises ``PermissionError`` for another user's process."""
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
    with suppress(OSError):  # the process has ended meanwhile, or is another user's
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
