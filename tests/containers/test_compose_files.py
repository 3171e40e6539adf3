"""Features of Compose files: those that work side by side, and those that are refused."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from containers.project import Opened, a_run, compose, left, refusal, up
from pytest_ephemeral.images import stages
from pytest_ephemeral.providers.docker import containers, endpoint, resources
from support import engine_images, web
from support.waiting import idle_clock, until

pytestmark = pytest.mark.usefixtures("compose_command")


def write(folder: Path, text: str, name: str = "compose.yaml") -> None:
    (folder / name).write_text(text.replace("BASE", engine_images.busybox()))


def answer_of(url: str) -> str:
    """The response from a URL; empty if nothing answers."""
    try:
        return web.get(url).strip()
    except OSError:
        return ""


def published(found: Sequence[Mapping[str, Any]]) -> set[int]:
    """The ports of this machine that containers publish."""
    return {port["PublicPort"] for one in found for port in one["Ports"]}


class _Stranger(web.Handler):
    """A foreign server on this machine, on the port that the file names."""

    def do_GET(self) -> None:
        self.answer(200, b"stranger")


@pytest.fixture
def stranger() -> Iterator[int]:
    """The port of a foreign server."""
    with web.serving(web.server_of(_Stranger)) as server:
        yield server.server_port


RESTARTING = """
services:
  web:
    image: BASE
    restart: on-failure
    command: sh -c "echo x >> /count/n; [ $$(wc -l < /count/n) -gt 3 ] || {{ sleep 0.3; exit 1; }};
      exec httpd -f -p {port} -h /www"
    ports: ["{port}:{port}"]
    volumes: ["count:/count"]
volumes: {{count: }}
"""


def test_a_foreign_server_is_not_taken_for_the_service(
    opened: Opened, tmp_path: Path, stranger: int
) -> None:
    """While the service restarts, a server on the port that the file names is not used for it."""
    write(tmp_path, RESTARTING.format(port=stranger))
    lifecycle = opened(compose("web").replace("8080", str(stranger)) + 'ready = { http = "/" }\n')
    environment = up(lifecycle, "odd")
    assert web.get(environment.url).strip() == "ok"
    assert str(stranger) not in environment.url
    engine = endpoint.find()
    (one,) = resources.containers(engine, environment.id)
    engine.call("POST", f"/containers/{one['Id']}/restart", query={"t": 0})
    assert (
        until(lambda: web.get(environment.url).strip(), within=20) == "ok"
    )  # the same address as before
    lifecycle.destroy(environment)
    assert left(environment.id) == []


def test_another_port_is_chosen_if_the_first_is_taken(
    opened: Opened, tmp_path: Path, stranger: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A foreign server already listens on the first port."""
    from pytest_ephemeral.providers.docker import ports

    free = ports._free_ports
    chosen = iter([stranger])
    monkeypatch.setattr(
        ports,
        "_free_ports",
        lambda held, count, *, udp: next(chosen, None) or free(held, count, udp=udp),
    )
    write(tmp_path, "services: {web: {image: BASE}}\n")
    lifecycle = opened(compose("web") + 'ready = { http = "/" }\n')
    environment = up(lifecycle, "odd")
    assert web.get(environment.url).strip() == "ok"
    lifecycle.destroy(environment)
    assert left(environment.id) == []


MEANING = """
services:
  web:
    image: BASE
    container_name: shop-web
    ports: ["8080:8080"]
    networks: {back: }
  dns:
    image: PYTHON
    command:
      - python3
      - -c
      - |
        import socket
        server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        server.bind(("0.0.0.0", 5353))
        while True:
            server.sendto(b"answer", server.recvfrom(16)[1])
    ports: ["5353:5353/udp"]
    networks: [back]
networks:
  back: {ipam: {config: [{subnet: 10.251.7.0/24}]}}
"""


