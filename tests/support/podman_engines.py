"""Start Podman's service for tests, which implements Docker's API."""

from __future__ import annotations

import json
import os
import resource
import secrets
import signal
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

from pytest_ephemeral.providers.docker.engine import Address, Engine
from support import addresses, engines

#: Numbers for the names and addresses of networks.
_NUMBERS = count()

#: The lock file for the packet filter's rules, which are common to all Podmans of a machine. The
#: newest Podman always uses this one; Podman 4 uses one in its folder of networks.
_FILTER_LOCK = Path("/run/lock/netavark.lock")

#: The newest Podman in Debian, which .ci/engine installs with its C library.
NEWEST = engines.NEWEST.parents[1] / "podman-sid/bin/podman"


def newest_unavailable() -> str:
    """Why the newest Podman can't be started on this machine, or empty."""
    if why := engines.unavailable("podman"):
        return why
    return "" if NEWEST.exists() else "a newer podman: .ci/engine fetches it"


@contextmanager
def start(program: str | Path = "podman") -> Iterator[Engine]:
    """Start Podman's service, which implements Docker's API.

    Args:
        program: The Podman program; it uses this machine's other programs.
    """
    addresses.remove_stale_redirections()
    _FILTER_LOCK.parent.mkdir(exist_ok=True)
    with engines.own_folder() as folder:
        configuration = folder / "containers.conf"
        (folder / "networks").mkdir()
        configuration.write_text(_containers_conf(folder))
        (folder / "networks" / "netavark.lock").symlink_to(_FILTER_LOCK)
        storage = ["--root", str(folder / "root"), "--runroot", str(folder / "run")]
        socket = f"unix://{folder}/podman.sock"
        argv = [
            *(str(program), *storage, "--tmpdir", str(folder / "tmp"), "--storage-driver=overlay"),
            *("system", "service", "--time=0", socket),
        ]
        environ = {"CONTAINERS_CONF": str(configuration)}
        with engines.running(argv, folder, Engine(Address(socket)), **environ) as engine:
            yield engine


def rootless_unavailable() -> str:
    """Why a rootless Podman can't be started on this machine, or empty."""
    return engines.unavailable("podman") or engines.unavailable("slirp4netns")


@contextmanager
def start_rootless() -> Iterator[Engine]:
    """Start Podman's service as an unprivileged user with a single uid.

    Its images are in memory, as its storage driver copies all files for each layer and container.
    """
    uid = 40000 + os.getpid() % 10000
    with engines.own_folder() as folder, engines.disk_of(folder / "home", "6g"):
        folder.chmod(0o711)
        (folder / "run").mkdir()
        for name in ("home", "run"):
            os.chown(folder / name, uid, uid)
        os.mknod(folder / "tun", 0o600 | stat.S_IFCHR, os.makedev(10, 200))
        os.chown(folder / "tun", uid, uid)
        _write_rootless_configuration(folder)
        socket = f"unix://{folder}/run/podman.sock"
        argv = [
            *("unshare", "--mount", "sh", "-c"),
            f'mount --bind {folder}/tun /dev/net/tun && cd {folder}/home && exec "$@"',
            *("sh", "setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups"),
            *("podman", "system", "service", "--time=0", socket),
        ]
        environ = {
            "HOME": f"{folder}/home",
            "XDG_RUNTIME_DIR": f"{folder}/run",
            "CONTAINERS_CONF": f"{folder}/containers.conf",
            "CONTAINERS_STORAGE_CONF": f"{folder}/storage.conf",
        }
        try:
            with engines.running(argv, folder, Engine(Address(socket)), **environ) as engine:
                yield engine
        finally:
            _end_all_of(uid)


def _write_rootless_configuration(folder: Path) -> None:
    storage = {
        "driver": "vfs",
        "graphroot": f"{folder}/home/images",
        "runroot": f"{folder}/run/s",
    }
    lines = [f'{key} = "{value}"\n' for key, value in storage.items()]
    options = '[storage.options]\nignore_chown_errors = "true"\n'
    (folder / "storage.conf").write_text(f"[storage]\n{''.join(lines)}{options}")
    (folder / "containers.conf").write_text(
        '[engine]\ncgroup_manager = "cgroupfs"\nevents_logger = "file"\nruntime = "runc"\n'
        '[containers]\nlog_driver = "k8s-file"\n'
    )


def _end_all_of(uid: int) -> None:
    """End all processes of a user, such as the one that holds the namespaces of a Podman."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.stat().st_uid == uid:
                os.kill(int(process.name), signal.SIGKILL)


def _containers_conf(folder: Path) -> str:
    """Podman's default configuration, changed so that it works in a container without systemd.

    Limits are those that this process may set. The runtime supports both versions of cgroups. The
    default network has a unique name: the packet filter's rules are named by it, and are removed
    with its last container.
    """
    number = next(_NUMBERS)
    name, subnet = f"podman-{os.getpid()}-{number}", f"{addresses.own_range()}.{240 + number % 16}"
    _write_network(folder / "networks", name, subnet, f"pm{os.getpid()}-{number}")
    files = min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
    lines = {
        "network": [
            'network_backend = "netavark"',
            f'network_config_dir = "{folder}/networks"',
            f'default_network = "{name}"',
            f'default_subnet = "{subnet}.0/24"',
            f'default_subnet_pools = [{{"base" = "{addresses.own_range()}.64.0/18", "size" = 24}}]',
        ],
        "engine": ['cgroup_manager = "cgroupfs"', 'events_logger = "file"', 'runtime = "runc"'],
        "containers": [
            'log_driver = "k8s-file"',
            f'default_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]',
        ],
    }
    return "".join(
        f"[{table}]\n" + "".join(f"{line}\n" for line in entries)
        for table, entries in lines.items()
    )


def _write_network(folder: Path, name: str, subnet: str, interface: str) -> None:
    """Write a default network with an interface of its own, instead of the common ``podman0``."""
    network = {
        "name": name,
        "id": secrets.token_hex(32),
        "driver": "bridge",
        "network_interface": interface,
        "created": "2024-01-01T00:00:00Z",
        "subnets": [{"subnet": f"{subnet}.0/24", "gateway": f"{subnet}.1"}],
        "ipv6_enabled": False,
        "internal": False,
        "dns_enabled": False,
        "ipam_options": {"driver": "host-local"},
    }
    (folder / f"{name}.json").write_text(json.dumps(network))
