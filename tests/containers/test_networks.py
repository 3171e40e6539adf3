"""Networks and ports of containers: shared, isolated, and many at the same time."""

from __future__ import annotations

import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

from containers.project import Opened, left, up
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.providers import load
from pytest_ephemeral.providers.docker import containers, endpoint, ports
from pytest_ephemeral.providers.docker.engine import Engine
from support import web

SHARED = """
[templates.shared]
image = "web"
port = 8080
ready = { http = "/" }
"""

#: It has a network of its own, and is otherwise fast to launch.
BARE = """
[templates.bare]
image = "web"
command = "echo up; exec sleep 99"
ready = { log = "up" }
isolated = true
"""

#: More than the networks that an engine has addresses for, which are about 30.
MANY = 40


def networks(engine: Engine) -> set[str]:
    return {one["Name"] for one in engine.call("GET", "/networks")}


def test_concurrent_environments_take_no_networks(opened: Opened) -> None:
    """None creates a network, and each answers at its own address."""
    engine = endpoint.find()
    lifecycle = opened(SHARED)

    def bring_up(_: int) -> str:
        environment = up(lifecycle, "shared")
        assert web.get(environment.url).strip() == "ok"
        assert not [name for name in networks(engine) if environment.id in name]
        return str(environment.url)

    with ThreadPoolExecutor(MANY) as pool:
        assert len(set(pool.map(bring_up, range(MANY)))) == MANY
        list(pool.map(lifecycle.destroy, lifecycle.project.ledger.entries()))
    assert left(lifecycle.run) == []


def test_consecutive_environments_release_their_networks(opened: Opened) -> None:
    """There are more of them than an engine has networks; four threads halve the time."""
    lifecycle = opened(BARE, "FROM {base}\n")
    lifecycle.image("web")
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: lifecycle.destroy(up(lifecycle, "bare")), range(MANY)))
    assert left(lifecycle.run) == []


def test_two_environments_of_one_image_launch_concurrently(opened: Opened) -> None:
    """Each launch waits for the other, so that launches one after the other would fail."""
    lifecycle = opened(SHARED)
    launched: list[str] = []
    together = threading.Barrier(2, timeout=60)
    provider = load("docker")
    launch = provider.launch

    def launch_together(order: Any) -> Any:
        together.wait()
        launched.append(order.environment.id)
        return launch(order)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(provider, "launch", launch_together)
        both = list(pool.map(lambda _: up(lifecycle, "shared"), range(2)))
    assert sorted(launched) == sorted(one.id for one in both)
    assert [web.get(one.url).strip() for one in both] == ["ok", "ok"]
    for one in both:
        lifecycle.destroy(one)


def test_an_isolated_container_is_not_reachable_by_others(opened: Opened) -> None:
    """A container of another environment can't connect to it."""
    lifecycle = opened(SHARED)
    alone, beside = up(lifecycle), up(lifecycle, "shared")
    engine = endpoint.find()
    found = containers.inspect(engine, alone.handle["container"])["NetworkSettings"]["Networks"]
    ((name, described),) = found.items()
    assert name == f"pytest-ephemeral-{alone.id}"
    address = described["IPAddress"]
    said = beside.run(["wget", "-q", "-T", "1", "-O", "-", f"http://{address}:8080/"])
    assert said.returncode != 0
    for environment in (alone, beside):
        lifecycle.destroy(environment)
        assert left(environment.id) == []


def test_another_port_is_chosen_if_the_first_is_taken(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The launch is repeated with other ports, under the same name and labels."""
    lifecycle = opened(SHARED)
    free = ports._free_ports
    with socket.create_server(("127.0.0.1", 0)) as taken:
        chosen = iter([taken.getsockname()[1]] * 2)
        monkeypatch.setattr(
            ports,
            "_free_ports",
            lambda held, count, *, udp: next(chosen, None) or free(held, count, udp=udp),
        )
        environment = up(lifecycle, "shared")
    assert web.get(environment.url).strip() == "ok"
    lifecycle.destroy(environment)
    assert left(environment.id) == []


def test_the_url_stays_the_same_after_a_restart(opened: Opened) -> None:
    """The container keeps its published port."""
    lifecycle = opened(SHARED)
    environment = up(lifecycle, "shared")
    engine, id = endpoint.find(), environment.handle["container"]
    engine.call("POST", f"/containers/{id}/restart", query={"t": 0})
    for _ in range(200):
        with suppress(OSError):
            assert web.get(environment.url).strip() == "ok"
            break
    bindings = containers.inspect(engine, id)["NetworkSettings"]["Ports"]["8080/tcp"]
    assert int(bindings[0]["HostPort"]) == environment.endpoints["http"].port
    lifecycle.destroy(environment)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ('port = 8080\nscheme = "redis"\nready = { tcp = true }', "redis"),
        ('command = "echo at work; sleep 100"\nready = { log = "at work" }', ""),
    ],
)
def test_the_url_uses_the_scheme_of_the_template(opened: Opened, keys: str, said: str) -> None:
    """A template without a port has no URL."""
    lifecycle: Lifecycle = opened(f'[templates.odd]\nimage = "web"\n{keys}\n', "FROM {base}\n")
    environment: Any = up(lifecycle, "odd")
    assert environment.url.partition(":")[0] == said
    assert bool(environment.endpoints) == bool(said)
    lifecycle.destroy(environment)


def test_a_container_gets_its_grace_period_to_stop(opened: Opened) -> None:
    """The application gets its stop signal, and its handler runs before the removal."""
    command = 'trap "echo asked; exit" USR1; while true; do sleep 0.1; done'
    keys = f"command = '''{command}'''\nready = {{ command = \"true\" }}"
    lifecycle = opened(
        f'[templates.odd]\nimage = "web"\n{keys}\nstop-signal = "SIGUSR1"\ngrace = "8s"\n',
        "FROM {base}\n",
    )
    environment = up(lifecycle, "odd")
    engine, id = endpoint.find(), environment.handle["container"]
    with engine.stream(
        "GET", f"/containers/{id}/logs", query={"stdout": True, "follow": True}
    ) as answer:
        lifecycle.destroy(environment)
        assert b"asked" in answer.read()
    assert left(environment.id) == []


def test_a_port_open_only_at_the_proxy_is_not_ready(opened: Opened) -> None:
    """The engine's proxy accepts connections while the container's network is still down."""
    network = "ip link set eth0 down; sleep 1.5; ip link set eth0 up"
    command = f"{network}; sleep 0.5; exec httpd -f -p 8080 -h /www"
    template = (
        f'[templates.slow]\nimage = "web"\nport = 8080\ncommand = "{command}"\n'
        'cap-add = ["NET_ADMIN"]\nready = { tcp = true, timeout = "20s" }\n'
    )
    lifecycle = opened(template)
    environment = up(lifecycle, "slow")
    assert web.get(environment.url).strip() == "ok"
    lifecycle.destroy(environment)
