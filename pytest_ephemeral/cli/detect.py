"""Recognise an application in a folder: a Python project, a Dockerfile, a Compose file."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from pytest_ephemeral.cli.source_trees import SourceTree, find_source_tree
from pytest_ephemeral.errors import ConfigurationError, UnavailableError

_READERS: Final = (
    "To read it, install Docker's compose plugin, or PyYAML: pip install 'pytest-ephemeral[docker]'"
)

#: The names of Compose files, in the order in which the compose command looks for them.
COMPOSE_FILES: Final = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")

#: The keys of a service's ``build`` that recipes have, too.
_RECIPE_KEYS: Final = frozenset({"context", "dockerfile", "target", "args"})


class Script(NamedTuple):
    """A console script of a Python project.

    Attributes:
        project: The project's name, of its metadata.
        name: The script's name.
        folder: The project's folder, relative to the configuration.
    """

    project: str
    name: str
    folder: str = "."


class ComposeBuild(NamedTuple):
    """How a service of a Compose file is built, as lines of a recipe.

    Two services with the same lines share one image.
    """

    lines: str

    def is_here(self) -> bool:
        """Whether it is built from the Dockerfile of the folder itself."""
        lines = self.lines.splitlines()
        return HERE.lines in lines and not any(line.startswith("dockerfile") for line in lines)


#: A build from the Dockerfile of the folder itself, without other options.
HERE: Final = ComposeBuild('context = "."')


class Container(NamedTuple):
    """A container image that is built from a Dockerfile.

    Attributes:
        name: The name of the folder.
        port: The port on which the application listens in its container.
        build: How it is built.
        env: The environment variables of the container.
    """

    name: str
    port: int
    build: ComposeBuild = HERE
    env: Mapping[str, str] = {}


class Services(NamedTuple):
    """The services of a Compose file.

    Attributes:
        file: The name of the file.
        service: The service that the URL leads to; see ``_rank``.
        port: The port of that service, inside its container.
        builds: How services are built, by service.
        here: The service that is built from the folder's own Dockerfile; its port is 0 if the
            file has none, and its name is empty.
    """

    file: str
    service: str
    port: int
    builds: Mapping[str, ComposeBuild]
    here: Container | None = None


class Found(NamedTuple):
    """The applications found in a folder.

    Attributes:
        script: A console script of the folder's Python project.
        container: A container image built from the folder's Dockerfile.
        services: The services of the folder's Compose file.
        source: An application that runs from its source tree.
        inner: The applications of a monorepo, by the paths of their folders.
    """

    script: Script | None = None
    container: Container | None = None
    services: Services | None = None
    source: SourceTree | None = None
    inner: Mapping[str, Script | SourceTree] = {}


def look(folder: Path) -> Found:
    """Recognise the applications of a folder.

    Raises:
        ConfigurationError: A file in it can't be read.
    """
    application = find_application(folder)
    container, services = find_container(folder / "Dockerfile"), find_services(folder)
    if container and services and services.here:
        container = services.here._replace(
            name=container.name, port=services.here.port or container.port
        )
    found = Found(
        script=application if isinstance(application, Script) else None,
        source=application if isinstance(application, SourceTree) else None,
        container=container,
        services=services,
    )
    if application or container or services:
        return found
    return found._replace(inner=dict(_find_inner(folder)))


def find_application(folder: Path) -> Script | SourceTree | None:
    """A folder's application: a web framework's, else a console script, else npm or pages."""
    tree = find_source_tree(folder)
    if tree is not None and tree.kind != "static pages" and "npm" not in tree.kind:
        return tree
    return find_script(folder) or tree


def _find_inner(folder: Path) -> Iterator[tuple[str, Script | SourceTree]]:
    """The applications of a monorepo, each with the path of its folder."""
    groups = [folder, *(folder / name for name in ("apps", "services", "packages", "src"))]
    for group in groups:
        for inner in sorted(group.iterdir()) if group.is_dir() else ():
            if inner.name.startswith((".", "_")) or not inner.is_dir() or inner in groups:
                continue
            path = str(inner.relative_to(folder))
            found = find_application(inner)
            if isinstance(found, Script):
                yield path, found._replace(folder=path)
            elif found is not None:
                yield path, found._replace(folder=str(Path(path, found.folder)))


def find_script(folder: Path) -> Script | None:
    """The console script to run: the one with the project's name, or the first.

    Scripts are declared in ``[project.scripts]`` or ``[tool.poetry.scripts]`` of a
    pyproject.toml, or in the entry points of a setup.cfg or setup.py.

    Raises:
        ConfigurationError: The pyproject.toml is not TOML.
    """
    project, names = _declared_scripts(folder)
    # Names that need quotes in a shell are left out.
    names = [name for name in names if re.fullmatch(r"[\w.-]+", name)]
    if not names:
        return None
    name = project or names[0]
    return Script(name, name if name in names else names[0])


def _declared_scripts(folder: Path) -> tuple[str, list[str]]:
    """A Python project's name, and the names of its console scripts."""
    document = _read_pyproject(folder / "pyproject.toml")
    tool = document.get("tool")
    poetry = tool.get("poetry") if isinstance(tool, dict) else None
    for table in (document.get("project"), poetry):
        known = table if isinstance(table, dict) else {}
        if isinstance(scripts := known.get("scripts"), dict) and scripts:
            return str(known.get("name", "")), list(scripts)
    for name in ("setup.cfg", "setup.py"):
        try:
            text = (folder / name).read_text(errors="replace")
        except OSError:
            continue
        _, found, rest = text.partition("console_scripts")
        if found:
            named = re.search(r"\bname\s*=\s*['\"]?([\w.-]+)", text)
            scripts = re.findall(r"^[\s'\"=:\[]*([\w.-]+)\s*=\s*[\w.]+:\w+", rest, re.MULTILINE)
            return named[1] if named else "", scripts
    return "", []


