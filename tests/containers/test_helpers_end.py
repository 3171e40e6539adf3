"""The engines that tests start for themselves leave no process behind."""

from __future__ import annotations

from pathlib import Path

from support import engine_images, engines


def test_nothing_of_podman_outlives_it() -> None:
    """It has a process for each container and each command in one, and one that resolves names."""
    engines.require("podman")
    engine_images.require()
    with engines.podman() as engine, engines.use(engine):
        folder = Path(engine.address.url.removeprefix("unix://")).parent
        engine.call("POST", "/networks/create", body={"Name": "own"})
        container = engine.call(
            "POST",
            "/containers/create",
            body={
                "Image": engine_images.busybox(),
                "Cmd": ["sleep", "1000"],
                "HostConfig": {"NetworkMode": "own"},
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
    assert engines.processes_of(folder) == []
    assert not folder.exists()
