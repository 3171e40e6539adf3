"""The scripts of instances, run for real with a simulated metadata service."""

from __future__ import annotations

import configparser
import os
import shutil
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.providers.ec2 import user_data
from pytest_ephemeral.providers.ec2.tags import format_expiry
from support import processes, web

pytestmark = pytest.mark.skipif(
    shutil.which("curl") is None,
    reason="without curl: instances read their metadata with it (apt-get install curl)",
)

SCRIPTS = files("pytest_ephemeral.providers.ec2.user_data")
#: In the tag's format; constant, because they are part of test names in every worker.
PAST = format_expiry(datetime(2020, 1, 1, tzinfo=UTC))
LATER = format_expiry(datetime(2999, 1, 1, tzinfo=UTC))

#: The instance's ``shutdown`` command in these tests: it records its arguments.
SHUTDOWN = '#!/bin/sh\necho "$*" >>"$TOLD"\n'


@dataclass
class Metadata:
    """An instance's metadata service, version 2.

    Attributes:
        expires: The tag's value; None if the tag is missing.
        state: ``up``, ``off`` (as by ``HttpEndpoint=disabled``) or ``hanging``.
        plain: The number of requests without a token.
    """

    expires: str | None = LATER
    state: str = "up"
    plain: int = 0
    url: str = ""


@contextmanager
def serving() -> Iterator[Metadata]:
    told, over = Metadata(), threading.Event()

    class Handler(web.Handler):
        def do_PUT(self) -> None:
            seconds = self.headers.get("X-aws-ec2-metadata-token-ttl-seconds", "")
            if told.state == "hanging":
                over.wait(30)
            wrong = self.path != "/latest/api/token" or not seconds.isdigit()
            self.answer(403 if told.state == "off" else 400 if wrong else 200, b"a-token")

        def do_GET(self) -> None:
            if self.headers.get("X-aws-ec2-metadata-token") != "a-token":
                told.plain += 1
                self.answer(401)
            elif self.path.endswith("/meta-data/tags/instance/pytest-ephemeral.expires-at"):
                self.answer(404 if told.expires is None else 200, (told.expires or "").encode())
            else:
                self.answer(404)

    with web.serving(web.server_of(Handler)) as server:
        told.url = f"http://127.0.0.1:{server.server_port}"
        try:
            yield told
        finally:
            over.set()


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    with serving() as told:
        yield told


class Machine:
    """The inside of an instance: its disk, its console, and whether it was shut down."""

    def __init__(self, folder: Path, metadata: Metadata) -> None:
        self.root = folder / "disk"
        self.console = folder / "console"
        self.told = folder / "told"
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.command("shutdown", SHUTDOWN)
        self.environ = {
            "PATH": f"{self.bin}{os.pathsep}{os.environ['PATH']}",
            "TOLD": str(self.told),
            "NO_PROXY": "127.0.0.1",
            "PYTEST_EPHEMERAL_ROOT": str(self.root),
            "PYTEST_EPHEMERAL_RUN": str(folder / "run"),
            "PYTEST_EPHEMERAL_CONSOLE": str(self.console),
            "PYTEST_EPHEMERAL_IMDS": metadata.url,
        }

    def command(self, name: str, text: str) -> None:
        (self.bin / name).write_text(text)
        (self.bin / name).chmod(0o755)

    def run(self, shell: str, *arguments: str) -> None:
        processes.run(shell, *arguments, environ=self.environ, timeout=60)

    @property
    def is_shut_down(self) -> bool:
        return self.told.exists() and self.told.read_text().splitlines()[-1] == "-h now"


@pytest.fixture
def machine(tmp_path: Path, metadata: Metadata) -> Machine:
    return Machine(tmp_path, metadata)


EXPIRE = str(SCRIPTS / "expire.sh")
shells = pytest.mark.parametrize("shell", ["sh", "bash"])


@pytest.mark.parametrize("script", ["bake.sh", "boot.sh", "common.sh", "expire.sh"])
@shells
def test_scripts_have_valid_syntax(shell: str, script: str) -> None:
    """Different shells may be ``sh``; each must accept the scripts."""
    subprocess.run([shell, "-n", str(SCRIPTS / script)], check=True)


@shells
def test_an_expired_instance_shuts_itself_down(
    machine: Machine, metadata: Metadata, shell: str
) -> None:
    """The console says so, and the shutdown terminates it. Only version 2 of IMDS is used."""
    metadata.expires = PAST
    machine.run(shell, EXPIRE)
    assert machine.is_shut_down
    assert f"expired at {PAST}" in machine.console.read_text()
    assert metadata.plain == 0


