"""Runs in the guest: waits in the frozen memory, and makes each machine that wakes one of its own.

Its port is a device; the other end sends a line of JSON and gets one back. It is started before
the memory is frozen, so that nothing need be started when it is resumed.
"""

from __future__ import annotations

import fcntl
import glob
import json
import os
import shutil
import struct
import subprocess
import time
from typing import Any

PORT = "/dev/virtio-ports/pytest-ephemeral.restore"
HOOKS = "/etc/pytest-ephemeral"
RUN = "/run/pytest-ephemeral"

# random(4).
RNDADDENTROPY, RNDRESEEDCRNG = 0x40085203, 0x5207


def receive(port: int, rest: bytes = b"") -> Any:
    """The next line; between two machines nobody is at the other end, and nothing comes."""
    while b"\n" not in rest:
        data = os.read(port, 1 << 16)
        rest += data
        if not data:
            time.sleep(0.002)
    return json.loads(rest.partition(b"\n")[0])


def send(port: int, message: dict[str, Any]) -> None:
    os.write(port, json.dumps(message).encode() + b"\n")


def run_hooks(when: str, variables: dict[str, str]) -> None:
    """Run what the image has for this moment, in the order of the names."""
    for hook in sorted(glob.glob(f"{HOOKS}/{when}.d/*")):
        if os.access(hook, os.X_OK):
            done = subprocess.run(
                [hook],
                check=False,
                env={**os.environ, **variables},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )
            if done.returncode:
                said = done.stdout.decode(errors="replace").strip()
                raise RuntimeError(f"{hook} exited with status {done.returncode}: {said}")


def add_entropy(entropy: bytes) -> None:
    """Give the kernel what no other machine has, and have it used from now on."""
    device = os.open("/dev/urandom", os.O_RDWR)
    fcntl.ioctl(device, RNDADDENTROPY, struct.pack("ii", len(entropy) * 8, len(entropy)) + entropy)
    fcntl.ioctl(device, RNDRESEEDCRNG)
    os.close(device)


def renew_identity(machine_id: str) -> None:
    """Another machine-id, and other host keys."""
    with open("/etc/machine-id", "w") as file:
        file.write(machine_id + "\n")
    keys = glob.glob("/etc/ssh/ssh_host_*")
    for key in keys:
        os.unlink(key)
    if keys and shutil.which("ssh-keygen"):
        kind = ["-q", "-t", "ed25519", "-N", ""]
        made = ["ssh-keygen", *kind, "-f", "/etc/ssh/ssh_host_ed25519_key"]
        subprocess.run(made, stdin=subprocess.DEVNULL, check=True)


def write_variables(text: str) -> None:
    os.makedirs(RUN, exist_ok=True)
    with open(f"{RUN}/variables.new", "w", opener=lambda p, f: os.open(p, f, 0o600)) as file:
        file.write(text)
    os.rename(f"{RUN}/variables.new", f"{RUN}/variables")


def boot(script: str) -> None:
    """Start the application, as cloud-init does at a first boot."""
    os.makedirs(RUN, exist_ok=True)
    with open(f"{RUN}/boot", "w", opener=lambda p, f: os.open(p, f, 0o600)) as file:
        file.write(script)
    subprocess.Popen(
        ["/bin/sh", f"{RUN}/boot"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def wake(message: dict[str, Any]) -> None:
    add_entropy(bytes.fromhex(message["entropy"]))
    time.clock_settime(time.CLOCK_REALTIME, message["time"])
    renew_identity(message["machine_id"])
    if message["variables_file"]:
        write_variables(message["variables_file"])
    run_hooks("after-restore", message["variables"])
    if message["boot"]:
        boot(message["boot"])


def prepare(message: dict[str, Any]) -> None:
    """Have the image's hooks close what does not outlive a change of the machine."""
    run_hooks("before-snapshot", message["variables"])
    os.sync()


def main() -> None:
    port = os.open(PORT, os.O_RDWR)
    send(port, {"ready": True})
    for act in (prepare, wake):
        try:
            act(receive(port))
        except Exception as error:
            send(port, {"error": f"{type(error).__name__}: {error}"})
            return
        send(port, {"done": True})


main()
