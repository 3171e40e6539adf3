"""``init``: a starter ephemeral.toml for what is found here."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from pytest_ephemeral.cli.arguments import add_verb
from pytest_ephemeral.cli.output import Output
from pytest_ephemeral.config import FILE_NAME, find
from pytest_ephemeral.errors import ConfigurationError

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Verbs

#: What is built or run by a provider that there is none of yet.
_NOT_YET: Final = (
    "Dockerfile",
    "Containerfile",
    "compose.yaml",
    "compose.yml",
    "docker-compose.yml",
)

_HEAD: Final = """\
# Environments for test stages: `pytest-ephemeral doctor` checks what they need here,
# `pytest-ephemeral up` brings one up, and `pytest --ephemeral-env` runs tests against one.
default-template = "staging"
"""

_APPLICATION: Final = """
[images.{image}]                # baked once for every artifact, and the same in every stage
provider = "local"
artifact = {artifact}
install = [
  'python3 -m venv "$PREFIX"',
  '"$PREFIX/bin/pip" install "$ARTIFACT"',
]
verify = [{verify}]

[templates.staging]
image = "{image}"
# Where to listen is in the variables $HOST and $PORT. An application that wants options:
#   command = "$PREFIX/bin/{script} --host $HOST --port $PORT"
command = {command}
port = 8080
# It is ready when the port accepts connections; better, when a page answers:
#   ready = {{ http = "/healthz", timeout = "60s" }}
"""

_CONTAINER: Final = """
[images.{image}]                # built from the Dockerfile here
provider = "docker"
context = "."

[templates.{template}]
image = "{image}"
port = {port}                   # where the application listens in its container
# It is ready when the port accepts connections; better, when a page answers:
#   ready = {{ http = "/healthz", timeout = "60s" }}
"""

_EXAMPLE: Final = """
# Nothing to install was found here, so this is an example that works: put your own in its place.
[images.hello]                  # baked once, and the same in every stage
provider = "local"
# artifact = "dist/hello-*.whl" # what is installed; the commands see it as $ARTIFACT
install = [
  'mkdir -p "$PREFIX/site"',
  'echo "Hello from an environment of its own." > "$PREFIX/site/index.html"',
]

[templates.staging]
image = "hello"
command = 'exec python3 -m http.server --bind "$HOST" --directory "$PREFIX/site" "$PORT"'
port = 8080
ready = { http = "/", timeout = "60s" }
"""


class Script(NamedTuple):
    """A console script of a Python project."""

    project: str
    name: str


class Container(NamedTuple):
    """What a Dockerfile makes, and the port that it says is served."""

    name: str
    port: int


def add_to(verbs: Verbs) -> None:
    """Add the verb."""
    add_verb(verbs, "init", init, f"write a starter {FILE_NAME} for what is found here")


def init(arguments: argparse.Namespace, output: Output) -> int:
    """Write it, unless there is one already, and say what to do next."""
    folder = Path.cwd()
    path: Path = arguments.config or folder / FILE_NAME
    found = find(folder)
    if arguments.config is None and found is not None and found.parent == folder:
        raise ConfigurationError(f"{found} configures this folder already; it stays as it is")
    script = find_script(folder / "pyproject.toml")
    container = find_container(folder / "Dockerfile")
    _write(path, starter(script, container))
    unsupported = [name for name in _NOT_YET if (folder / name).exists()]
    if output.as_json:
        output.data(
            path=str(path),
            script=script and script.name,
            container=container and container.name,
            unsupported=unsupported,
        )
    else:
        output.line(str(path))
    for line in _advice(script, unsupported):
        output.say(line)
    return 0


def find_script(pyproject: Path) -> Script | None:
    """The console script to run: the one called as the project is, or the first.

    Raises:
        ConfigurationError: The file is not TOML.
    """
    try:
        document = tomllib.loads(pyproject.read_bytes().decode())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{pyproject}: can't be read: {error}") from None
    project = document.get("project")
    scripts: Any = project.get("scripts") if isinstance(project, dict) else None
    scripts = scripts if isinstance(scripts, dict) else {}
    # What a shell would need quotes for is no program anyone calls by hand.
    names = [name for name in scripts if re.fullmatch(r"[\w.-]+", name)]
    if not names:
        return None
    name = str(document["project"].get("name", names[0]))
    return Script(name, name if name in names else names[0])


def find_container(dockerfile: Path) -> Container | None:
    """What is built here, called as the folder is."""
    try:
        text = dockerfile.read_bytes().decode(errors="replace")
    except OSError:
        return None
    exposed = re.findall(r"^\s*EXPOSE\s+([0-9]+)", text, re.MULTILINE | re.IGNORECASE)
    return Container(dockerfile.absolute().parent.name, int(exposed[-1]) if exposed else 8080)


def starter(script: Script | None, container: Container | None = None) -> str:
    """What is written.

    Args:
        script: What the template ``staging`` runs.
        container: What it runs where there is no script, and ``staging-docker`` where there is.
    """
    parts = [_HEAD]
    if script is not None:
        parts.append(_application(script))
    if container is not None:
        template = "staging" if script is None else "staging-docker"
        image = f"{_name(container.name)[:38]}-container"
        parts.append(_CONTAINER.format(image=image, template=template, port=container.port))
    return "".join(parts) if len(parts) > 1 else _HEAD + _EXAMPLE


def _application(script: Script) -> str:
    # As wheels spell it: the binary distribution format's escaped name.
    wheel = re.sub(r"[-_.]+", "_", script.project).lower()
    program = f"$PREFIX/bin/{script.name}"
    return _APPLICATION.format(
        image=_name(script.project),
        artifact=json.dumps(f"dist/{wheel}-*.whl"),
        script=script.name,
        command=json.dumps(program),
        verify=json.dumps(f"test -x {program}"),
    )


def _name(text: str) -> str:
    """Anything as an image may be called."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-") or "app"


def _write(path: Path, text: str) -> None:
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        raise ConfigurationError(f"{path} is there already; it stays as it is") from None
    except OSError as error:
        raise ConfigurationError(f"{path} can't be written: {error.strerror}") from None


def _advice(script: Script | None, unsupported: list[str]) -> Iterator[str]:
    for name in unsupported:
        yield f"{name} was seen; Compose files are not supported yet, so nothing was made of it."
    if script is not None:
        yield f"It installs {script.project} and runs {script.name}. Build the wheel first:"
        yield "  python -m build --wheel"
    yield "Then bring it up, and take it down again:"
    yield "  pytest-ephemeral up"
    yield "  pytest-ephemeral down --all"
    yield "Records and images' content go into .ephemeral/: keep it out of version control."
