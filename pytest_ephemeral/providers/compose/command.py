"""The compose command: Docker's plugin where it is, else ``docker-compose``, whichever version.

What it is to bring up goes to it as a file in memory, so that values of ``{env:…}`` never touch the
disk. (Not through its standard input: version 2.30.0 can't read that.)
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

#: Variables of whoever runs the tests that would make it another project, or another file.
_NOT_PASSED: Final = frozenset(
    {
        *("COMPOSE_FILE", "COMPOSE_PROJECT_NAME", "COMPOSE_PROFILES"),
        # They are for the web; to docker-compose 1.29 they go before the engine's own authority.
        *("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    }
)

#: Seconds between two looks at whether a command is still wanted.
_CANCEL_INTERVAL: Final = 0.05


class CommandResult(msgspec.Struct, frozen=True):
    """Its exit status, its standard output, and what it said to people on standard error."""

    status: int
    output: str
    progress: str


class Compose(msgspec.Struct, frozen=True):
    """A compose command.

    Attributes:
        argv: How it is called.
    """

    argv: tuple[str, ...]

    @classmethod
    def find(cls) -> Compose:
        """The one of this machine.

        Raises:
            UnavailableError: There is none.
        """
        if program := plugins.find("docker-compose"):
            return cls((program,))
        if shutil.which("docker-compose"):  # not asked for its version: that takes it half a second
            return cls(("docker-compose",))
        raise UnavailableError(
            "the provider 'compose' needs `docker compose` or `docker-compose`, and neither is "
            "here: install Docker's compose plugin, or (Debian) docker-compose"
        )

    def version(self) -> str:
        """What it says it is; empty when it does not work."""
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
        """Run it to its end, or until that is no longer wanted.

        Args:
            arguments: After those that say which project this is.
            project: Its name.
            folder: What relative paths in the file are relative to.
            variables: For the file's ``${…}``, besides this process's own.
            address: The engine.
            cancelled: Once set, it is killed.
            texts: By option, what a file named by it says, such as ``--file``.

        Raises:
            LaunchError: It was killed.
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
    """Run a command that ends with this process, and is killed with what it has started."""
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
    """The path of a file that says so: in memory where the system can, else only for this user.

    Args:
        text: What it says.
        descriptors: Is given the descriptor that whoever reads the file must have.
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
    """What the command says a file means: JSON, or YAML from those that know no other.

    Raises:
        UnavailableError: It is YAML, and nothing here can read that.
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
