"""``--ephemeral-attach URL``: tests use a running application with one port or several."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator

import pytest


@pytest.fixture
def ports() -> Iterator[list[int]]:
    """Two ports on which something accepts connections."""
    with socket.create_server(("127.0.0.1", 0)) as one, socket.create_server(("127.0.0.1", 0)) as b:
        yield [one.getsockname()[1], b.getsockname()[1]]


def name_ports(project):
    """Give the default template two named ports."""
    project.reconfigure(
        "port = 8080\nready = { tcp", "ports = { web = 8080, pg = 5432 }\nready = { tcp"
    )


def test_attach_takes_a_url_for_each_named_port(project, run, ports):
    """The first URL is the environment's URL."""
    name_ports(project)
    web = f"http://127.0.0.1:{ports[0]}/"
    pg = f"postgresql://127.0.0.1:{ports[1]}/"
    project.write(
        test_it=f"""
def test_it(ephemeral_env):
    assert ephemeral_env.url == ephemeral_env.url_for("web") == {web!r}
    assert ephemeral_env.endpoints["pg"].port == {ports[1]}
    assert ephemeral_env.url_for("pg", "shop") == {pg + "shop"!r}
"""
    )
    result = run("--ephemeral-attach", f"web={web},pg={pg}")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*does not give*")


def test_a_port_without_a_url_is_a_warning(project, run, ports):
    """The warning names the port and the full option, before tests of that port fail."""
    name_ports(project)
    project.write(
        test_it="""
def test_web(ephemeral_env): assert ephemeral_env.url_for("web") == ephemeral_env.url
def test_pg(ephemeral_env): ephemeral_env.url_for("pg")
def test_port(ephemeral_env): ephemeral_env.endpoints["pg"]
"""
    )
    result = run("--ephemeral-attach", f"http://127.0.0.1:{ports[0]}/")
    result.assert_outcomes(passed=1, failed=2)
    told = (
        f"ephemeral: template '{project.one}' also has the port pg, which --ephemeral-attach does "
        "not give: tests that use it fail. Give all: --ephemeral-attach web=URL,pg=URL"
    )
    missing = "E*EndpointMissingError: there is no endpoint 'pg'. Known: web."
    result.stdout.fnmatch_lines([told, missing, missing])


def test_attach_shows_no_password(project, run, ports, tmp_path):
    """The output, the report and JUnit XML mask the password, which the tests get."""
    url = f"http://shop:hunter2@127.0.0.1:{ports[0]}/"
    project.write(
        test_it="""
def test_it(ephemeral_env):
    assert ":hunter" + "2@" in ephemeral_env.url
    pytest.fail("for its section", pytrace=False)
"""
    )
    report, junit = tmp_path / "report.json", tmp_path / "junit.xml"
    files = ["--ephemeral-report", report, f"--junit-xml={junit}"]
    result = run("--ephemeral-attach", url, "-rA", "-v", *map(str, files))
    result.assert_outcomes(failed=1)
    shown = url.replace("hunter2", "***")
    result.stdout.fnmatch_lines([f"ephemeral: *attached to {shown}", f"*{shown}"])
    printed = result.stdout.str() + result.stderr.str()
    for text in (printed, report.read_text(), junit.read_text()):
        assert "hunter2" not in text
    assert json.loads(report.read_text())["environments"][0]["url"] == shown


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://shop:hunter2@127.0.0.1:1/", "nothing answers there"),
        ("http://shop:hun/ter2@127.0.0.1:1/", "not a URL"),
        ("amqp://shop:hunter2@127.0.0.1/", "name its port"),
    ],
)
def test_a_refused_url_shows_no_password(project, run, url, said):
    """The URL is refused with a usage error, before any test."""
    project.write(test_it="def test_it(ephemeral_env): pass")
    result = run("--ephemeral-attach", url)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    printed = result.stdout.str() + result.stderr.str()
    assert said in printed
    assert "ter2" not in printed
    assert "Traceback" not in printed
