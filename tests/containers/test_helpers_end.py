"""Engines that tests start leave nothing behind, and share no addresses."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from support import addresses, engine_images, engines, podman_engines
from support.processes import run

NAT = ("iptables", "--wait", "--table", "nat")


def test_a_test_podman_leaves_no_processes() -> None:
    """The processes of containers, of their commands and of the DNS server end with the engine."""
    engines.require("podman")
    engine_images.require()
    with podman_engines.start() as engine, engines.use(engine):
        folder = Path(engine.address.url.removeprefix("unix://")).parent
        engine.call("POST", "/networks/create", body={"Name": "own"})
        container = engine.call(
            "POST",
            "/containers/create",
            body={
                "Image": engine_images.busybox(),
                "Cmd": ["sleep", "1000"],
                "ExposedPorts": {"80/tcp": {}},
                "HostConfig": {"NetworkMode": "own", "PortBindings": {"80/tcp": [{}]}},
            },
        )
        engine.call("POST", f"/containers/{container['Id']}/start")
        command = engine.call(
            "POST",
            f"/containers/{container['Id']}/exec",
            body={"Cmd": ["true"], "AttachStdout": True},
        )
        engine.call("POST", f"/exec/{command['Id']}/start", body={"Detach": True})
        assert len(engines.processes_of(folder)) > 2
        assert container["Id"] in _packet_filter()
    assert engines.processes_of(folder) == []
    assert not folder.exists()
    assert container["Id"] not in _packet_filter()


def _packet_filter() -> str:
    return run("iptables-save").stdout


def test_test_processes_use_separate_address_ranges() -> None:
    """A range is taken by one process, and not if a network of this machine already uses it."""
    engines.require("ip")
    own = addresses.own_range()
    assert _range_of_another_process() != own
    interface = f"pt{os.getpid()}"
    run("ip", "link", "add", interface, "type", "bridge")
    try:
        used = _range_of_another_process()
        run("ip", "address", "add", f"{used}.250.1/24", "dev", interface)
        run("ip", "link", "set", interface, "up")
        assert _range_of_another_process() not in {used, own}
    finally:
        run("ip", "link", "delete", interface)


def test_stale_redirections_of_killed_runs_are_removed() -> None:
    """A port that is still redirected to a removed container would not be reachable."""
    engines.require("iptables")
    dead = f"{_range_of_another_process()}.250.9:80"
    live = f"{addresses.own_range()}.250.9:80"
    chain = f"NETAVARK-DN-{os.getpid()}"
    run(*NAT, "-N", chain)
    try:
        for target in (dead, live):
            run(*NAT, "-A", chain, "-p", "tcp", "-j", "DNAT", "--to-destination", target)
        addresses.remove_stale_redirections()
        left = run(*NAT, "-S", chain).stdout
        assert dead not in left
        assert live in left
    finally:
        run(*NAT, "-F", chain)
        run(*NAT, "-X", chain)


def _range_of_another_process() -> str:
    """The range of a process that has just ended."""
    argv = [sys.executable, "-c", "from support import addresses; print(addresses.own_range())"]
    folder = Path(addresses.__file__).parents[1]
    return run(*argv, folder=folder).stdout.strip()
