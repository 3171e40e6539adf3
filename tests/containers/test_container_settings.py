"""The resources of an environment on the engine: settings, labels and removal."""

from __future__ import annotations

import json
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from containers.project import Opened, compose, left, up
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.errors import EphemeralError, LaunchError
from pytest_ephemeral.providers.docker import endpoint
from pytest_ephemeral.providers.docker.engine import Engine
from support import engine_images

#: A secret with characters that are special in shells and in Compose files.
SECRET = "pa$$w0rd${HOME}'\""

THEIRS = f"theirs-{secrets.token_hex(4)}"

FULL = f"""
[templates.full]
image = "web"
ports = {{{{ http = 8080, admin = 9000 }}}}
ready = {{{{ http = "/", headers = {{{{ X-Key = "{{{{env:PROBE_KEY}}}}" }}}} }}}}
command = ["sh", "-c", "echo asked $PROBE; httpd -p 9000 -h /www; exec httpd -f -p 8080 -h /www"]
env = {{{{ "app.mode" = "dotted", SECRET = "{{{{env:SECRET}}}}", PROBE = "as pr0be-s3cret" }}}}
volumes = ["data:/data", "/anonymous"]
tmpfs = ["/scratch:size=8m"]
memory = "64M"
cpus = 0.5
isolated = true
user = "0:0"
extra-hosts = ["far.example:10.9.8.7"]
shm-size = "32M"
cap-add = ["NET_ADMIN"]
init = true
network = "{THEIRS}"
"""


