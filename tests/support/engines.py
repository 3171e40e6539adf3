"""Start container engines for tests: a second Docker, and Podman.

Each engine has its own folder, with a short name, as the path of a socket must be short. The
engine and its containers are ended before the folder is removed.
"""

from __future__ import annotations

import json
import os
import resource
import secrets
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import pytest

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.docker.engine import Address, Engine, EngineError
from support import addresses
from support.waiting import until, until_gone

#: Numbers for the names and addresses of bridges.
_NUMBERS = count()

#: The lock file for the packet filter's rules, which are common to all Podmans of a machine. The
#: newest Podman always uses this one; Podman 4 uses one in its folder of networks.
_FILTER_LOCK = Path("/run/lock/netavark.lock")

#: The networks that every engine has.
_ALWAYS = {"bridge", "host", "none"}


def unavailable(program: str) -> str:
    """Why an engine can't be started on this machine, or empty."""
    if os.geteuid() != 0:
        return "root: an engine of the tests' own is started as root"
    if shutil.which(program) is None:
        return f"{program}: .ci/engine installs it"
    return ""


def require(program: str) -> None:
    """Skip the test if an engine can't be started."""
    if why := unavailable(program):
        pytest.skip(f"without {why}")


#: The folder of the newest Docker in Debian, which .ci/engine installs.
NEWEST = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / (
    "pytest-ephemeral-tests/docker-sid/usr"
)


#: The newest Podman in Debian, which .ci/engine installs with its C library.
NEWEST_PODMAN = NEWEST.parents[1] / "podman-sid/bin/podman"


def newest_unavailable() -> str:
    """Why the newest Docker can't be started on this machine, or empty."""
    if why := unavailable("dockerd"):
        return why
    return "" if NEWEST.exists() else "a newer dockerd: .ci/engine fetches it"


@contextmanager
def newest_dockerd() -> Iterator[Engine]:
    """Start the newest Docker, with containerd's image store, the default of new installations.

    It runs containers with this machine's runc, as its own needs a newer C library.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", f"{NEWEST}/bin:{NEWEST}/sbin:{os.environ['PATH']}")
        with dockerd(features={"containerd-snapshotter": True}) as engine:
            yield engine


@contextmanager
def dockerd(
    *options: str, disk: str = "", features: Mapping[str, bool] | None = None
) -> Iterator[Engine]:
    """Start an empty Docker, besides the machine's own.

    Args:
        options: Further options of dockerd.
        disk: The size of a disk for its data, such as ``48m``; empty for no limit.
        features: Docker's features to switch on or off.
    """
    with _folder() as folder, disk_of(folder / "data", disk), _bridge() as bridge:
        socket = f"unix://{folder}/docker.sock"
        settings = {"features": features} if features else {}
        (folder / "settings.json").write_text(json.dumps(settings))
        argv = [
            *("dockerd", "--host", socket, "--data-root", str(folder / "data")),
            *("--exec-root", str(folder / "exec"), "--pidfile", str(folder / "pid")),
            *("--config-file", str(folder / "settings.json"), f"--bridge={bridge}"),
            *("--iptables=false", "--ip-forward=false", "--ip-masq=false"),
            *("--default-address-pool", f"base={addresses.own_range()}.0.0/18,size=26", *options),
        ]
        with _running(argv, folder, Engine(Address(socket))) as engine:
            yield engine


def newest_podman_unavailable() -> str:
    """Why the newest Podman can't be started on this machine, or empty."""
    if why := unavailable("podman"):
        return why
    return "" if NEWEST_PODMAN.exists() else "a newer podman: .ci/engine fetches it"


@contextmanager
def podman(program: str | Path = "podman") -> Iterator[Engine]:
    """Start Podman's service, which implements Docker's API.

    Args:
        program: The Podman program; it uses this machine's other programs.
    """
    addresses.remove_stale_redirections()
    with _folder() as folder:
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
        with _running(argv, folder, Engine(Address(socket)), **environ) as engine:
            yield engine


def rootless_unavailable() -> str:
    """Why a rootless Podman can't be started on this machine, or empty."""
    return unavailable("podman") or unavailable("slirp4netns")


