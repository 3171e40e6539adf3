"""The commands on real local environments: up, list, show, run, logs, extend, down, reap."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral import cli
from pytest_ephemeral.config import load
from pytest_ephemeral.errors import DestroyError
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.providers.local import LocalProvider
from pytest_ephemeral.store import open_store
from support import web
from support.processes import PROGRAM
from support.waiting import until

SLOW = """
[templates.slow]
image = "hello"
command = "exec sleep 600"
port = 8080
"""


@pytest.fixture(autouse=True)
def here(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder; all environments are destroyed afterwards."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")  # skips expired containers of others
    yield workplace
    if (workplace / "ephemeral.toml").exists():
        assert cli.main(["down", "--all"]) == 0
    left = workplace.parent / "state" / "environments"
    assert not left.exists() or list(left.iterdir()) == []


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., Any]:
    """Run a command that must succeed, and return its JSON."""

    def run(*words: str) -> Any:
        capsys.readouterr()
        status = cli.main(["--json", *words])
        printed = capsys.readouterr()
        assert status == 0, printed.err
        return json.loads(printed.out)

    return run


@pytest.fixture
def hello(here: Path, run: Callable[..., Any]) -> Path:
    """The example that ``init`` writes, and a template that never becomes ready."""
    run("init")
    file = here / "ephemeral.toml"
    file.write_text(file.read_text() + SLOW)
    return file


def test_the_generated_configuration_bakes_and_launches(
    hello: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """stdout is only the URL, so a shell script can use it."""
    assert cli.main(["bake", "hello"]) == 0
    assert capsys.readouterr().out.startswith("hello sha256:")
    assert cli.main(["up"]) == 0
    printed = capsys.readouterr()
    url = printed.out.strip()
    assert web.get(url) == "Hello from an environment of its own.\n"
    assert "launching" in printed.err
    assert cli.main(["list"]) == 0
    heading, row = capsys.readouterr().out.splitlines()
    assert heading.split() == ["ID", "TEMPLATE", "STATE", "URL", "AGE", "EXPIRES", "OWNER"]
    assert row.split()[1:4] == ["staging", "kept", url]


def test_the_generated_console_script_template_launches(
    here: Path, run: Callable[..., Any]
) -> None:
    """pip installs a real wheel into a virtual environment in the image."""
    (here / "pyproject.toml").write_text(
        '[project]\nname = "shop"\nversion = "1"\nscripts = { shop = "shop:main" }\n'
    )
    (here / "dist").mkdir()
    with zipfile.ZipFile(here / "dist" / "shop-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("shop.py", SHOP)
        wheel.writestr("shop-1.dist-info/METADATA", "Metadata-Version: 2.1\nName: shop\nVersion: 1")
        wheel.writestr(
            "shop-1.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\nRoot-Is-Purelib: true"
        )
        wheel.writestr("shop-1.dist-info/entry_points.txt", "[console_scripts]\nshop = shop:main")
        wheel.writestr("shop-1.dist-info/RECORD", "")
    run("init")
    written = (here / "ephemeral.toml").read_text()
    kept = [line for line in written.splitlines() if not line.startswith(("build", "sources"))]
    (here / "ephemeral.toml").write_text("\n".join(kept))  # the wheel is built already
    environment = run("up", "staging")["environment"]
    assert environment["image"]["name"] == "shop"
    assert web.get(environment["url"]) == "open"


SHOP = """\
import os
from http.server import BaseHTTPRequestHandler, HTTPServer

class Shop(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"open")

def main():
    HTTPServer((os.environ["HOST"], int(os.environ["PORT"])), Shop).serve_forever()
