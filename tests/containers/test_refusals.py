"""Launches that can't succeed fail soon, with a clear error, and leave nothing."""

from __future__ import annotations

import hashlib
import io
import json
import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from containers.project import DOCKERFILE, Opened, a_run, compose, refusal
from pytest_ephemeral.errors import BakeError, LaunchError
from pytest_ephemeral.providers.docker import endpoint
from pytest_ephemeral.providers.docker.engine import TAR_TYPE
from support import engine_images
from support.waiting import idle_clock


def test_a_failed_dockerfile_step_is_reported(opened: Opened) -> None:
    """The error has the step, its last output and the path of the whole log."""
    lifecycle = opened(
        dockerfile="FROM {base}\nRUN echo one && echo no such package >&2 && exit 7\n"
    )
    error = refusal(lifecycle)
    assert isinstance(error, BakeError)
    assert "Step 2/" in str(error)
    assert "RUN echo one" in str(error)
    assert "    no such package" in str(error)
    assert "code: 7" in str(error)
    assert re.search(r"The whole log: .*\.log", str(error))
    assert lifecycle.project.images.catalog.entries() == []


def test_a_missing_base_image_is_named(opened: Opened) -> None:
    """The base is neither on the engine nor in a registry."""
    error = refusal(opened(dockerfile="FROM localhost:1/no/such:image\n"))
    assert "localhost:1/no/such" in str(error)


def test_an_image_with_failed_verification_is_removed(opened: Opened) -> None:
    """The image is neither in the catalog nor on the engine."""
    base = engine_images.busybox()
    more = (
        f'[images.odd]\nprovider = "docker"\nbase = "{base}"\ninstall = ["true"]\n'
        'verify = ["echo it is not there; exit 4"]\n'
    )
    lifecycle = opened(more)
    with pytest.raises(BakeError, match=r"(?s)status 4.*it is not there"):
        lifecycle.image("odd")
    assert lifecycle.project.images.catalog.entries() == []
    images = endpoint.find().call("GET", "/images/json", query={"all": True})
    assert [one for one in images if "pytest-ephemeral.recipe': 'odd'" in str(one)] == []


def test_an_unexposed_port_is_refused(opened: Opened) -> None:
    """The error comes before anything is created, and lists the exposed ports."""
    more = '[templates.odd]\nimage = "web"\nport = 7777\n'
    error = refusal(opened(more), "odd")
    assert "port 7777 (http) is not exposed" in str(error)
    assert "8080, 9000" in str(error)


def test_a_port_without_a_listener_is_explained(opened: Opened) -> None:
    """The engine's proxy accepts every connection; the error lists the ports with a listener."""
    more = '[templates.odd]\nimage = "web"\nport = 9000\nready = { tcp = true, timeout = "1s" }\n'
    error = refusal(opened(more), "odd")
    assert "nothing listens behind it" in str(error)
    assert "nothing listens on port 9000 inside it; these do: 0.0.0.0:8080" in str(error)


def test_an_early_exit_is_reported_with_status_and_log(opened: Opened) -> None:
    """The error comes at once, without waiting for the timeout."""
    more = '[templates.odd]\nimage = "web"\nport = 8080\ncommand = "echo no database >&2; exit 3"\n'
    lifecycle = opened(more)
    lifecycle.image("web")
    clock = idle_clock()
    error = refusal(lifecycle, "odd")
    assert clock() < 10
    assert "app exited with status 3" in str(error)
    assert "    no database" in str(error)


def test_a_missing_command_is_named(opened: Opened) -> None:
    """The error names the program, without internals of the container runtime."""
    more = '[templates.odd]\nimage = "web"\nport = 8080\ncommand = ["no-such-program"]\n'
    error = refusal(opened(more), "odd")
    assert isinstance(error, LaunchError)
    assert '"no-such-program": executable file not found' in str(error)
    assert "runc" not in str(error)


@pytest.mark.parametrize("name", ["no-such-network", "no such network", "../containers/x"])
def test_a_missing_network_is_named(opened: Opened, name: str) -> None:
    """The container is removed again, and a path in the name leads to no other resource."""
    more = f'[templates.odd]\nimage = "web"\nport = 8080\nnetwork = "{name}"\n'
    error = refusal(opened(more), "odd")
    assert isinstance(error, LaunchError)
    assert name in str(error).replace("%2F", "/")


@pytest.mark.parametrize("name", ["UPPER", "two words", "a?b"])
def test_a_base_that_no_image_can_be_called(opened: Opened, name: str, tmp_path: Path) -> None:
    """The test's error in a run of pytest has the name in one line."""
    opened(
        f'[images.odd]\nprovider = "docker"\nbase = "{name}"\ninstall = ["true"]\n'
        '[templates.odd]\nimage = "odd"\nport = 8080\n'
    )
    with a_run(tmp_path, template="odd", output=subprocess.PIPE) as run:
        said = run.communicate(timeout=60)[0].decode()
    assert run.returncode == 1
    assert f"the image '{name}' can't be looked up: " in said
    assert "internal error" not in said