def _read_pyproject(pyproject: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(pyproject.read_bytes().decode())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ConfigurationError(f"{pyproject}: can't be read: {error}") from None


def find_container(dockerfile: Path) -> Container | None:
    """The container image of a Dockerfile: its port is the last in EXPOSE, or 8080."""
    try:
        text = dockerfile.read_bytes().decode(errors="replace")
    except OSError:
        return None
    exposed = re.findall(r"^\s*EXPOSE\s+([0-9]+)", text, re.MULTILINE | re.IGNORECASE)
    return Container(dockerfile.absolute().parent.name, int(exposed[-1]) if exposed else 8080)


def find_services(folder: Path) -> Services | None:
    """The services of a folder's Compose file; None without a file, or without services.

    Raises:
        ConfigurationError: The file can't be read, or neither PyYAML nor Compose 2 is installed.
    """
    file = next((folder / name for name in COMPOSE_FILES if (folder / name).exists()), None)
    if file is None:
        return None
    document = _read_compose_file(file)
    services = document.get("services") if isinstance(document, dict) else None
    services = {
        name: service
        for name, service in (services if isinstance(services, dict) else {}).items()
        if isinstance(service, dict)
    }
    if not services:
        return None
    ports = {name: port for name, one in services.items() if (port := _first_port(one))}
    main = min(services, key=lambda name: _rank(services[name]))
    builds = {name: _build(one["build"]) for name, one in services.items() if "build" in one}
    here = None
    if users := [name for name, build in builds.items() if build.is_here()]:
        user = min(users, key=lambda name: (name != main, name not in ports))
        env = _fixed(_arguments(services[user].get("environment") or {}))
        here = Container("", ports.get(user, 0), builds[user], env)
    return Services(file.name, main, ports.get(main, 8080), builds, here)


def _read_compose_file(file: Path) -> Any:
    """Parse a Compose file with PyYAML, or with Compose 2 if PyYAML is not installed."""
    try:
        import yaml
    except ImportError:
        return _ask_compose(file)
    try:
        return yaml.safe_load(file.read_bytes())
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{file}: can't be read: {error}") from None


def _ask_compose(file: Path) -> Any:
    """Parse a Compose file with ``docker compose config``, which needs no engine."""
    from pytest_ephemeral.providers.compose.command import Compose

    plain = ["--no-interpolate", "--no-path-resolution"]
    words = ["--file", file.name, "--profile", "*", "config", "--format", "json", *plain]
    try:
        done = subprocess.run(
            [*Compose.find().argv, *words],
            cwd=file.absolute().parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except (UnavailableError, OSError) as error:
        raise ConfigurationError(f"{file.name} can't be read: {error}. {_READERS}") from None
    if done.returncode:
        message = done.stderr.strip()
        hint = _READERS if "--format" in message else ""  # docker-compose 1.29 has no such option
        raise ConfigurationError(f"{file}: can't be read: {message or hint}".strip() + f" {hint}")
    return json.loads(done.stdout)


def _rank(service: Mapping[str, Any]) -> tuple[bool, bool, bool]:
    """The order for the URL: first services that publish a port, then built, then exposing."""
    return (not service.get("ports"), "build" not in service, not service.get("expose"))


def _first_port(service: Mapping[str, Any]) -> int | None:
    """The first port, inside its container, that a service publishes or exposes."""
    for port in [*(service.get("ports") or ()), *(service.get("expose") or ())]:
        text = str(port.get("target", "") if isinstance(port, dict) else port)
        number = text.partition("/")[0].rpartition(":")[2]
        if number.isdigit():
            return int(number)
    return None


def _build(build: Any) -> ComposeBuild:
    """Convert a service's ``build`` to lines of a recipe."""
    table = build if isinstance(build, dict) else {"context": build}
    context = str(table.get("context", "."))
    lines = [f"context = {json.dumps(context if '://' in context else str(Path(context)))}"]
    if (dockerfile := str(table.get("dockerfile", "Dockerfile"))) != "Dockerfile":
        lines.append(f"dockerfile = {json.dumps(dockerfile)}")
    if target := table.get("target"):
        lines.append(f"target = {json.dumps(str(target))}")
    args = dict(_arguments(table.get("args") or {}))
    if fixed := _fixed(args.items()):
        texts = [f"{json.dumps(name)} = {json.dumps(value)}" for name, value in fixed.items()]
        lines.append(f"build-args = {{ {', '.join(texts)} }}")
    left = [f"args.{name}" for name in args if name not in fixed]
    left += sorted(str(key) for key in table.keys() - _RECIPE_KEYS)
    if left:
        lines.append(f"# left to you, as it can't be taken from the file: {', '.join(left)}")
    return ComposeBuild("\n".join(lines))


def _fixed(variables: Iterable[tuple[str, str | None]]) -> dict[str, str]:
    """The variables with a fixed value, which no variable of Compose's environment changes."""
    return {name: value for name, value in variables if value is not None and "$" not in value}


def _arguments(args: Any) -> Iterator[tuple[str, str | None]]:
    """The arguments of a build or variables of a service; None is a value set elsewhere."""
    if isinstance(args, dict):
        for key, one in args.items():
            text = str(one).lower() if isinstance(one, bool) else str(one)
            yield str(key), None if one is None else text
        return
    for one in args:
        name, equals, value = str(one).partition("=")
        yield name, value if equals else None