@pytest.fixture
def theirs() -> Iterator[Engine]:
    """The engine, with a foreign network and a foreign volume."""
    engine_images.require()
    engine = endpoint.find()
    network = engine.call("POST", "/networks/create", body={"Name": THEIRS})
    engine.call("POST", "/volumes/create", body={"Name": THEIRS})
    yield engine
    engine.call("DELETE", f"/networks/{network['Id']}")
    engine.call("DELETE", f"/volumes/{THEIRS}")


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sets the variables that the templates refer to."""
    monkeypatch.setenv("SECRET", SECRET)
    monkeypatch.setenv("PROBE_KEY", "pr0be-s3cret")


def test_a_container_has_all_settings_of_its_template(
    theirs: Engine, opened: Opened, known: None
) -> None:
    """The engine reports the limits, mounts, networks, ports and variables of the template."""
    lifecycle = opened(FULL.format())
    environment = up(lifecycle, "full")
    found = theirs.call("GET", f"/containers/{environment.handle['container']}/json")
    host, config = found["HostConfig"], found["Config"]
    assert (host["Memory"], host["MemorySwap"]) == (64 << 20, 64 << 20)
    assert host["NanoCpus"] == 5 * 10**8
    assert host["Tmpfs"] == {"/scratch": "size=8m"}
    assert set(found["NetworkSettings"]["Networks"]) == {
        f"pytest-ephemeral-{environment.id}",
        THEIRS,
    }
    bindings = found["NetworkSettings"]["Ports"]
    for name, port in {"http": 8080, "admin": 9000}.items():
        (binding,) = bindings[f"{port}/tcp"]
        assert binding["HostIp"] == "127.0.0.1"
        assert int(binding["HostPort"]) == environment.endpoints[name].port
    assert f"SECRET={SECRET}" in config["Env"]
    assert "app.mode=dotted" in config["Env"]
    assert (config["User"], host["ShmSize"], host["Init"]) == ("0:0", 32 << 20, True)
    assert "10.9.8.7" in environment.run(["grep", "far.example", "/etc/hosts"]).stdout
    assert host["CapAdd"][0].endswith("NET_ADMIN")
    assert {mount["Destination"] for mount in found["Mounts"]} >= {"/data", "/anonymous"}
    anonymous = next(m["Name"] for m in found["Mounts"] if m["Destination"] == "/anonymous")
    assert "8192" in environment.run(["df", "/scratch"]).stdout

    lifecycle.destroy(environment)
    assert left(environment.id) == []
    with pytest.raises(EphemeralError):
        theirs.call("GET", f"/volumes/{anonymous}")
    assert theirs.call("GET", f"/networks/{THEIRS}")["Containers"] == {}


def test_resources_have_labels_and_no_secrets(
    theirs: Engine, opened: Opened, known: None, tmp_path: Path
) -> None:
    """Labels have the owner, run and expiry; secrets are in no label, and masked in logs."""
    lifecycle = opened(FULL.format())
    environment = up(lifecycle, "full")
    query = {"all": True, "filters": {"label": [f"pytest-ephemeral.id={environment.id}"]}}
    things = [
        *theirs.call("GET", "/containers/json", query=query),
        *theirs.call("GET", "/networks", query=query),
        *theirs.call("GET", "/volumes", query=query)["Volumes"],
    ]
    assert len(things) == 3
    for thing in things:
        assert environment.labels.items() <= thing["Labels"].items()
        assert SECRET not in json.dumps(thing, ensure_ascii=False)
        assert "pr0be-s3cret" not in str(thing["Labels"])
    assert {"pytest-ephemeral.owner", "pytest-ephemeral.run", "pytest-ephemeral.expires-at"} <= set(
        environment.labels
    )
    assert environment.logs().startswith("asked as ***\n")
    records = [file.read_text() for file in (tmp_path / ".ephemeral").rglob("*.json")]
    assert not any("pr0be-s3cret" in text and "PROBE_KEY" not in text for text in records)
    lifecycle.destroy(environment)


def test_resources_with_similar_names_are_not_removed(theirs: Engine, opened: Opened) -> None:
    """Destroy, reap and prune do not select resources by their names."""
    lifecycle = opened()
    environment = up(lifecycle)
    name = f"pytest-ephemeral-{environment.id}-data-of-mine"
    mine = {"Labels": {"pytest-ephemeral": "mine", "com.docker.compose.project": environment.id}}
    theirs.call("POST", "/volumes/create", body={"Name": name, **mine})
    network = theirs.call("POST", "/networks/create", body={"Name": name, **mine})["Id"]
    body = {"Image": engine_images.busybox(), "Cmd": ["sleep", "100"], **mine}
    made = theirs.call("POST", "/containers/create", query={"name": name}, body=body)["Id"]
    tag = {"repo": "pytest-ephemeral/web", "tag": environment.id}
    theirs.call("POST", f"/images/{engine_images.busybox()}/tag", query=tag)
    try:
        lifecycle.destroy(environment)
        reaper.reap(lifecycle.project, dry_run=False)
        lifecycle.project.images.prune(0, set())
        assert len(left(name)) == 3
        assert theirs.call("GET", f"/images/pytest-ephemeral/web:{environment.id}/json")
    finally:
        theirs.call("DELETE", f"/containers/{made}", query={"force": True})
        theirs.call("DELETE", f"/networks/{network}")
        theirs.call("DELETE", f"/volumes/{name}")
        theirs.call("DELETE", f"/images/pytest-ephemeral/web:{environment.id}")


def test_prune_keeps_a_tag_moved_to_another_image(opened: Opened) -> None:
    """Prune removes the baked image, and not the image that the tag now points to."""
    lifecycle = opened()
    image, engine = lifecycle.image("web"), endpoint.find()
    tag = {"repo": "pytest-ephemeral/web", "tag": image.key[7:19]}
    engine.call("POST", f"/images/{engine_images.busybox()}/tag", query=tag)
    name = f"pytest-ephemeral/web:{image.key[7:19]}"
    lifecycle.project.images.prune(0, set())
    assert engine.call("GET", f"/images/{name}/json")["Id"] != image.reference
    engine.call("DELETE", f"/images/{name}")
    with pytest.raises(EphemeralError):
        engine.call("GET", f"/images/{image.reference}/json")


# -- Compose files of all kinds --------------------------------------------------------------------

FILE = """
services:
  web:
    extends: {{service: template}}
    environment: {{SECRET: "${{SECRET}}", DOTENV: "${{FROM_DOTENV}}"}}
    env_file: [more.env]
    networks: [default, theirs]
    volumes: ["theirs:/theirs", "own:/own", /anonymous]
    depends_on: [hosted, flaky]
  template:
    image: "{base}"
    command: sh -c "echo given $$SECRET $$FROM_FILE; exec httpd -f -p 8080 -h /www"
    expose: ["8080"]
  scaled: {{image: "{base}", command: sleep 1000, scale: 2, init: true, cap_drop: [ALL]}}
  hosted: {{image: "{base}", command: sleep 1000, network_mode: host}}
  flaky: {{image: "{base}", command: sleep 1000, restart: always, logging: {{driver: none}}}}
  hidden: {{build: ., profiles: [never]}}