def test_exceeding_the_memory_limit_is_reported(opened: Opened) -> None:
    """The error names the limit instead of a plain exit."""
    eat = "tail /dev/zero"
    more = f'[templates.odd]\nimage = "web"\nport = 8080\nmemory = "16M"\ncommand = "{eat}"\n'
    assert "used more memory than its limit" in str(refusal(opened(more), "odd"))


def test_an_image_for_another_architecture_is_reported(opened: Opened, tmp_path: Path) -> None:
    """The error names the architecture of the image."""
    lifecycle = opened(dockerfile="FROM {base}\nCOPY program /program\n")
    program = tmp_path / "context" / "program"
    program.write_bytes(b"\x7fELF")
    program.chmod(0o755)
    foreign = make_foreign(lifecycle.image("web").reference)
    more = (
        f'[images.foreign]\nprovider = "docker"\nreference = "{foreign}"\n'
        '[templates.odd]\nimage = "foreign"\nport = 8080\ncommand = ["/program"]\n'
    )
    dockerfile = (tmp_path / "context" / "Dockerfile").read_text()
    assert "made for s390x" in str(refusal(opened(more, dockerfile), "odd"))


def make_foreign(reference: str) -> str:
    """Load a copy of the image that claims another architecture, and return its ID."""
    engine = endpoint.find()
    with engine.stream("GET", f"/images/{reference}/get") as answer:
        saved = io.BytesIO(answer.read())
    changed = io.BytesIO()
    with tarfile.open(fileobj=saved) as source, tarfile.open(fileobj=changed, mode="w") as target:
        name = json.load(source.extractfile("manifest.json"))[0]["Config"]  # type: ignore[arg-type]
        for member in source:
            data = source.extractfile(member).read() if member.isfile() else b""  # type: ignore[union-attr]
            if member.name == name:
                data = data.replace(b'"amd64"', b'"s390x"').replace(b'"arm64"', b'"s390x"')
                id = hashlib.sha256(data).hexdigest()
        for member in source:
            data = source.extractfile(member).read() if member.isfile() else b""  # type: ignore[union-attr]
            if member.name == name:
                data = data.replace(b'"amd64"', b'"s390x"').replace(b'"arm64"', b'"s390x"')
                member.name = f"{id}.json"
            elif member.name == "manifest.json":
                data = data.replace(name.encode(), f"{id}.json".encode())
            member.size = len(data)
            target.addfile(member, io.BytesIO(data))
    with engine.stream("POST", "/images/load", body=changed.getvalue(), headers=TAR_TYPE) as answer:
        answer.read()
    return f"sha256:{id}"


def test_an_unknown_service_is_reported_with_a_suggestion(opened: Opened, tmp_path: Path) -> None:
    """The error has the closest name, and comes before anything is created."""
    (tmp_path / "compose.yaml").write_text("services: {server: {image: whatever}}\n")
    more = compose(service="sever")
    error = refusal(opened(more), "odd")
    assert "no service 'sever'" in str(error)
    assert "Did you mean 'server'?" in str(error)


def test_a_crashed_service_is_named(opened: Opened, tmp_path: Path) -> None:
    """The error has its exit status and its log, and all services are removed."""
    base = engine_images.busybox()
    (tmp_path / "compose.yaml").write_text(
        f"services:\n  web: {{image: '{base}'}}\n"
        f"  db: {{image: '{base}', command: sh -c 'echo disk broken; exit 9'}}\n"
    )
    more = compose(service="web") + 'ready = { http = "/nothing", timeout = "20s" }\n'
    error = refusal(opened(more), "odd")
    assert "db exited with status 9" in str(error)
    assert "db | disk broken" in str(error)


def test_an_unhealthy_container_is_reported_with_its_output(
    opened: Opened, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error has the output of the health check, with secrets masked."""
    monkeypatch.setenv("SCHEMA_KEY", "s3cret-of-the-schema")
    check = "HEALTHCHECK --interval=1s --retries=1 CMD echo no schema for $KEY; exit 1\n"
    template = (
        '[templates.sick]\nimage = "web"\nport = 8080\n'
        'ready = { http = "/", timeout = "8s" }\nenv = { KEY = "{env:SCHEMA_KEY}" }\n'
    )
    lifecycle = opened(template, DOCKERFILE + check)
    said = str(refusal(lifecycle, "sick"))
    assert "app is unhealthy, and its health check says: no schema for ***" in said
    assert "s3cret-of-the-schema" not in said
