"""The restore helper in the guest: gives each machine that is resumed its own identity.

It reads lines of JSON from a virtio port, and answers each with a line. It is started before the
memory is frozen, so that nothing has to be started when the memory is resumed. An emulated machine
must translate code that runs for the first time, which takes most of the time. So little code runs
then: as much as possible is prepared before, and other processes get a lower priority.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import struct
import subprocess
import time
from contextlib import suppress
from typing import Any

PORT = "/dev/virtio-ports/pytest-ephemeral.restore"
HOOKS = "/etc/pytest-ephemeral"
RUN = "/run/pytest-ephemeral"
HOST_KEYS = "/etc/ssh"

# random(4).
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207

#: Seconds in which daemons stay delayed, so that the application answers before they react to the
#: new clock.
HEAD_START = 1.0

#: Seconds between reads of a port that is not connected.
LOOK = 0.25

# Faster than json.loads, which first looks for spaces with a regular expression.
read_json = json.JSONDecoder().raw_decode


class Scheduling:
    """The priorities while the machine is resumed: this process, then others, then daemons."""

    def __init__(self) -> None:
        self.delayed: dict[int, tuple[int, Any]] = {}

    def prepare(self) -> None:
        """Set the priorities for the time of resuming."""
        for pid in find_daemons():
            try:
                known = os.sched_getscheduler(pid), os.sched_getparam(pid)
                os.sched_setscheduler(pid, os.SCHED_IDLE, os.sched_param(0))
            except OSError:
                continue
            self.delayed[pid] = known
        set_policy(os.SCHED_FIFO, 1)

    def restore_daemons(self) -> None:
        """Restore the daemons' priorities."""
        while self.delayed:
            pid, (policy, parameters) = self.delayed.popitem()
            with suppress(OSError):  # the process has ended
                os.sched_setscheduler(pid, policy, parameters)


def find_daemons() -> list[int]:
    """The processes that react to a new clock and to devices: systemd's, and the guest agent."""
    found = []
    for name in os.listdir("/proc"):
        try:
            with open(f"/proc/{name}/comm") as file:
                if name.isdigit() and file.read().startswith(("systemd", "qemu-ga")):
                    found.append(int(name))
        except OSError:
            continue
    return found


def set_policy(policy: int, priority: int = 0) -> None:
    """Set the scheduling policy of this process, but not of processes that it starts."""
    with suppress(OSError):
        os.sched_setscheduler(0, policy | os.SCHED_RESET_ON_FORK, os.sched_param(priority))


scheduling = Scheduling()


def receive(port: int) -> Any:
    """Read and parse the next line."""
    received = b""
    while not received.endswith(b"\n"):
        data = os.read(port, 1 << 16)
        received += data
        if not data:  # the port is not connected
            received = b""
            scheduling.restore_daemons()
            time.sleep(LOOK)
    return read_json(received.decode())[0]


def send(port: int, message: dict[str, Any]) -> None:
    os.write(port, json.dumps(message).encode() + b"\n")


def find_hooks(when: str) -> list[str]:
    """The image's hooks for a time, such as ``after-restore``, sorted by name."""
    folder = f"{HOOKS}/{when}.d"
    try:
        names = sorted(os.listdir(folder))
    except OSError:
        return []
    return [path for name in names if os.access(path := f"{folder}/{name}", os.X_OK)]


def run_hooks(hooks: list[str], variables: dict[str, str]) -> None:
    for hook in hooks:
        done = subprocess.run(
            [hook],
            check=False,
            env={**os.environ, **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        if done.returncode:
            output = done.stdout.decode(errors="replace").strip()
            raise RuntimeError(f"{hook} exited with status {done.returncode}: {output}")


def add_entropy(entropy: bytes) -> None:
    """Add entropy to the kernel's random number generator, and reseed it."""
    device = os.open("/dev/urandom", os.O_RDWR)
    fcntl.ioctl(device, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
    fcntl.ioctl(device, RNDRESEEDCRNG)
    os.close(device)


def find_host_keys() -> list[str]:
    try:
        names = os.listdir(HOST_KEYS)
    except OSError:
        return []
    return [f"{HOST_KEYS}/{name}" for name in names if name.startswith("ssh_host_")]


def renew_host_keys(keys: list[str]) -> None:
    for key in keys:
        os.unlink(key)
    if keys and shutil.which("ssh-keygen"):
        kind = ["-q", "-t", "ed25519", "-N", ""]
        made = ["ssh-keygen", *kind, "-f", f"{HOST_KEYS}/ssh_host_ed25519_key"]
        subprocess.run(made, stdin=subprocess.DEVNULL, check=True)


def write(file: str, text: str, flags: int = os.O_TRUNC, mode: int = 0o600) -> None:
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | flags, mode)
    os.write(descriptor, text.encode())
    os.close(descriptor)


def boot(script: str) -> None:
    """Run the boot script, as cloud-init does at a first boot."""
    os.makedirs(RUN, exist_ok=True)
    write(f"{RUN}/boot", script)
    subprocess.Popen(
        ["/bin/sh", f"{RUN}/boot"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


class Guest:
    """Handles the requests: one method for each. ``wake`` uses the results of ``prepare``."""

    def __init__(self) -> None:
        self.hooks: list[str] = []
        self.keys: list[str] = []

    def prepare(self, message: dict[str, Any]) -> None:
        """Run the ``before-snapshot`` hooks, and find out all that ``wake`` needs."""
        run_hooks(find_hooks("before-snapshot"), message["variables"])
        self.hooks, self.keys = find_hooks("after-restore"), find_host_keys()
        os.makedirs(RUN, exist_ok=True)
        os.sync()
        scheduling.prepare()

    def wake(self, message: dict[str, Any]) -> None:
        add_entropy(bytes.fromhex(message["entropy"]))
        # Overwrite it, as truncating would wait for the disk; the length is the same.
        write("/etc/machine-id", message["machine_id"] + "\n", flags=0, mode=0o644)
        if self.keys:
            renew_host_keys(self.keys)
        if message["variables_file"]:
            write(f"{RUN}/variables", message["variables_file"])
        time.clock_settime(time.CLOCK_REALTIME, message["time"])
        if self.hooks:
            scheduling.restore_daemons()  # a hook may need them
            run_hooks(self.hooks, message["variables"])
        if message["boot"]:
            boot(message["boot"])


def main() -> None:
    guest = Guest()
    port = os.open(PORT, os.O_RDWR)
    send(port, {"ready": True})
    while True:
        message = receive(port)
        try:
            getattr(guest, message["do"])(message)
        except Exception as error:
            send(port, {"error": f"{type(error).__name__}: {error}"})
            scheduling.restore_daemons()
        else:
            send(port, {"done": True})
        if message["do"] == "wake":
            set_policy(os.SCHED_IDLE)
            time.sleep(HEAD_START)
            scheduling.restore_daemons()
            set_policy(os.SCHED_OTHER)


main()
