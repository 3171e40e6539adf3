"""The watchdog: it outlives its owner by as long as it takes to clean up after it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pytest_ephemeral.environments.ledger import Ledger
from pytest_ephemeral.store.directory import DirectoryStore
from support.waiting import eventually

HERE = Path(__file__).parent

OWNER = """
import os, sys, time
from pathlib import Path
from types import SimpleNamespace
from pytest_ephemeral.environments.ledger import Ledger
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.tables import Template
from pytest_ephemeral.store.directory import DirectoryStore
from support.hooks import SilentHooks

store = DirectoryStore(Path(sys.argv[1]))
config = SimpleNamespace(root=Path())
project = SimpleNamespace(ledger=Ledger(store), store=store, config=config)
lifecycle = Lifecycle(project, SilentHooks(), run=sys.argv[2])
ups = [lifecycle.bring_up(Template(name="staging", provider="folders")) for _ in range(2)]
if "keep" in sys.argv:
    lifecycle.keep(ups[0].environment)
if "leave" in sys.argv:
    lifecycle.leave(ups[0].environment)
    lifecycle.close()
if "close" in sys.argv:
    lifecycle.close()
if "fork" in sys.argv and os.fork() == 0:
    time.sleep(60)  # what a test has forked, and nobody ends
    os._exit(0)
print("up", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the third party's environments are; it is installed for every child process."""
    site = tmp_path / "site"
    about = site / "third_party-1.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: third-party\nVersion: 1\n")
    (about / "entry_points.txt").write_text(
        "[pytest_ephemeral.providers]\nfolders = third_party:FolderProvider\n"
    )
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(HERE), str(HERE.parent)]))
    monkeypatch.setenv("FOLDERS", str(tmp_path / "folders"))
    (tmp_path / "folders").mkdir()
    return tmp_path / "folders"


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Starts a process that brings two environments up and then waits."""
    started = []

    def start(*arguments: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-c",
                OWNER,
                str(tmp_path / "store"),
                f"run{len(started)}",
                *arguments,
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_a_dead_owner_is_cleaned_up_after(
    owner: Callable[..., subprocess.Popen[bytes]], folders: Path, tmp_path: Path, end: int
) -> None:
    """Things and records both, soon after the owner died."""
    process = owner()
    assert len(list(folders.iterdir())) == 2

    process.send_signal(end)

    ledger = Ledger(DirectoryStore(tmp_path / "store"))
    assert eventually(lambda: not list(folders.iterdir()) and not ledger.entries())


def test_only_the_dead_owners_own_goes(
    owner: Callable[..., subprocess.Popen[bytes]], folders: Path, tmp_path: Path
) -> None:
    """Another run's environments stay, and so does what was kept."""
    dying, living = owner("keep"), owner()
    ledger = Ledger(DirectoryStore(tmp_path / "store"))
    kept = {one.id for one in ledger.entries() if one.kept or one.owner.pid == living.pid}
    assert len(kept) == 3

    dying.kill()

    assert eventually(lambda: {folder.name for folder in folders.iterdir()} == kept)
    assert eventually(lambda: {one.id for one in ledger.entries()} == kept)
    assert living.poll() is None


def test_a_released_watchdog_does_nothing(
    owner: Callable[..., subprocess.Popen[bytes]], folders: Path
) -> None:
    """An owner that has seen to everything has its word taken: when it dies, nobody is left."""
    process = owner("close")  # closing waits until the watchdog has gone

    process.kill()
    process.wait()

    assert len(list(folders.iterdir())) == 2


def test_a_watchdog_finishes_what_it_was_left(
    owner: Callable[..., subprocess.Popen[bytes]], folders: Path, tmp_path: Path
) -> None:
    """That, and nothing else, while its owner is still there."""
    process = owner("leave")

    assert eventually(lambda: len(list(folders.iterdir())) == 1)
    (remaining,) = folders.iterdir()
    ledger = Ledger(DirectoryStore(tmp_path / "store"))
    assert eventually(lambda: [one.id for one in ledger.entries()] == [remaining.name])
    assert process.poll() is None


def test_what_a_test_has_forked_is_not_taken_for_the_owner(
    owner: Callable[..., subprocess.Popen[bytes]], folders: Path
) -> None:
    """A child that outlives the owner holds nothing open: all goes when the owner does."""
    process = owner("fork")
    (child,) = children(process.pid)

    process.kill()

    assert eventually(lambda: not list(folders.iterdir()))
    os.kill(child, signal.SIGKILL)  # it was there all the time


def test_what_lies_in_the_current_folder_is_not_imported(
    owner: Callable[..., subprocess.Popen[bytes]],
    folders: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A project may have a module that is called like one of the standard library's."""
    (tmp_path / "here").mkdir()
    for name in ("select", "secrets", "queue", "threading"):
        (tmp_path / "here" / f"{name}.py").write_text("raise SystemExit\n")
    monkeypatch.chdir(tmp_path / "here")
    process = owner()
    assert len(list(folders.iterdir())) == 2

    process.kill()

    assert eventually(lambda: not list(folders.iterdir()))


def children(pid: int) -> list[int]:
    """The processes that a process has started by forking, and that still run its program."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rpartition(")")[2].split()[1]
            command = (stat.parent / "cmdline").read_bytes()
        except OSError:
            continue
        if parent == str(pid) and b"watcher" not in command:
            found.append(int(stat.parent.name))
    return found