networks: {{theirs: {{external: true, name: {theirs}}}}}
volumes: {{own: , theirs: {{external: true, name: {theirs}}}}}
"""


def file(folder: Path, text: str) -> None:
    (folder / "compose.yaml").write_text(text.format(base=engine_images.busybox(), theirs=THEIRS))


def test_a_compose_file_with_many_features_works(
    compose_command: None, theirs: Engine, opened: Opened, known: None, tmp_path: Path
) -> None:
    """The features work as in Compose, and destroy removes all but the external resources."""
    file(tmp_path, FILE)
    (tmp_path / ".env").write_text("FROM_DOTENV=dotted\n")
    (tmp_path / "more.env").write_text("FROM_FILE=filed\n")
    more = compose("web") + 'ready = { http = "/" }\nenv = { SECRET = "{env:SECRET}" }\n'
    more += "allow-external = true\n"
    lifecycle = opened(more)
    environment = up(lifecycle, "odd")
    for name, value in {"SECRET": SECRET, "FROM_FILE": "filed", "DOTENV": "dotted"}.items():
        said = environment.run(["sh", "-c", f'printf %s "${name}"'])
        assert said.stdout == value
    assert "given *** filed" in "".join(
        line for line in environment.logs().splitlines() if line.startswith("web | ")
    )
    assert "flaky | (configured logging driver does not support reading)\n" in environment.logs()
    parts = services(theirs, environment.id)
    assert parts == ["flaky", "hosted", "scaled", "scaled", "template", "web"]
    lifecycle.destroy(environment)
    assert left(environment.id) == []
    assert theirs.call("GET", f"/volumes/{THEIRS}")["Name"] == THEIRS
    assert theirs.call("GET", f"/networks/{THEIRS}")["Containers"] == {}


def services(engine: Engine, id: str) -> list[str]:
    query = {"all": True, "filters": {"label": [f"pytest-ephemeral.id={id}"]}}
    found: list[Any] = engine.call("GET", "/containers/json", query=query)
    return sorted(one["Labels"]["com.docker.compose.service"] for one in found)


def test_a_compose_service_can_use_the_host_network(
    compose_command: None, opened: Opened, tmp_path: Path
) -> None:
    """The URL has the port on the host, and a port that is in use is refused.

    A warning names the mounted folder, which environments share.
    """
    with socket.create_server(("127.0.0.1", 0)) as probe:
        free = probe.getsockname()[1]
    file(
        tmp_path,
        'services: {{web: {{image: "{base}", network_mode: host, '
        f"command: httpd -f -p 127.0.0.1:{free} -h /www, volumes: ['/tmp:/theirs']}}}}}}}}",
    )
    lifecycle = opened(compose("web").replace("8080", str(free)))
    told: list[Progress] = []
    lifecycle.say = told.append
    environment = up(lifecycle, "odd")
    assert environment.url == f"http://127.0.0.1:{free}/"
    assert environment.run(["cat", "/www/index.html"]).stdout == "ok\n"
    (warning,) = [one.text for one in told if one.phase == "warning"]
    assert "the service 'web' may write to /tmp, which" in warning
    with pytest.raises(LaunchError, match=f"port {free} of this machine is in use"):
        up(lifecycle, "odd")
    lifecycle.destroy(environment)
    assert left(environment.id) == []
