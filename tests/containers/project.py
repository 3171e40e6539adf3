"""A project with containers, its resources on the engine, and a long run of pytest."""

from __future__ import annotations

import secrets
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.docker import endpoint
from support.hooks import SilentHooks

CONFIGURATION = """
keep-in-store = "{keep}"

[images.web]
provider = "docker"
context = "context"

[templates.{name}]
image = "web"
port = 8080
ready = {{ http = "/" }}
volumes = ["data:/data"]
isolated = true
{more}
"""

#: A template name that no other worker uses on the shared engine.
WEB = f"web{secrets.token_hex(3)}"

DOCKERFILE = "FROM {base}\nEXPOSE 8080 9000\n"

Opened = Callable[..., Lifecycle]


def left(id: str) -> list[str]:
    """The names of the containers, networks and volumes whose description has the ID."""
    engine = endpoint.find()
    everything = [
        *engine.call("GET", "/containers/json", query={"all": True}),
        *engine.call("GET", "/networks"),
        *(engine.call("GET", "/volumes")["Volumes"] or []),
    ]
    return [str(thing.get("Names") or thing["Name"]) for thing in everything if id in str(thing)]


def up(lifecycle: Lifecycle, template: str = WEB) -> Any:
    return lifecycle.bring_up(lifecycle.project.config.template(template)).environment


def reopened(folder: Path) -> Lifecycle:
    """Open the project as a later stage, which never bakes."""
    project = Project.open(folder / "ephemeral.toml", folder)
    return Lifecycle(project, SilentHooks(), run=f"later-{secrets.token_hex(6)}", bake="never")


def refusal(lifecycle: Lifecycle, template: str = WEB) -> EphemeralError:
    """The error of a failed launch, which leaves nothing on the engine or in the ledger."""
    with pytest.raises(EphemeralError) as caught:
        up(lifecycle, template)
    assert lifecycle.project.ledger.entries() == []
    assert left(lifecycle.run) == []
    return caught.value


def a_run(
    folder: Path,
    *arguments: str,
    template: str = WEB,
    seconds: int = 100,
    output: int = subprocess.DEVNULL,
) -> subprocess.Popen[bytes]:
    """Start pytest with one test that writes its environment's ID into the file ``id``.

    Args:
        folder: The project's folder.
        arguments: Further arguments of pytest.
        template: The environment's template.
        seconds: The duration of the test.
        output: The target of standard output.
    """
    (folder / "test_waits.py").write_text(
        "import pathlib, time\ndef test_waits(ephemeral_env):\n"
        "    pathlib.Path('half').write_text(ephemeral_env.id)\n"
        "    pathlib.Path('half').rename('id')\n"
        f"    time.sleep({seconds})\n"
    )
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:randomly"]
    environment = ["--ephemeral-env", "--ephemeral-template", template]
    return subprocess.Popen(
        [*argv, *environment, *arguments, "test_waits.py"],
        cwd=folder,
        stdout=output,
        stderr=subprocess.DEVNULL,
    )


def compose(service: str) -> str:
    """The configuration of a template that uses ``compose.yaml``."""
    return (
        '[templates.odd]\nprovider = "compose"\nfile = "compose.yaml"\n'
        f'service = "{service}"\nport = 8080\n'
    )
