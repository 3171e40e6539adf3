"""The starter ephemeral.toml: what is found in a folder, and what is written for it."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_ephemeral.errors import ConfigurationError

#: The names of Compose files, in the order in which the compose command looks for them.
COMPOSE_FILES: Final = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")

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

_COMPOSE: Final = """
[templates.{template}]
provider = "compose"
file = "{file}"
{images}service = {service}            # where the URL leads
port = {port}                   # where that listens in its container
# Health checks in the file are waited for; better still, when a page answers:
#   ready = {{ http = "/healthz", timeout = "60s" }}
"""

_BUILT: Final = """
[images.{image}]                # what the service {service} of {file} builds
provider = "docker"
{lines}
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


class ComposeBuild(NamedTuple):
    """What services of a Compose file are built from, as the lines that say so.

    Two that say the same are one image.
    """

    lines: str


#: The Dockerfile of the folder itself, all of it.
_HERE: Final = ComposeBuild('context = "."')


class Services(NamedTuple):
    """What a Compose file runs.

    Attributes:
        file: Its name.
        service: The first one that publishes a port, or the first.
        port: That port, inside its container.
        builds: What is built, by service.
    """

    file: str
    service: str
    port: int
    builds: Mapping[str, ComposeBuild]


class Found(NamedTuple):
    """What there is in a folder."""

    script: Script | None = None
    container: Container | None = None
    services: Services | None = None


def look(folder: Path) -> Found:
    """See what a folder has that an environment can be made of.

    Raises:
        ConfigurationError: A file of it can't be read.
    """
    return Found(
        find_script(folder / "pyproject.toml"),
        find_container(folder / "Dockerfile"),
        find_services(folder),
    )


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


def find_services(folder: Path) -> Services | None:
    """What a Compose file in a folder runs; None where there is none with services.

    Raises:
        ConfigurationError: It can't be read, or PyYAML is needed to.
    """
    file = next((folder / name for name in COMPOSE_FILES if (folder / name).exists()), None)
    if file is None:
        return None
    try:
        import yaml
    except ImportError as error:
        raise ConfigurationError(
            f"{file.name} can't be read without PyYAML: pip install 'pytest-ephemeral[docker]'"
        ) from error
    try:
        document = yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file}: can't be read: {error}") from None
    services = document.get("services") if isinstance(document, dict) else None
    services = {
        name: service
        for name, service in (services if isinstance(services, dict) else {}).items()
        if isinstance(service, dict)
    }
    if not services:
        return None
    published = {name: port for name, one in services.items() if (port := _first_port(one))}
    main = next(iter(published or services))
    builds = {name: _build(one["build"]) for name, one in services.items() if "build" in one}
    return Services(file.name, main, published.get(main, 8080), builds)


def _first_port(service: Mapping[str, Any]) -> int | None:
    """The first port inside a service's container that it publishes or exposes."""
    for port in [*(service.get("ports") or ()), *(service.get("expose") or ())]:
        text = str(port.get("target", "") if isinstance(port, dict) else port)
        number = text.partition("/")[0].rpartition(":")[2]
        if number.isdigit():
            return int(number)
    return None


def _build(build: Any) -> ComposeBuild:
    """What a service is built from, in the keys of a recipe."""
    table = build if isinstance(build, dict) else {"context": build}
    lines = [f"context = {json.dumps(str(Path(str(table.get('context', '.')))))}"]
    if (dockerfile := str(table.get("dockerfile", "Dockerfile"))) != "Dockerfile":
        lines.append(f"dockerfile = {json.dumps(dockerfile)}")
    if target := table.get("target"):
        lines.append(f"target = {json.dumps(str(target))}")
    if args := table.get("args"):
        given = args.items() if isinstance(args, dict) else [str(one).split("=", 1) for one in args]
        texts = [f"{json.dumps(str(name))} = {json.dumps(str(value))}" for name, value in given]
        lines.append(f"build-args = {{ {', '.join(texts)} }}")
    return ComposeBuild("\n".join(lines))


def starter(found: Found) -> str:
    """What is written: the first that is found is the template ``staging``."""
    parts = [_HEAD]
    if found.script is not None:
        parts.append(_application(found.script))
    images: dict[ComposeBuild, str] = {}
    if found.container is not None:
        image = f"{_name(found.container.name)[:38]}-container"
        images[_HERE] = image
        name = "staging-docker" if len(parts) > 1 else "staging"
        parts.append(_CONTAINER.format(image=image, template=name, port=found.container.port))
    if found.services is not None:
        name = "staging-compose" if len(parts) > 1 else "staging"
        parts += _compose_tables(found.services, name, images)
    return "".join(parts) if len(parts) > 1 else _HEAD + _EXAMPLE


def _compose_tables(
    services: Services, template: str, images: dict[ComposeBuild, str]
) -> Iterator[str]:
    """The images that services are built into, each once, and the template."""
    for service, build in services.builds.items():
        if build not in images:
            images[build] = f"{_name(service)[:38]}-container"
            yield _BUILT.format(
                image=images[build], service=service, file=services.file, lines=build.lines
            )
    replaced = ", ".join(
        f"{json.dumps(service)} = {json.dumps(images[build])}"
        for service, build in services.builds.items()
    )
    yield _COMPOSE.format(
        template=template,
        file=services.file,
        service=json.dumps(services.service),
        port=services.port,
        images=f"images = {{ {replaced} }}\n" * bool(replaced),
    )


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
