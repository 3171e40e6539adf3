"""Start container engines for tests, besides the machine's own.

Each engine has its own folder, with a short name, as the path of a socket must be short. The
engine and its containers are ended before the folder is removed.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
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
    with own_folder() as folder, disk_of(folder / "data", disk), _bridge() as bridge:
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
        with running(argv, folder, Engine(Address(socket))) as engine:
            yield engine


@contextmanager
def own_folder() -> Iterator[Path]:
    """Create a folder for an engine; it is removed with everything that is mounted in it."""
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
def running(argv: Sequence[str], folder: Path, engine: Engine, **environ: str) -> Iterator[Engine]:
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

    A Podman that cleans up after a container finishes first, as it removes rules of the packet
    filter.
    """
    until_gone(lambda: [pid for pid in processes_of(folder) if _cleans_up(pid)])
    while pids := processes_of(folder):
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _cleans_up(pid: int) -> bool:
    with suppress(OSError):
        program, *arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return program.endswith(b"podman") and b"cleanup" in arguments
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
