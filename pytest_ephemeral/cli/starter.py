"""Write a starter ephemeral.toml for the applications recognised in a folder."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterator
from itertools import count
from pathlib import Path
from typing import Final

from pytest_ephemeral.cli.detect import ComposeBuild, Container, Found, Script, Services
from pytest_ephemeral.cli.source_trees import SourceTree

_HEAD: Final = """\
# Environments for test stages: `pytest-ephemeral doctor` checks what they need here,
# `pytest-ephemeral up` brings one up, and `pytest --ephemeral-env` runs tests against one.
default-template = "{default}"
"""

_APPLICATION: Final = """
[images.{image}]                # baked once for every artifact, and the same in every stage
provider = "local"
build = {build}
sources = {sources}
artifact = {artifact}
install = [
  'python3 -m venv "$PREFIX"',
  '"$PREFIX/bin/pip" install "$ARTIFACT"',
]
verify = [{verify}]

[templates.{template}]
image = "{image}"
# Where to listen is in the variables $HOST and $PORT. An application that wants options:
#   command = "$PREFIX/bin/{script} --host $HOST --port $PORT"
command = {command}
port = 8080
# It is ready when the port accepts connections; better, when a page responds:
#   ready = {{ http = "/healthz", timeout = "60s" }}
"""

_SOURCE_TREE: Final = """
[images.{image}]                # {kind}: the files of this folder, without ignored ones
provider = "local"
artifact = {artifact}
install = [
{install}
]

[templates.{template}]
image = "{image}"
command = {command}
port = 8080
{extra}# It is ready when the port accepts connections; better, when a page responds:
#   ready = {{ http = "/healthz", timeout = "60s" }}
"""

_CONTAINER: Final = """
[images.{image}]                # built from the Dockerfile here
provider = "docker"
{lines}

[templates.{template}]
image = "{image}"
port = {port}                   # where the application listens in its container
{env}# It is ready when the port accepts connections; better, when a page responds:
#   ready = {{ http = "/healthz", timeout = "60s" }}
"""

_COMPOSE: Final = """
[templates.{template}]
provider = "compose"
file = "{file}"
{images}service = {service}            # where the URL leads
port = {port}                   # where that listens in its container
# Health checks in the file are waited for; better still, when a page responds:
#   ready = {{ http = "/healthz", timeout = "60s" }}
"""

_BUILT: Final = """
[images.{image}]                # what the service {service} of {file} builds
provider = "docker"
{lines}
"""

_EXAMPLE: Final = """
# No project was recognised here, so this is an example that works: replace it with your own.
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


def starter(found: Found) -> str:
    """The text of the configuration. The first application is the template ``staging``.

    If a Compose file builds services, its template is the default, because the file also has the
    other services that the application needs.
    """
    parts = []
    if found.script is not None:
        parts.append(_application(found.script))
    if found.source is not None:
        parts.append(_source_tree(found.source))
    for path, inner in found.inner.items():
        name = _name(path.rpartition("/")[2])
        if isinstance(inner, Script):
            parts.append(_application(inner, image=name, template=name))
        else:
            parts.append(_source_tree(inner, image=name, template=name))
    images: dict[ComposeBuild, str] = {}
    if found.container is not None:
        image = f"{_name(found.container.name)[:38]}-container"
        images[found.container.build] = image
        name = "staging-docker" if parts else "staging"
        parts.append(_container(found.container, image, name))
    default = _name(next(iter(found.inner)).rpartition("/")[2]) if found.inner else "staging"
    if found.services is not None:
        name = "staging-compose" if parts else "staging"
        parts += _compose_tables(found.services, name, images)
        default = name if found.services.builds else default
    return _HEAD.format(default=default) + ("".join(parts) or _EXAMPLE)


def _compose_tables(
    services: Services, template: str, images: dict[ComposeBuild, str]
) -> Iterator[str]:
    """The tables of a Compose file: the image of each different build, and the template."""
    for service, build in services.builds.items():
        if build not in images:
            images[build] = _unused(f"{_name(service)[:38]}-container", images.values())
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


def _container(container: Container, image: str, template: str) -> str:
    env = ", ".join(
        f"{json.dumps(name)} = {json.dumps(text)}" for name, text in container.env.items()
    )
    return _CONTAINER.format(
        image=image,
        template=template,
        port=container.port,
        lines=container.build.lines,
        env=f"env = {{ {env} }}\n" * bool(env),
    )


def _unused(name: str, used: Collection[str]) -> str:
    """The name, with a number if another image has it: names of services may be similar."""
    numbered = (f"{name}-{number}" for number in count(2))
    return name if name not in used else next(one for one in numbered if one not in used)


def _application(script: Script, *, image: str = "", template: str = "staging") -> str:
    # The name as in a wheel's file name: the escaping of the binary distribution format.
    wheel = re.sub(r"[-_.]+", "_", script.project).lower()
    program, folder = f"$PREFIX/bin/{script.name}", Path(script.folder)
    build = (
        f"python3 -m pip wheel -q --use-pep517 --no-deps --wheel-dir {folder / 'dist'} ./{folder}"
    )
    return _APPLICATION.format(
        image=image or _name(script.project),
        template=template,
        build=json.dumps(build),
        sources=json.dumps([script.folder]),
        artifact=json.dumps(str(folder / "dist" / f"{wheel}-*.whl")),
        script=script.name,
        command=json.dumps(program),
        verify=json.dumps(f"test -x {program}"),
    )


def _source_tree(tree: SourceTree, *, image: str = "site", template: str = "staging") -> str:
    return _SOURCE_TREE.format(
        image=image,
        template=template,
        kind=tree.kind,
        artifact=json.dumps(tree.folder),
        install="\n".join(f"  {command}," for command in tree.install),
        command=tree.command,
        extra="".join(f"{line}\n" for line in tree.extra),
    )


def _name(text: str) -> str:
    """Turn any text into a valid name of an image."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:48].strip("-") or "app"