def test_two_environments_of_a_compose_file_are_isolated(opened: Opened, tmp_path: Path) -> None:
    """The file sets a name, ports and a subnet, of which each environment gets its own."""
    write(tmp_path, MEANING.replace("PYTHON", engine_images.python()))
    more = compose("web") + 'endpoints = { dns = { service = "dns", port = 5353 } }\n'
    lifecycle = opened(more + 'ready = { http = "/" }\n')
    first, second = up(lifecycle, "odd"), up(lifecycle, "odd")
    for environment in (first, second):
        assert web.get(environment.url).strip() == "ok"
        said = environment.run(["wget", "-qO-", "http://shop-web:8080/"])
        assert said.stdout == "ok\n", said.stderr
        dns = environment.endpoints["dns"]
        assert dns.scheme == "udp"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(0.2)
            for _ in range(50):
                client.sendto(b"x", (dns.host, dns.port))
                try:
                    assert client.recv(16) == b"answer"
                    break
                except TimeoutError:
                    continue
            else:
                pytest.fail("nothing came back")
    assert first.url != second.url
    for environment in (first, second):
        lifecycle.destroy(environment)
        assert left(environment.id) == []


def test_several_files_env_files_and_replicas_work(opened: Opened, tmp_path: Path) -> None:
    """Later files and variables override earlier ones.

    Restarted replicas keep their published ports.
    """
    write(tmp_path, "services: {web: {image: BASE, environment: {A: '${A}', B: '${B}'}}}\n")
    write(tmp_path, "services: {web: {environment: {C: third}}}\n", "more.yaml")
    (tmp_path / "one.env").write_text("A=first\nB=first")
    (tmp_path / "two.env").write_text("B=second\n")
    keys = 'env-file = ["one.env", "two.env"]\nscale = { web = 2 }\nready = { http = "/" }\n'
    more = compose("web").replace('"compose.yaml"', '["compose.yaml", "more.yaml"]') + keys
    lifecycle = opened(more)
    environment = up(lifecycle, "odd")
    said = environment.run(["sh", "-c", "echo $A $B $C"])
    assert said.stdout == "first second third\n"
    engine = endpoint.find()
    both = resources.containers(engine, environment.id)
    assert len(both) == 2
    before = published(both)
    for one in both:
        engine.call("POST", f"/containers/{one['Id']}/restart", query={"t": 0})
    assert published(resources.containers(engine, environment.id)) == before
    assert until(lambda: answer_of(environment.url)) == "ok"
    lifecycle.destroy(environment)
    assert left(environment.id) == []


def test_an_unhealthy_service_is_reported_with_its_output(opened: Opened, tmp_path: Path) -> None:
    """The error has the output of the service's health check, without Compose's progress."""
    write(
        tmp_path,
        "services:\n"
        "  web: {image: BASE, depends_on: {db: {condition: service_healthy}}}\n"
        "  db: {image: BASE, healthcheck: {test: 'echo no schema yet; exit 1', interval: 0.3s,"
        " retries: 1, start_period: 0s, timeout: 2s}}\n",
    )
    said = str(refusal(opened(compose("web")), "odd"))
    assert "db is unhealthy; its health check says: no schema yet" in said
    assert "Creating" not in said
    assert "exited with status 0" not in said


COMPLETED = "{condition: service_completed_successfully}"


@pytest.mark.parametrize(
    ("of_web", "told"),
    [
        (
            "depends_on: {db: {condition: service_completed_successfully}}",
            "db exited with status 4",
        ),
        ("env_file: [none.env]", "none.env"),
    ],
    ids=["a job that failed", "a file"],
)
def test_a_launch_failure_reports_its_actual_cause(
    opened: Opened, tmp_path: Path, of_web: str, told: str
) -> None:
    """The error names the cause, without Compose's progress and without a wrong remedy."""
    write(
        tmp_path,
        f"services:\n  web: {{image: BASE, {of_web}}}\n"
        "  db: {image: BASE, command: sh -c 'echo no disk; exit 4'}\n",
    )
    said = str(refusal(opened(compose("web")), "odd"))
    assert told in said
    assert "the image lacks" not in said
    assert "Creating" not in said