"""


def test_an_environment_is_found_by_unique_id_prefix(hello: Path, run: Callable[..., Any]) -> None:
    """A prefix of several ids is an error."""
    first = run("up")["environment"]["id"]
    shown = run("show", "stag")
    assert shown["environment"]["id"] == first
    assert shown["status"]["state"] == "running"
    second = run("up")["environment"]["id"]
    assert cli.main(["show", "staging-"]) == 3
    assert run("down", first[:-1], first) == {
        "version": 1,
        "destroyed": [first],
        "errors": {},
        "dangling": {},
    }
    assert [one["id"] for one in run("list")["environments"]] == [second]


def test_run_passes_on_output_and_exit_status(
    hello: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Both streams are passed on; a signal gives the same exit status as in a shell."""
    id = run("up")["environment"]["id"]
    capsys.readouterr()
    shell = ["run", id, "--", "sh", "-c"]
    assert cli.main([*shell, "echo $PORT; echo wrong >&2; exit 7"]) == 7
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("8080\n", "wrong\n")
    assert cli.main([*shell, "kill -9 $$"]) == 137
    assert cli.main(["run", id, "--timeout", "100ms", "--", "sleep", "60"]) == 5
    assert cli.main(["run", id, "--json", "--", "echo", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["stdout"] == "--json\n"


def test_logs_are_printed_and_followed_to_the_end(
    hello: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each line appears once, and following ends when the environment is destroyed."""
    environment = run("up")["environment"]
    web.get(environment["url"] + "?before")
    assert cli.main(["logs", environment["id"], "--tail", "1"]) == 0
    assert "?before" in capsys.readouterr().out
    follower = subprocess.Popen(
        [PROGRAM, "logs", environment["id"], "-f"], stdout=subprocess.PIPE, text=True
    )
    with follower:
        assert follower.stdout is not None
        while "?before" not in follower.stdout.readline():
            pass
        for number in range(5):
            web.get(f"{environment['url']}?now-{number}")
        seen = [follower.stdout.readline() for _ in range(5)]
        run("down", environment["id"])
        assert follower.wait(timeout=20) == 0
    for number, line in enumerate(seen):
        assert f"?now-{number} " in line


def test_extend_moves_the_expiry(hello: Path, run: Callable[..., Any]) -> None:
    """The duration is added to the current expiry, and the record has the new one."""
    before = run("up", "--ttl", "2m")["environment"]
    after = run("extend", before["id"], "1h")["environment"]
    minutes = [
        int(one["expires_at"][14:16]) + 60 * int(one["expires_at"][11:13])
        for one in (before, after)
    ]
    assert (minutes[1] - minutes[0]) % (24 * 60) == 60
    assert run("show", before["id"])["environment"]["expires_at"] == after["expires_at"]


def test_an_expired_environment_is_reaped(hello: Path, run: Callable[..., Any]) -> None:
    """Its guard ends it at its expiry, and reap removes the record at the latest."""
    run("bake")
    id = run("up", "--ttl", "3s")["environment"]["id"]
    until(lambda: all(one["condition"] != "kept" for one in run("list")["environments"]))
    assert {one["id"] for one in run("reap", "--dry-run")["reaped"]} <= {id}
    run("reap")
    assert run("list")["environments"] == []


def test_an_environment_that_can_not_be_destroyed_is_named(
    hello: Path,
    run: Callable[..., Any],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of several errors has the environment's id before the provider's message."""
    ids = sorted(run("up")["environment"]["id"] for _ in range(2))

    def refuse(*_: object) -> None:
        raise DestroyError("access denied")

    with monkeypatch.context() as patch:
        patch.setattr(LocalProvider, "destroy", refuse)
        assert cli.main(["down", *ids]) == 6
    errors = sorted(line for line in capsys.readouterr().err.splitlines() if "error:" in line)
    assert errors == [f"error: {id}: access denied" for id in ids]
    assert sorted(run("down", *ids)["destroyed"]) == ids


def test_a_readiness_timeout_leaves_no_record(
    hello: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """The exit status is 5, and stderr names the environment."""
    hello.write_text(hello.read_text() + 'ready = { http = "/", timeout = "300ms" }\n')
    assert cli.main(["up", "slow"]) == 5
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "error: slow-" in printed.err
    assert run("list")["environments"] == []


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_launch_leaves_nothing(
    hello: Path, run: Callable[..., Any], which: signal.Signals
) -> None:
    """Ctrl-C and SIGTERM both exit with 130, and no record or process is left."""
    ledger = Ledger(open_store(load(hello).store, hello.parent))
    with subprocess.Popen([PROGRAM, "up", "slow"], stderr=subprocess.PIPE, text=True) as starting:
        found = until(lambda: [one for one in ledger.entries() if one.handle])
        starting.send_signal(which)
        _, talk = starting.communicate(timeout=20)
    assert starting.returncode == 130
    assert "interrupted" in talk
    assert ledger.entries() == []
    guard = int(found[0].handle["supervisor"])
    until(lambda: not Path(f"/proc/{guard}").exists() if sys.platform == "linux" else True)


def test_a_killed_launch_leaves_nothing(hello: Path) -> None:
    """Only the guard is left to clean up, and it removes the record."""
    ledger = Ledger(open_store(load(hello).store, hello.parent))
    with subprocess.Popen([PROGRAM, "up", "slow"], stderr=subprocess.DEVNULL) as starting:
        until(lambda: [one for one in ledger.entries() if one.handle])
        os.kill(starting.pid, signal.SIGKILL)
    until(lambda: not ledger.entries())


def test_a_broken_record_is_reported_and_skipped(
    hello: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str]
) -> None:
    """All other environments are still listed."""
    id = run("up")["environment"]["id"]
    broken = hello.parent / ".ephemeral" / "environments" / "staging-broken.json"
    broken.write_text("{")
    assert cli.main(["list"]) == 0
    printed = capsys.readouterr()
    assert id in printed.out
    assert "staging-broken.json" in printed.err
    broken.unlink()


def test_images_are_listed_shown_and_pruned(
    hello: Path, run: Callable[..., Any], tmp_path: Path
) -> None:
    """Export and import work, too; an image that is in use is not pruned."""
    image = run("bake")["images"][0]
    assert run("images")["images"] == [image]
    assert run("images", "show", image["key"][7:15])["image"] == image
    file = tmp_path / "hello.image"
    run("images", "export", "hello", str(file))
    id = run("up")["environment"]["id"]
    assert run("images", "prune", "--keep", "0")["removed"] == []
    run("down", id)
    assert run("images", "prune", "--keep", "0")["removed"] == [image]
    assert run("images", "import", str(file))["image"]["digest"] == image["digest"]


def test_artifacts_are_pushed_and_listed(here: Path, run: Callable[..., Any]) -> None:
    """Name and version are those of the options, or of the filename."""
    run("init")
    (here / "shop-1.4.2.tar.gz").write_bytes(b"built")
    pushed = run("artifact", "push", "shop-1.4.2.tar.gz")["artifact"]
    assert (pushed["name"], pushed["version"]) == ("shop", "1.4.2")
    run("artifact", "push", "shop-1.4.2.tar.gz", "--name", "shop", "--version", "2")
    listed = run("artifact", "list")["artifacts"]
    assert [one["version"] for one in listed] == ["1.4.2", "2"]


@pytest.mark.parametrize("bad", [b"{", b'{"environment": {"id": ".."}}', b"\xff"])
def test_commands_work_despite_a_broken_record(
    hello: Path, run: Callable[..., Any], capsys: pytest.CaptureFixture[str], bad: bytes
) -> None:
    """All others are listed and destroyed; the status is 6, as the broken one may be a leak."""
    id = run("up")["environment"]["id"]
    record = hello.parent / ".ephemeral" / "environments" / "a-bad.json"
    record.write_bytes(bad)

    assert [one["id"] for one in run("list")["environments"]] == [id]
    assert run("show", id)["environment"]["id"] == id
    assert cli.main(["--json", "reap"]) == 6
    told = json.loads(capsys.readouterr().out)  # fails if there is more than one document
    assert told["broken"] == ["environments/a-bad.json"]
    assert cli.main(["--json", "down", "a-bad", id]) == 6
    assert json.loads(capsys.readouterr().out)["destroyed"] == [id]
    assert record.exists()
    record.unlink()
