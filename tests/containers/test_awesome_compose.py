"""The Compose files of docker/awesome-compose: each is planned, or refused with a reason."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_ephemeral import cli
from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.models import Image
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.compose.command import Compose
from pytest_ephemeral.providers.compose.launch import Launch
from pytest_ephemeral.providers.compose.tables import ComposeTemplate
from pytest_ephemeral.providers.docker import bases, image_store
from pytest_ephemeral.providers.docker.engine import Address, Engine
from pytest_ephemeral.providers.protocol import Order
from support import compose_versions
from support.environments import make_environment

COLLECTION = Path(__file__).with_name("awesome-compose")
EXAMPLES = sorted({file.parent.name for file in COLLECTION.glob("*/compose.y*ml")})
DOCKERFILES = sorted(str(file.relative_to(COLLECTION)) for file in COLLECTION.rglob("Dockerfile"))

#: The examples that are refused as they are, and part of the reason.
MOUNTED, FIXED = "of this machine over its", "can't run side by side"
REFUSED = {
    **dict.fromkeys(
        [
            *("angular", "apache-php", "flask-redis", "nginx-flask-mongo", "nginx-wsgi-flask"),
            *("react-express-mongodb", "react-express-mysql", "react-java-mysql"),
            *("react-rust-postgres", "vuejs"),
        ],
        MOUNTED,
    ),
    "pihole-cloudflared-DoH": FIXED,
}

#: The examples whose services may write to this machine outside the project.
SHARING = {"minecraft", "pihole-cloudflared-DoH", "plex", "portainer", "traefik-golang"}
SHARING |= {"wireguard"}

DIGEST = f"sha256:{'1' * 64}"

#: Syntax that the older builder lacks, found without parsing the Dockerfile.
MODERN = re.compile(r"RUN --mount|<<|\$BUILDPLATFORM|COPY --(?:link|chmod)", re.IGNORECASE)


@pytest.fixture
def command() -> Iterator[Compose]:
    """Compose 2, without an engine."""
    with compose_versions.with_plugin():
        yield Compose.find()


class Planned:
    """An example that ``init`` has configured, planned without an engine.

    Attributes:
        template: The template that ``init`` has written.
        warnings: The warnings for the user.
    """

    def __init__(self, folder: Path, command: Compose) -> None:
        project = Project.open(folder / "ephemeral.toml", folder)
        (self.template,) = [
            one for one in project.config.templates.values() if isinstance(one, ComposeTemplate)
        ]
        self.warnings: list[str] = []
        self._folder = folder
        self._command = command

    def plan(self, template: ComposeTemplate) -> tuple[dict[str, Any], dict[str, Any]]:
        """The configuration that Compose reads, and the one that the launch derives from it."""
        launch = Launch(self._command, Engine(Address("unix:///nowhere")), self._order(), template)
        launch.read()
        return launch._config, json.loads(launch._text(launch._choose_ports()))

    def _order(self) -> Order:
        now = datetime.now(UTC)
        environment = make_environment(
            "staging-aaaaaa", template=self.template.name, provider="compose", ttl=None
        )
        images = {
            name: Image(
                name=name,
                key=DIGEST,
                provider="docker",
                reference=DIGEST,
                digest=DIGEST,
                baked_at=now,
            )
            for name in self.template.images()
        }
        return Order(
            environment=environment,
            template=self.template,
            images=images,
            root=self._folder,
            warn=self.warnings.append,
        )


@pytest.fixture
def planned(
    request: pytest.FixtureRequest,
    tmp_path: Path,
    command: Compose,
    monkeypatch: pytest.MonkeyPatch,
) -> Planned:
    """An example of the collection, in a folder of its own where ``init`` has run."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    monkeypatch.setattr(bases, "find_local", lambda *_: None)
    monkeypatch.setattr(image_store, "id_on", lambda _, image: image.reference)
    folder = tmp_path / request.param
    shutil.copytree(COLLECTION / request.param, folder)
    monkeypatch.chdir(folder)
    assert cli.main(["init"]) == 0
    return Planned(folder, command)


@pytest.mark.parametrize("planned", EXAMPLES, indirect=True)
def test_each_example_is_planned_or_refused_with_a_reason(
    planned: Planned, request: pytest.FixtureRequest, command: Compose
) -> None:
    """A refusal names the file, and the option that it suggests works; each plan is isolated."""
    example, template = request.node.callspec.params["planned"], planned.template
    if example in REFUSED:
        with pytest.raises(ConfigurationError, match=REFUSED[example]) as caught:
            planned.plan(template)
        assert template.file in str(caught.value)
        if REFUSED[example] == FIXED:
            return
        assert "allow-mounts = true" in str(caught.value)
        template = msgspec.structs.replace(template, allow_mounts=True)
        planned.warnings.clear()
    meant, made = planned.plan(template)
    check(meant, made, template)
    assert bool(planned.warnings) == (example in SHARING)
    argv = [*command.argv, "--file", "-", "config", "--quiet"]
    subprocess.run(argv, input=json.dumps(made), text=True, check=True)  # Compose accepts it


def check(meant: dict[str, Any], made: dict[str, Any], template: ComposeTemplate) -> None:
    """The plan keeps all services, and its names and ports collide with no other environment."""
    assert made["services"].keys() == meant["services"].keys()
    for name, service in made["services"].items():
        before = meant["services"][name]
        assert service.keys().isdisjoint({"build", "container_name", "profiles"})
        built = "build" in before
        assert service["image"] == (DIGEST if built else before["image"])
        for key in ("environment", "command", "entrypoint", "healthcheck", "secrets", "depends_on"):
            assert service.get(key) == before.get(key)
        if (alias := before.get("container_name")) and not before.get("network_mode"):
            assert all(alias in one["aliases"] for one in service["networks"].values())
        wanted = [at.port for at in template.service_ports().values() if at.service == name]
        inside = [int(re.split(r"[:/]", one)[2]) for one in service.get("ports", ())]
        assert inside == ([] if before.get("network_mode") else wanted)
        assert all(one.startswith("127.0.0.1:") for one in service.get("ports", ()))
    for kind in ("networks", "volumes"):
        assert made[kind].keys() >= (meant.get(kind) or {}).keys()
        assert not any((one or {}).get("name") for one in made[kind].values())
    assert "name" not in made


@pytest.mark.parametrize("dockerfile", DOCKERFILES)
def test_base_images_and_buildkit_use_are_detected(dockerfile: str) -> None:
    """The base images exclude build stages, ``scratch`` and unresolved variables."""
    text = (COLLECTION / dockerfile).read_text()
    assert bool(bases.find_buildkit(text)) == bool(MODERN.search(text))
    stages = {
        name.lower()
        for name in re.findall(r"^FROM .* as (\S+)", text, re.MULTILINE | re.IGNORECASE)
    }
    found = bases.list_bases(text, {}, None)
    assert found
    assert not set(found) & (stages | {"scratch"})
    assert not any("$" in name or name.startswith("-") for name in found)