@pytest.mark.parametrize("compose_command", ["v2"], indirect=True)  # the version does not matter
def test_all_images_of_a_template_are_recorded(opened: Opened, tmp_path: Path) -> None:
    """The report, the provenance and the stages have them, that of the URL's service first."""
    write(tmp_path, "services:\n  aside: {image: BASE}\n  web: {image: BASE}\n")
    more = (
        f'[images.aside]\nprovider = "docker"\nbase = "{engine_images.busybox()}"\n'
        'install = ["true"]\n' + compose("web") + 'ready = { http = "/" }\n'
        'images = { aside = "aside", web = "web" }\n'
    )
    project = opened(more).project
    run = a_run(
        tmp_path,
        *("--ephemeral-report", "report.json", "--ephemeral-logs", "logs"),
        *("--ephemeral-stage", "acceptance"),
        template="odd",
        seconds=0,
    )
    assert run.wait(60) == 0
    (told,) = json.loads((tmp_path / "report.json").read_text())["environments"]
    assert [image["name"] for image in told["images"]] == ["web", "aside"]
    assert told["image"] == told["images"][0]
    keys = [image["key"] for image in told["images"]]
    for name, key in zip(("provenance.json", "provenance-aside.json"), keys, strict=True):
        said = (tmp_path / "logs" / told["id"] / name).read_text()
        assert key in said
    for key in keys:
        (stage,) = stages.list_stages(project.store, key)
        assert (stage.stage, stage.problem, stage.digest != "") == ("acceptance", "", True)


@pytest.mark.parametrize(
    ("kind", "use"), [("networks", "networks: [theirs]"), ("volumes", "volumes: ['theirs:/data']")]
)
def test_external_networks_and_volumes_are_refused(
    opened: Opened, tmp_path: Path, kind: str, use: str
) -> None:
    """They are refused before anything is created, with either version of Compose."""
    write(
        tmp_path,
        f"services:\n  web: {{image: BASE, {use}}}\n"
        f"{kind}: {{theirs: {{external: true, name: theirs-{tmp_path.name}}}}}\n",
    )
    said = str(refusal(opened(compose("web")), "odd"))
    assert f"the service 'web' uses the {kind[:-1]} 'theirs', which is external" in said
    assert "allow-external = true" in said


def test_services_get_their_grace_period_to_stop(opened: Opened, tmp_path: Path) -> None:
    """The application gets its stop signal, and finishes its work before it is removed."""
    write(
        tmp_path,
        "services:\n  web:\n    image: BASE\n    volumes: [kept:/kept]\n    stop_signal: SIGINT\n"
        '    command: sh -c \'trap "echo asked > /kept/it; exit" INT; httpd -p 8080 -h /www;'
        " while true; do sleep 0.1; done'\n"
        "volumes: {kept: {external: true, name: NAME}}\n".replace("NAME", f"kept-{tmp_path.name}"),
    )
    engine = endpoint.find()
    name = f"kept-{tmp_path.name}"
    engine.call("POST", "/volumes/create", body={"Name": name})
    try:
        more = 'ready = { http = "/" }\ngrace = "10s"\nallow-external = true\n'
        lifecycle = opened(compose("web") + more)
        environment = up(lifecycle, "odd")
        clock = idle_clock()
        lifecycle.destroy(environment)
        assert clock() < 8
        body = {
            "Image": engine_images.busybox(),
            "Cmd": ["cat", "/kept/it"],
            "HostConfig": {"Binds": [f"{name}:/kept"]},
        }
        reader = engine.call("POST", "/containers/create", body=body)["Id"]
        engine.call("POST", f"/containers/{reader}/start")
        engine.call("POST", f"/containers/{reader}/wait")
        assert containers.inspect(engine, reader)["State"]["ExitCode"] == 0
        engine.call("DELETE", f"/containers/{reader}", query={"force": True})
    finally:
        engine.call("DELETE", f"/volumes/{name}")