@contextmanager
def rootless_podman() -> Iterator[Engine]:
    """Start Podman's service as an unprivileged user with a single uid.

    Its images are in memory, as its storage driver copies all files for each layer and container.
    """
    uid = 40000 + os.getpid() % 10000
    with _folder() as folder, disk_of(folder / "home", "6g"):
        folder.chmod(0o711)
        (folder / "run").mkdir()
        for name in ("home", "run"):
            os.chown(folder / name, uid, uid)
        os.mknod(folder / "tun", 0o600 | stat.S_IFCHR, os.makedev(10, 200))
        os.chown(folder / "tun", uid, uid)
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
            with _running(argv, folder, Engine(Address(socket)), **environ) as engine:
                yield engine
        finally:
            _end_all_of(uid)


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


@contextmanager
def _folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="pe-", dir="/tmp"))
    try:
        yield folder
    finally:
        for line in Path("/proc/self/mounts").read_text().splitlines():
            if line.split()[1].startswith(f"{folder}/"):  # Podman's storage is mounted on itself
                subprocess.run(["umount", "--lazy", line.split()[1]], check=True)
        shutil.rmtree(folder)


@contextmanager
def disk_of(folder: Path, size: str) -> Iterator[None]:
    """Create a folder; with a size, on a disk of its own (in memory)."""
    folder.mkdir()
    if size:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
        subprocess.run(mount, check=True)
    try:
        yield
    finally:
        if size:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


@contextmanager
def _bridge() -> Iterator[str]:
    """Create a bridge for a dockerd: one without a bridge would remove the machine's docker0."""
    number = next(_NUMBERS)
    name = f"pe{os.getpid()}-{number}"
    for argv in (
        ["link", "add", name, "type", "bridge"],
        ["addr", "add", f"{addresses.own_range()}.{200 + number % 32}.1/24", "dev", name],
        ["link", "set", name, "up"],
    ):
        subprocess.run(["ip", *argv], check=True)
    try:
        yield name
    finally:
        subprocess.run(["ip", "link", "delete", name], check=True)


@contextmanager
def _running(argv: Sequence[str], folder: Path, engine: Engine, **environ: str) -> Iterator[Engine]:
    """Start an engine, and wait until it answers; remove its resources and end it afterwards."""
    log = folder / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", *argv],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environ},
            start_new_session=True,
        )
    try:
        until(lambda: process.poll() is not None or _answers(engine), within=60)
        assert process.poll() is None, f"{argv[0]} did not start: {log.read_text()[-2000:]}"
        try:
            yield engine
        finally:
            _empty(engine)
    finally:
        process.terminate()
        process.wait(60)
        _end_helpers(folder)


def _end_helpers(folder: Path) -> None:
    """End helper processes that an engine leaves behind; conmon, for example, stays for minutes.

    A Podman among them finishes first, as it may be removing rules of the packet filter.
    """
    until_gone(lambda: [pid for pid in processes_of(folder) if _is_podman(pid)])
    while pids := processes_of(folder):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _is_podman(pid: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{pid}/comm").read_text().strip() == "podman"
    return False


def processes_of(folder: Path) -> list[int]:
    """The ids of processes whose command line names a file in a folder."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            if f"{folder}/".encode() in file.read_bytes():
                found.append(int(file.parent.name))
    return found


def _answers(engine: Engine) -> bool:
    try:
        engine.call("GET", "/version", timeout=10)
    except EphemeralError:
        return False
    return True


def _empty(engine: Engine) -> None:
    """Remove all containers and networks, so that nothing is running or mounted at the end."""
    for one in engine.call("GET", "/containers/json", query={"all": True}):
        engine.call("DELETE", f"/containers/{one['Id']}", query={"force": True, "v": True})
    for one in engine.call("GET", "/networks"):
        if one["Name"] not in _ALWAYS:
            engine.call("DELETE", f"/networks/{one['Id']}")


def forget_images(engine: Engine) -> None:
    """Remove all images of an engine."""
    for one in engine.call("GET", "/images/json", query={"all": True}):
        with suppress(EngineError):  # it was removed with an image that was built from it
            engine.call("DELETE", f"/images/{one['Id']}", query={"force": True})
    assert engine.call("GET", "/images/json") == []


@contextmanager
def use(engine: Engine) -> Iterator[None]:
    """Make this process and its children use an engine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOCKER_HOST", engine.address.url)
        yield


def list_resources(engine: Engine) -> list[str]:
    """All containers, volumes and networks of an engine, except its default networks."""
    networks = engine.call("GET", "/networks")
    things = [
        *engine.call("GET", "/containers/json", query={"all": True}),
        *(one for one in networks if one["Name"] not in _ALWAYS),
        *(engine.call("GET", "/volumes")["Volumes"] or []),
    ]
    return [json.dumps(thing.get("Names") or thing["Name"]) for thing in things]
