"""Rollback of local environments: with mounted layers, or with copies if that fails."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.local import LocalProvider, client
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.tables import LocalTemplate
from pytest_ephemeral.providers.protocol import Order
from pytest_ephemeral.testing import make_order
from support.waiting import until

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="no local provider there")

#: Logs each start and each SIGTERM.
COMMAND = "trap 'echo end >> log; exit' TERM; touch up; echo start >> log; sleep 1000 & wait"


@pytest.fixture(params=["layers", "copies"])
def order(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Order]:
    """The order of a running environment, which is destroyed after the test."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    if request.param == "copies":
        monkeypatch.setattr(client, "layer", lambda *_: "Operation not permitted")
    template = LocalTemplate(name="kept", command=COMMAND, port=18479, rollback="each")
    order = make_order(template, None)
    environment = LocalProvider().launch(order)
    try:
        until(lambda: show(environment, "log"))
        yield msgspec.structs.replace(order, environment=environment)
    finally:
        LocalProvider().destroy(environment)


def show(environment: Environment, name: str) -> str:
    """The content of a file in the environment."""
    return environment.run(["cat", name]).stdout


def write(environment: Environment, script: str) -> None:
    """Run a shell script in the environment."""
    assert environment.run(["sh", "-c", script]).returncode == 0


def roll_back_and_wait(order: Order) -> None:
    """Roll the environment back, and wait until it runs."""
    write(order.environment, "rm -f up")
    LocalProvider().roll_back(order)
    until(lambda: show(order.environment, "log").endswith("start\n"))


def test_a_rollback_restores_all_files(order: Order) -> None:
    """This includes removed and added files, links, modes, and folders without write permission."""
    environment, provider = order.environment, LocalProvider()
    write(environment, "mkdir -m 500 closed; ln -s nowhere link; echo one > file; chmod 640 file")
    write(environment, 'echo temporary > "$TMPDIR/file"')
    provider.take_baseline(order)
    until(lambda: show(environment, "log") == "start\nend\nstart\n")
    look = "ls -ln --time-style=+ . $TMPDIR | grep -v total; cat file $TMPDIR/file; readlink link"
    write(environment, "rm -f up")
    before = environment.run(["sh", "-c", f"rm -f log; {look}"]).stdout
    assert "temporary" in before
    for _ in range(3):
        write(environment, "rm -rf file link; chmod 700 closed; echo 2 > closed/x; rm $TMPDIR/file")
        roll_back_and_wait(order)
        # SIGTERM is sent once, before the baseline is taken. A rollback kills the processes.
        assert show(environment, "log") == "start\nend\nstart\n"
        assert environment.run(["sh", "-c", f"rm -f log up; {look}"]).stdout == before
        assert provider.status(environment).state == "running"


def test_repeated_rollbacks_leave_nothing(order: Order) -> None:
    """Neither processes nor folders accumulate, and nothing is left after the removal."""
    environment, provider = order.environment, LocalProvider()
    provider.take_baseline(order)
    folder = Folder.of_environment(environment).path
    for _ in range(6):
        write(environment, "head -c 100000 /dev/zero > large")
        roll_back_and_wait(order)
    until(lambda: len(list(folder.iterdir())) <= 12)
    # Unmounting a volatile layer does not sync the file system that all processes write to.
    layers = [
        one for one in show(environment, "/proc/self/mountinfo").split("\n") if ".upper" in one
    ]
    assert all("volatile" in one for one in layers)
    assert len(client.status(Folder.of_environment(environment).control)["processes"]) == 1
    provider.destroy(environment)
    assert not folder.exists()


def test_rollback_after_destroy_leaves_nothing(order: Order) -> None:
    """The environment is destroyed first. The later rollback fails and creates no folder."""
    provider = LocalProvider()
    provider.take_baseline(order)
    provider.destroy(order.environment)
    with pytest.raises(EphemeralError):
        provider.roll_back(order)
    assert not Folder.of_environment(order.environment).path.exists()
