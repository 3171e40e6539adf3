"""State that is renewed in machines resumed from one memory, and reports of shared state."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_ephemeral import providers
from pytest_ephemeral.config import load
from pytest_ephemeral.environments.vetting import PROBES
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.protocol import COLD_BOOT, RESUMED, Order
from pytest_ephemeral.providers.qemu import memory, restore
from pytest_ephemeral.testing.bench import bake, get, make_order
from pytest_ephemeral.testing.waiting import until
from support import processes, vm

VET = "import pytest_ephemeral.cli as c; raise SystemExit(c.main(['images', 'vet', 'shop-vm']))"

CONFIGURATION = """\
[images.shop-vm]
provider = "qemu"
reference = "{reference}"
kernel = "{kernel}"
initrd = "{initrd}"
append = "{append}"

[templates.machine]
image = "shop-vm"
command = '''
cat >server.py <<'END'
import http.server, os, random, sys
sys.path.insert(0, os.environ["PREFIX"])
import application
SESSION = random.getrandbits(64)
class Handler(application.Handler):
    def end_headers(self):
        if os.path.exists("/run/sessions"):
            self.send_header("Set-Cookie", f"session={{SESSION}}")
        super().end_headers()
http.server.ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Handler).serve_forever()
END
exec python3 server.py "$HOST" "$PORT"
'''
env = {{ SHOP_KEY = "letmein" }}
memory = "{memory}"
port = 18482
ready = {{ http = "/", timeout = "10m" }}
warm = true
"""

#: Run in a machine before it is frozen: it adds hooks and a host key.
HOOKS = """\
set -e
cd /etc/pytest-ephemeral
cat >before-snapshot.d/1 <<'END'
#!/bin/sh
echo "$PYTEST_EPHEMERAL_ENVIRONMENT $SHOP_KEY" >/run/before
END
cat >after-restore.d/1 <<'END'
#!/bin/sh
echo "$PYTEST_EPHEMERAL_ENVIRONMENT $SHOP_KEY $(cat /etc/machine-id)" >/run/after
END
cat >after-restore.d/2 <<'END'
#!/bin/sh
case $PYTEST_EPHEMERAL_ENVIRONMENT in *[0-7]) ;; *) echo odd; exit 5 ;; esac
END
chmod +x */*
ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/ssh_host_ed25519_key
"""

#: Run in a machine: it adds a hook that fails before anything is frozen.
BUSY = """\
cat >/etc/pytest-ephemeral/before-snapshot.d/1 <<'END'
#!/bin/sh
echo busy
exit 4
END
chmod +x /etc/pytest-ephemeral/before-snapshot.d/1
"""

#: Run in a machine before it is frozen: its random numbers, UUIDs and host key become constant, and
#: its clock wrong. The waiting helper is killed, so that another is started.
SAME = """\
set -e
echo 0a0b0c0d >/run/constant
mount --bind /run/constant /dev/urandom
mount --bind /run/constant /proc/sys/kernel/random/uuid
echo ssh-ed25519 AAAA >/etc/ssh/ssh_host_ed25519_key.pub
printf '#!/bin/sh\\necho node-7\\n' >/etc/pytest-ephemeral/vet.d/node
chmod +x /etc/pytest-ephemeral/vet.d/node
touch /run/sessions
date -s '1 hour ago'
python3 -c '
import os
for pid in filter(str.isdigit, os.listdir("/proc")):
    try:
        if "\\0-Ic\\0" in open(f"/proc/{pid}/cmdline").read():
            os.kill(int(pid), 9)
    except OSError:  # it has ended meanwhile
        continue
'
"""

#: Prints what the hooks have recorded, and the machine's identity.
ASK = """\
cat /run/after /etc/machine-id /run/before
cut -d' ' -f2 /etc/ssh/ssh_host_ed25519_key.pub
"""


class Machines:
    """A configuration, and machines of its template."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        keys = vm.reference_keys(vm.bake_application())
        text = CONFIGURATION.format(memory=vm.MEMORY, **keys)
        (folder / "ephemeral.toml").write_text(text)
        config = load(folder / "ephemeral.toml")
        self.template = config.template("machine")
        self.image = bake(config.recipe(vm.NAME), folder)
        self.provider: Any = providers.load("qemu")

    def order(self, warm: Any = True, last: str = "01234567") -> Order:
        """Order a machine whose id ends with one of the given characters."""
        template = msgspec.structs.replace(self.template, warm=warm)
        while True:
            order = make_order(template, self.image, variables={"SHOP_KEY": "letmein"})
            if order.environment.id[-1] in last:
                return order

    @contextmanager
    def launch(self, **wanted: Any) -> Iterator[Environment]:
        """Launch a machine, and destroy it at the end."""
        order = self.order(**wanted)
        try:
            yield self.provider.launch(order)
        finally:
            self.provider.destroy(order.environment)

    def freeze(self, environment: Environment, script: str) -> Environment:
        """Run a script in a machine, then freeze it for ``warm = true``."""
        folders = "/etc/ssh /etc/pytest-ephemeral/"
        script = (
            f"mkdir -p {folders}before-snapshot.d {folders}after-restore.d {folders}vet.d\n{script}"
        )
        self.ask(environment, script)
        return self.provider.freeze(msgspec.structs.replace(self.order(), environment=environment))

    def ask(self, environment: Environment, script: str) -> Sequence[str]:
        """Return the words that a script prints in a machine."""
        done = self.provider.run(environment, ["sh", "-c", script], timeout=60)
        assert done.returncode == 0, done.stderr
        return done.stdout.split()


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    """Machines that need not boot: they resume from the memory that all tests share."""
    with vm.own_folder(tmp_path_factory, "restoring") as (folder, _):
        vm.share_memory(folder / "machine")
        yield Machines(folder)


@pytest.fixture
def running(machines: Machines) -> Iterator[Environment]:
    """A machine that serves; memory that is frozen from it is removed after the test."""
    try:
        with machines.launch(warm="booted") as environment:
            assert until(lambda: get(environment)) == "hello"
            yield environment
    finally:
        for one in memory.every():
            record = one.read()
            if record is None or record.fits["template"]:
                one.remove()


def test_resumed_machines_have_their_own_identities(
    machines: Machines, running: Environment
) -> None:
    """Each of three machines has its own machine-id and host key; hooks see its id and secret."""
    assert COLD_BOOT not in machines.freeze(running, HOOKS).handle
    with ExitStack() as cleanup:
        clones = [cleanup.enter_context(machines.launch()) for _ in range(2)]
        assert all(RESUMED in one.handle for one in clones)
        told = {one.id: machines.ask(one, ASK) for one in (running, *clones)}
    for id, (seen, secret, named, machine_id, *before, _) in told.items():
        assert (seen, secret, named) == (id, "letmein", machine_id)
        assert before == [running.id, "letmein"]
    assert len({machine_id for _, _, _, machine_id, *_ in told.values()}) == 3
    assert len({key for *_, key in told.values()}) == 3


def test_a_failing_hook_prevents_freezing_and_resuming(
    machines: Machines, running: Environment
) -> None:
    """If a hook before the freeze fails, the machine runs on; if one after it fails, it boots."""
    refused = machines.freeze(running, BUSY).handle[COLD_BOOT]
    assert "before-snapshot.d/1 exited with status 4: busy" in refused
    assert get(running) == "hello"
    assert COLD_BOOT not in machines.freeze(running, HOOKS).handle
    with machines.launch(last="89abcdef") as environment:
        assert "after-restore.d/2 exited with status 5: odd" in environment.handle[COLD_BOOT]
        assert RESUMED not in environment.handle
        assert machines.provider.status(environment).state == "running"


def test_vet_reports_state_shared_between_machines(
    machines: Machines, running: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``images vet`` finds each kind of shared state; then no machine is resumed."""
    idle = re.sub(r"(def wake\(.*\n)", r"\1        return\n", restore.read_helper())
    monkeypatch.setattr(restore, "read_helper", lambda: idle)
    assert COLD_BOOT not in machines.freeze(running, SAME).handle
    done = processes.run(sys.executable, "-c", VET, folder=machines.folder, status=1)
    for what in (*PROBES, "cookies"):
        assert f"machine: SAME {what}: both have " in done.stdout
    off = re.findall(r"machine: OFF  clock of machine-\w+: 3[56]\d\d\.\d s off", done.stdout)
    assert len(off) == 2
    assert " ok " not in done.stdout
    with machines.launch() as environment:
        assert "`images vet` found that random numbers: both" in environment.handle[COLD_BOOT]