@shells
@pytest.mark.parametrize(
    "expires",
    [
        pytest.param(LATER, id="later"),
        "never",
        None,
        "",
        "soon",
        "2020-01-01",
        "2020-01-01T00:00:00",
        "2020-01-01T00:00:00+02:00",
        "2020-01-01T00:00:00+00:00; rm -rf /",
        "<html>404</html>",
        "$(shutdown -h now)",
    ],
)
def test_only_a_past_expiry_shuts_the_instance_down(
    machine: Machine, metadata: Metadata, shell: str, expires: str | None
) -> None:
    """A future time, production's ``never`` and values that are no time in UTC do not."""
    metadata.expires = expires
    machine.run(shell, EXPIRE)
    assert not machine.told.exists()


@pytest.mark.parametrize("state", ["off", "hanging", "gone"])
def test_an_unresponsive_metadata_service_ends_nothing(
    machine: Machine, metadata: Metadata, state: str
) -> None:
    """The script gives up after some seconds; the timer starts it again a minute later."""
    metadata.expires, metadata.state = PAST, state
    if state == "gone":
        machine.environ["PYTEST_EPHEMERAL_IMDS"] = "http://127.0.0.1:9"
    started = time.monotonic()
    machine.run("sh", EXPIRE)
    assert not machine.told.exists()
    assert time.monotonic() - started < 20


def test_an_unset_clock_ends_nothing(machine: Machine, metadata: Metadata) -> None:
    """At boot, the clock may be years behind; once it is set, the expiry applies."""
    machine.command("date", "#!/bin/sh\necho 1970-01-01T00:00:09+00:00\n")
    metadata.expires = PAST
    machine.run("sh", EXPIRE)
    assert not machine.told.exists()
    (machine.bin / "date").unlink()
    machine.run("sh", EXPIRE)
    assert machine.is_shut_down


def test_the_expiry_tag_is_read_each_time(machine: Machine, metadata: Metadata) -> None:
    """So an extension, a promotion and a new expiry each take effect at once."""
    for expires in (LATER, "never"):
        metadata.expires = expires
        machine.run("sh", EXPIRE)
        assert not machine.told.exists()
    metadata.expires = PAST
    machine.run("sh", EXPIRE)
    assert machine.is_shut_down


def run_bake(machine: Machine, steps: list[str], **options: Any) -> list[user_data.Line]:
    """Run a bake's user data as cloud-init does; return the lines of its console."""
    script = machine.root.with_name("user-data")
    options = {"prefix": "/opt/x", "artifact": None, "variables": {}, "result_url": "", **options}
    script.write_text(user_data.bake_script(steps, minutes=75, **options))
    machine.run("sh", str(script))
    return user_data.lines(machine.console.read_text())


def test_a_bake_installs_the_expiry_timer(machine: Machine, metadata: Metadata) -> None:
    """systemd starts its unit once a minute, and the installed script works."""
    run_bake(machine, [":"])
    units = machine.root / "etc/systemd/system"
    timer, service = (configparser.ConfigParser() for _ in range(2))
    timer.read(units / "pytest-ephemeral-expire.timer")
    service.read(units / "pytest-ephemeral-expire.service")
    assert timer["Timer"]["OnUnitActiveSec"] == timer["Timer"]["OnBootSec"] == "60"
    assert timer["Install"]["WantedBy"] == "timers.target"
    shell, _, path = service["Service"]["ExecStart"].partition(" ")
    installed = machine.root / path.removeprefix("/")
    assert installed.stat().st_mode & stat.S_IXUSR
    machine.told.unlink()  # the bake's own shutdown
    metadata.expires = PAST
    machine.run(shell, str(installed))
    assert machine.is_shut_down


def test_a_bake_schedules_its_own_shutdown_first(machine: Machine) -> None:
    """The delay is the number of minutes that the bake may take."""
    run_bake(machine, [":"])
    assert machine.told.read_text() == "-h +75\n"


@pytest.mark.parametrize(("steps", "status"), [(["true"], "0"), (["true", "exit 3", "true"], "3")])
def test_a_bake_prints_its_status_last(machine: Machine, steps: list[str], status: str) -> None:
    """A failed step is the last one, and gives its status."""
    lines = run_bake(machine, ["echo one; echo two >&2", *steps])
    assert lines[-1] == user_data.Line("end", 0, status)
    said = [line.text for line in lines if line.part == "bake"]
    assert said == ["one", "two"]


def test_an_artifact_with_a_wrong_digest_is_not_installed(machine: Machine) -> None:
    """The instance checks the digest before it runs the install script."""
    wrong = user_data.Delivery("app.bin", "sha256:" + "0" * 64, content=b"other")
    said = run_bake(machine, ["echo installed"], artifact=wrong)
    assert said[-1].text != "0"
    assert "installed" not in [line.text for line in said]


def test_an_unavailable_script_is_reported_on_the_console(machine: Machine) -> None:
    """The report counts as the script's end, so that nothing waits for it."""
    script = machine.root.with_name("user-data")
    script.write_text(user_data.download_script("http://127.0.0.1:9/boot"))
    machine.run("sh", str(script))
    console = machine.console.read_text()
    assert user_data.last_words(console) == "1"
    assert "can not get its script" in user_data.lines(console)[0].text
