"""A project whose environments are folders."""

from __future__ import annotations

import os
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import entry_points, processes
from support.plugin_project import PluginProject, end, make_project
from support.waiting import eventually

#: The folder of ``third_party.py``, whose provider runs in child processes.
THIRD_PARTY = Path(__file__).parents[1] / "faults"


CONFIGURATION = """
[templates.folder]
provider = "folders"
port = 8080
ready = { log = "printed" }
"""


WAITS = """
from pathlib import Path
def test_waits(ephemeral_env, ephemeral_env_module):
    Path("waiting").write_text(str(os.getpid()))
    time.sleep(60)
"""


PASSES = "def test_passes(ephemeral_env): pass"


class FolderProject(PluginProject):
    """A project whose environments are folders."""

    @property
    def folders(self) -> Path:
        """The folder of its environments."""
        return Path(os.environ["FOLDERS"])

    def environments(self) -> list[str]:
        """The ids of its environments that exist."""
        return [folder.name for folder in self.folders.iterdir() if folder.is_dir()]

    def records(self) -> list[Path]:
        """The ledger's records."""
        return list(self.folder.glob(".ephemeral/environments/*.json"))

    def is_clean(self) -> bool:
        """Whether no environment and no record is left."""
        return not self.environments() and not self.records()

    def try_command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command of the CLI in its own process; it may fail."""
        return processes.run(processes.PROGRAM, *arguments, folder=self.folder, status=None)

    def wait(self, *arguments: str, others: int = 0) -> tuple[subprocess.Popen[str], int]:
        """Start pytest with a waiting test; return the process, and the owner's process id."""
        process, _ = self.spawn_waiting(*arguments)
        assert eventually(lambda: len(self.environments()) == 2 + others, 30), end(process)
        return process, self.owner(process.pid)

    @staticmethod
    def owner(pid: int) -> int:
        """The process id of pytest's owner process."""
        for children in Path("/proc", str(pid), "task").glob("*/children"):
            for child in children.read_text().split():
                words = Path("/proc", child, "cmdline").read_bytes().split(b"\0")
                if b"pytest_ephemeral.broker" in words:
                    return int(child)
        raise AssertionError("it has no owner process")


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[FolderProject]:
    """A project with the third party's provider, installed for every child process."""
    site = tmp_path / "site"
    entry_points.register(site, "providers", "folders = third_party:FolderProvider")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(THIRD_PARTY)]))
    monkeypatch.setenv("FOLDERS", str(tmp_path / "folders"))
    # SIGQUIT would write all the memory of a pytest to disk.
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    (tmp_path / "folders").mkdir()
    (tmp_path / "project").mkdir()
    made = make_project(tmp_path / "project", monkeypatch, tmp_path_factory)
    project = FolderProject.__new__(FolderProject)
    project.__dict__.update(vars(made))
    project.configure(CONFIGURATION)
    project.write(test_it=WAITS)
    yield project
    (project.folders / "slow").unlink(missing_ok=True)
