"""Rollback of containers to their baseline, checked on the engine before and after."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from containers.project import WEB, Opened, compose, left
from containers.test_compose_files import write
from pytest_ephemeral.errors import ConfigurationError, EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.docker import endpoint
from pytest_ephemeral.providers.docker.rollback import GRACE

VOLUMES = '''
[templates.kept]
image = "web"
port = 8080
volumes = ["data:/data", "/anonymous"]
isolated = true
env = { COLOUR = "blue" }
command = """
trap 'echo whole > /data/left; exit' TERM
httpd -p 8080 -h /www
while :; do sleep 0.1; done
"""
seed = """
echo seed > /data/seeded; echo seed > /anonymous/seeded; mkdir /made; echo seed > /made/seeded
chown 7:7 /data/seeded
"""
'''

FILE = """
services:
  web:
    image: BASE
    command: sh -c "test -s /shared/ready && exec httpd -f -p 8080 -h /www"
    volumes: [shared:/shared]
    depends_on:
      db: {condition: service_healthy}
      job: {condition: service_completed_successfully}
  db:
    image: BASE
    command: sh -c "sleep 1; touch /up; exec sleep 1000"
    healthcheck: {test: 'test -e /up', interval: 0.2s, retries: 60}
    networks: {default: {aliases: [database]}}
  beside:
    image: BASE
    command: sleep 1000
    network_mode: service:db
    pid: service:db
    depends_on: {db: {condition: service_started}}
  job:
    image: BASE
    command: sh -c "echo run >> /shared/ready"
    volumes: [shared:/shared]
volumes: {shared: {}}
"""

#: Named volumes that are not an environment's own, except the one in memory.
VOLUMES_OF_OTHERS = """
volumes:
  outside: {external: true}
  folder: {driver_opts: {type: none, o: bind, device: /tmp}}
  memory: {driver_opts: {type: tmpfs, device: tmpfs}}
"""


def bring_up(lifecycle: Any, template: str) -> Environment:
    """Launch an environment with a baseline."""
    found = lifecycle.project.config.template(template)
    environment: Environment = lifecycle.bring_up(found, rolled_back=True).environment
    return environment


def show(environment: Environment, script: str) -> str:
    """The output of a shell script in the environment."""
    return str(environment.run(["sh", "-c", script]).stdout)


def own_networks(environment: Environment) -> list[str]:
    """The IDs of an environment's networks."""
    found = endpoint.find().call("GET", "/networks")
    return [one["Id"] for one in found if environment.id in one["Name"]]


def test_rollback_restores_volumes_and_files(opened: Opened) -> None:
    """Volumes and other files get the baseline's content and owners back.

    The baseline has what the application writes when it stops. Nothing else on the engine changes.
    """
    lifecycle = opened(VOLUMES)
    environment = bring_up(lifecycle, "kept")
    before = left(environment.id)
    look = "cat /data/* /anonymous/* /made/*; stat -c %u /data/seeded; echo $COLOUR"
    said = show(environment, look)
    assert said == "whole\nseed\nseed\nseed\n7\nblue\n"
    for _ in range(2):
        show(environment, "echo wrong | tee /data/x /anonymous/x /made/x; rm /data/seeded")
        assert "wrong" in show(environment, look)
        environment = lifecycle.roll_back(environment).environment
        assert show(environment, look) == said
    assert sorted(left(environment.id)) == sorted(before)
    lifecycle.destroy(environment)
    assert left(environment.id) == []


def test_rollback_restores_compose_services(opened: Opened, tmp_path: Path) -> None:
    """Services keep their order, names and networks, and a completed job is not run again.

    They ignore their stop signal, and the baseline does not wait for them.
    """
    write(tmp_path, FILE)
    lifecycle = opened(compose("web"))
    template = lifecycle.project.config.template("odd")
    timed = lifecycle.bring_up(template, rolled_back=True)
    environment = timed.environment
    assert timed.seconds["baseline"] < GRACE
    networks = own_networks(environment)
    show(environment, "echo wrong >> /shared/ready")
    environment = lifecycle.roll_back(environment).environment
    assert show(environment, "cat /shared/ready") == "run\n"
    assert show(environment, "ping -c 1 -w 5 database > /dev/null && echo here") == "here\n"
    assert own_networks(environment) == networks
    lifecycle.destroy(environment)
    assert left(environment.id) == []


@pytest.mark.parametrize(
    ("volume", "told"),
    [
        ("/tmp:/shared", "the service web is bound to /tmp of this machine"),
        ("outside:/shared", "the volume 'outside' of the service web is external"),
        ("folder:/shared", "the service web is bound to /tmp of this machine"),
    ],
)
def test_rollback_refuses_shared_state(
    opened: Opened, tmp_path: Path, volume: str, told: str
) -> None:
    """It is refused before the launch; read-only folders can't change, and are accepted."""
    read = "'/etc:/read:ro', 'folder:/too:ro', 'memory:/memory'"
    text = f"services:\n  web: {{image: BASE, volumes: ['{volume}', {read}]}}\n"
    write(tmp_path, text + VOLUMES_OF_OTHERS)
    lifecycle = opened(compose("web"))
    with pytest.raises(ConfigurationError, match=told):
        lifecycle.check("odd", rolled_back=True)


def test_a_deleted_image_file_prevents_a_baseline(opened: Opened) -> None:
    """A recreated container would have the file again, so the launch fails."""
    lifecycle = opened("seed = 'rm /www/index.html'")
    with pytest.raises(EphemeralError, match=r"has deleted /www/index\.html of its image"):
        bring_up(lifecycle, WEB)
    assert lifecycle.project.ledger.entries() == []
