"""The compose command: Docker's plugin if it is installed, else ``docker-compose`` of any version.

The project is passed to it as a file in memory, so that values of ``{env:…}`` are never written to
the disk. (Standard input is not used, as version 2.30.0 can't read it.)
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Final

import msgspec

from pytest_ephemeral.errors import LaunchError, UnavailableError
from pytest_ephemeral.providers.docker import plugins
from pytest_ephemeral.providers.docker.engine import Address

#: Variables that the compose command must not see: they would select other files or projects.
_NOT_PASSED: Final = frozenset(
    {
        *("COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES"),
        # docker-compose 1.29 would use these instead of the engine's own certificates.
        *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    }
)

#: Seconds between checks whether the command was cancelled.
_CANCEL_INTERVAL: Final = 0.05


class CommandResult(msgspec.Struct, frozen=True):
    """A command's exit status, its standard output, and its standard error (progress)."""

    status: int
    output: str
    progress: str


class Compose(msgspec.Struct, frozen=True):
    """A compose command.

    Attributes:
        argv: The program, with leading arguments.
    """

    argv: tuple[str, ...]

    @classmethod
    def find(cls) -> Compose:
        """The compose command of this machine.

        Raises:
            UnavailableError: None is installed.
        """
        if program := plugins.find("docker-compose"):
            return cls((program,))
        if shutil.which("docker-compose"):  # its version is not read: that takes half a second
            return cls(("docker-compose",))
        raise UnavailableError(
            "the provider 'compose' needs `docker compose` or `docker-compose`, and neither is "
            "installed: install Docker's compose plugin, or (Debian) docker-compose"
        )

    def version(self) -> str:
        """The command's version; empty if it does not work."""
        try:
            done = subprocess.run(
                [*self.argv, "version", "--short"], capture_output=True, text=True, check=False
            )
        except OSError:
            return ""
        found = re.fullmatch(r"v?(\d+\.\d+\S*)", done.stdout.strip())
        return found[1] if found and done.returncode == 0 else ""

    def run(
        self,
        arguments: Sequence[str],
        *,
        project: str,
        folder: Path,
        variables: Mapping[str, str],
        address: Address,
        cancelled: threading.Event,
        texts: Mapping[str, str] | None = None,
    ) -> CommandResult:
        """Run the command until it ends or is cancelled.

        Args:
            arguments: The arguments after those that select the project.
            project: The project's name.
            folder: The folder that paths in the file are relative to.
            variables: Variables for the file's ``${…}``, besides those of this process.
            address: The engine's address.
            cancelled: Once set, the command is killed.
            texts: By option, such as ``--file``: the text of the file to pass.

        Raises:
            LaunchError: The command was cancelled.
        """
        named = ["--project-name", project, "--project-directory", str(folder)]
        with ExitStack() as files:
            descriptors: list[int] = []
            for option, text in (texts or {}).items():
                named += [option, files.enter_context(_file(text, descriptors))]
            argv = [*self.argv, *named, *arguments]
            environ = {**plugins.environ_for(address, *_NOT_PASSED), **variables}
            return _run_to_end(argv, folder, environ, descriptors, cancelled)


def _run_to_end(
    argv: Sequence[str],
    folder: Path,
    environ: Mapping[str, str],
    descriptors: Sequence[int],
    cancelled: threading.Event,
) -> CommandResult:
    """Run a command; on errors, kill it and its processes. It dies with this process."""
    process = plugins.start(
        argv,
        environ=environ,
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        cwd=folder,
        pass_fds=descriptors,
    )
    with process:
        try:
            output, progress = _communicate(process, cancelled)
        except BaseException:
            plugins.kill(process)
            raise
    return CommandResult(process.returncode, output, progress)


def _communicate(process: subprocess.Popen[str], cancelled: threading.Event) -> tuple[str, str]:
    while not cancelled.is_set():
        with suppress(subprocess.TimeoutExpired):
            return process.communicate(timeout=_CANCEL_INTERVAL)
    raise LaunchError("the compose command was killed: the run is ending")


@contextmanager
def _file(text: str, descriptors: list[int]) -> Iterator[str]:
    """The path of a file with a text: in memory on Linux, else a private temporary file.

    Args:
        text: The file's text.
        descriptors: The file's descriptor is added, which the reading process must inherit.
    """
    if sys.platform == "linux":
        with open(os.memfd_create("compose"), "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
            file.flush()
            descriptors.append(file.fileno())
            yield f"/dev/fd/{file.fileno()}"
        return
    descriptor, name = tempfile.mkstemp(suffix=".yaml")
    try:
        with open(descriptor, "w", encoding="utf-8") as file:  # noqa: PTH123
            file.write(text)
        yield name
    finally:
        Path(name).unlink()


def parse(text: str) -> dict[str, Any]:
    """Parse the output of ``config``: JSON, or YAML from docker-compose 1.

    Raises:
        UnavailableError: It is YAML, and PyYAML is not installed.
    """
    if text.lstrip().startswith("{"):
        read: dict[str, Any] = json.loads(text)
        return read
    try:
        import yaml
    except ImportError:
        raise UnavailableError(
            "this docker-compose prints only YAML, and PyYAML is not installed: "
            "pip install 'pytest-ephemeral[docker]'"
        ) from None
    loaded: dict[str, Any] = yaml.safe_load(text)
    return loaded
