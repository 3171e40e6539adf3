"""The command line's grammar: what it understands, what it says when it does not."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

from pytest_ephemeral import cli, config
from pytest_ephemeral.cli import output
from pytest_ephemeral.cli.detect import Container, Found, Script, look
from pytest_ephemeral.cli.starter import starter

MINIMAL = """\
[images.shop]
provider = "local"
install = ["true"]

[templates.staging]
image = "shop"
command = "serve"
port = 8080
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project's folder, stood in, on a machine of its own."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(tmp_path / "prefixes"))
    folder = tmp_path / "here"
    folder.mkdir()
    (folder / "ephemeral.toml").write_text(MINIMAL)
    monkeypatch.chdir(folder)
    return folder


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "the following arguments are required: COMMAND"),
        ("lst", "unknown command 'lst'. Did you mean 'list'?"),
        ("images prun", "unknown command 'prun'. Did you mean 'prune'?"),
        ("list --jsn", "unknown option '--jsn'. Did you mean '--json'?"),
        ("reap --dry-rum=1", "unknown option '--dry-rum'. Did you mean '--dry-run'?"),
        ("list x", "unexpected argument 'x'"),
        ("list -- x", "this command takes nothing after `--`"),
        ("run staging-x", "the command is missing: put it after `--`"),
        ("run staging-x ls", "unexpected argument 'ls'"),
        ("down", "name the environments, or use --all"),
        ("down x --all", "name the environments, or use --all"),
        ("up --ttl 5", 'expected a duration such as "90s", "5m" or "2h", got \'5\''),
        ("extend x soon", 'expected a duration such as "90s", "5m" or "2h", got \'soon\''),
        ("images prune --keep -1", "expected a number such as 5, got '-1'"),
        ("images prune", "the following arguments are required: --keep"),
        ("artifact", "the following arguments are required: COMMAND"),
    ],
)
def test_a_slip_is_named_with_what_was_probably_meant(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit status 2, nothing on stdout, and the usage of the very verb."""
    assert cli.main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.startswith("usage: pytest-ephemeral")


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("up stagin", 2, "no template 'stagin'. Did you mean 'staging'?"),
        ("bake shp", 2, "no image 'shp'. Did you mean 'shop'?"),
        ("show nothing", 3, "no environment 'nothing'. This store has none."),
        ("images show shop", 3, "no image 'shop' is baked."),
        ("down nothing", 3, "no environment 'nothing'."),
        ("artifact push nothing.whl", 1, "nothing.whl can't be read as an artifact"),
        ("list --config nothing.toml", 2, "nothing.toml: can't be read: No such file"),
        ("init", 2, "ephemeral.toml already exists: left unchanged"),
    ],
)
def test_an_error_is_one_line_and_its_own_exit_status(
    line: str, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """What happened, where it was written, and nothing on stdout."""
    assert cli.main(line.split()) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("error: ")
    assert said in printed.err
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("line", "status", "kind", "said", "hint"),
    [
        ("up stagin", 2, "ConfigurationError", "no template 'stagin'", "Did you mean 'staging'?"),
        ("show nothing", 3, "NothingMatchedError", "no environment 'nothing'", ""),
        ("list --jsn", 2, "UsageError", "unknown option '--jsn'", ""),
        ("lst", 2, "UsageError", "unknown command 'lst'", ""),
        ("artifact push nothing.whl", 1, "ArtifactError", "nothing.whl can't be read", ""),
        ("list --config x/", 2, "ConfigurationError", "can't be read", ""),
    ],
)
def test_an_error_is_json_too_where_json_is_asked_for(
    line: str,
    status: int,
    kind: str,
    said: str,
    hint: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One object on stdout, so that a program need not read what is for people."""
    assert cli.main([*line.split(), "--json"]) == status
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    assert document["version"] == 1
    error = document["error"]
    assert (error["type"], error["exit_status"]) == (kind, status)
    assert said in error["message"]
    assert hint in error["hint"]
    assert said in printed.err


@pytest.mark.parametrize(
    "line",
    ["list --json --config {}", "--json list --config {}", "--config {} --json list"],
)
def test_what_every_verb_takes_may_stand_anywhere(
    line: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the verb or after it, it means the same."""
    monkeypatch.chdir("/")
    assert cli.main(line.format(here / "ephemeral.toml").split()) == 0
    assert json.loads(capsys.readouterr().out) == {"version": 1, "environments": [], "broken": []}


@pytest.mark.parametrize("line", ["list", "images", "images list", "artifact list", "reap"])
def test_nothing_is_no_error(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said to whoever watches; a program that reads stdout reads nothing."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")  # where others' containers may be overdue
    assert cli.main(line.split()) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert cli.main([*line.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 1


def test_without_a_configuration_the_next_command_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever has none yet is told how to get one."""
    (tmp_path / "here" / "ephemeral.toml").unlink()
    assert cli.main(["list"]) == 2
    assert "pytest-ephemeral init" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["--help", "up --help", "images --help", "images prune --help"])
def test_help_works_even_with_a_broken_configuration(
    verb: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who made a mistake has to be able to look things up."""
    (here / "ephemeral.toml").write_text("= broken")
    assert cli.main(verb.split()) == 0
    assert capsys.readouterr().out.startswith("usage: pytest-ephemeral")


def test_a_fault_of_ours_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line and whom to tell; the traceback for who asks for it."""

    def broken(*_: object) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr("pytest_ephemeral.cli.environments.open_project", broken)
    assert cli.main(["list"]) == 1
    assert capsys.readouterr().err == (
        "error: ZeroDivisionError: division by zero\n"
        "This is a bug. Please report it with the output of --traceback.\n"
    )
    with pytest.raises(ZeroDivisionError):
        cli.main(["list", "--traceback"])


def test_reap_without_boto3_names_the_extra(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An account can't be searched then: an error in one line, and not a bug of ours."""
    for name in ("boto3", "botocore", "botocore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["reap", "--account", "123456789012"]) == 6
    said = capsys.readouterr().err
    assert "AWS needs boto3, which is not installed: pip install 'pytest-ephemeral[aws]'" in said
    assert "This is a bug" not in said


def test_ctrl_c_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """As every program in a shell."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pytest_ephemeral.cli.environments.open_project", interrupted)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_reader_that_goes_away_is_no_error_of_ours(here: Path) -> None:
    """`pytest-ephemeral schema | head -1` prints no traceback."""
    read, write = os.pipe()
    os.close(read)
    program = "import sys; from pytest_ephemeral.cli import main; sys.exit(main(['schema']))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        stdout=write,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        timeout=60,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")


def test_the_schema_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    """For editors: `pytest-ephemeral schema > ephemeral.schema.json`."""
    assert cli.main(["schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "pytest-ephemeral"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("variables", "terminal", "pipe"),
    [
        ({}, True, False),
        ({"NO_COLOR": "1"}, False, False),
        ({"NO_COLOR": ""}, True, False),
        ({"FORCE_COLOR": "1"}, True, True),
        ({"NO_COLOR": "1", "FORCE_COLOR": "1"}, False, False),
        ({"TERM": "dumb"}, False, False),
    ],
)
def test_colours_are_decided_for_each_stream(
    variables: dict[str, str], terminal: bool, pipe: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By who reads it, unless NO_COLOR or FORCE_COLOR decides; NO_COLOR has the last word."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert output.uses_colour(Terminal()) is terminal
    assert output.uses_colour(io.StringIO()) is pipe


def test_a_table_in_a_pipe_is_a_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    """However long a cell is, and whatever brackets are in it."""
    output.Printer(as_json=False).table(("A", "B"), [("x" * 300, "[bold]y[/]")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].split() == ["x" * 300, "[bold]y[/]"]


def test_a_table_fits_a_terminal_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 60 columns cells are folded; ids stay whole, and a state has its colour."""
    terminal = Terminal()
    monkeypatch.setattr("sys.stdout", terminal)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    row = ("staging-7f3k2q", "expired", "http://127.4.9.3:8080/a/long/path", "anna@laptop:4711")
    output.Printer(as_json=False).table(("ID", "STATE", "URL", "OWNER"), [row])
    printed = terminal.getvalue()
    assert "\x1b[31mexpired\x1b[0m" in printed
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert all(len(line.rstrip()) <= 60 for line in plain.splitlines())
    assert "staging-7f3k2q" in plain
    urls = "".join(line[24:45].strip() for line in plain.splitlines()[1:])
    assert "/a/long/path" in urls


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0, "0s"), (59.9, "59s"), (61, "1m 1s"), (7199, "1h 59m"), (90000, "1d 1h"), (-5, "0s")],
)
def test_times_are_said_in_their_two_largest_units(seconds: float, expected: str) -> None:
    """Nobody needs the seconds of a day."""
    assert output.span(seconds) == expected


def test_init_writes_an_example_where_there_is_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It can be read, and says what to do next."""
    (here / "ephemeral.toml").unlink()
    assert cli.main(["init"]) == 0
    printed = capsys.readouterr()
    assert printed.out == f"{here / 'ephemeral.toml'}\n"
    assert "pytest-ephemeral up" in printed.err
    assert config.load(here / "ephemeral.toml").template(None).name == "staging"


def test_init_uses_a_console_script(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The one called as the project is; the wheel as its builder will name it."""
    (here / "ephemeral.toml").unlink()
    (here / "pyproject.toml").write_text(
        '[project]\nname = "My.Shop"\nscripts = { tool = "a:b", "My.Shop" = "a:c" }\n'
    )
    assert cli.main(["init", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["script"] == "My.Shop"
    read = config.load(here / "ephemeral.toml")
    assert read.images["my-shop"].artifact == "dist/my_shop-*.whl"
    assert read.template(None).processes() == {"app": "$PREFIX/bin/My.Shop"}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("files", "folder", "install", "command"),
    [
        (["app.py", "requirements/base.txt"], ".", '"$PREFIX/requirements/base.txt"', " app:app"),
        (["app.py", "deploy/requirements.txt"], ".", "deploy/requirements.txt", " app:app"),
        (["shop/__init__.py", "shop/requirements.txt"], ".", '"$PREFIX/shop/req', " shop:app"),
        (["backend/app.py", "backend/requirements.txt"], "backend", '"$PREFIX/req', " app:app"),
        (["app.py", "docs/requirements.txt"], ".", "install -q flask", " app:app"),
    ],
)  # fmt: skip
def test_init_finds_requirements_in_a_subfolder(
    here: Path, files: list[str], folder: str, install: str, command: str
) -> None:
    """A subfolder with requirements is the artifact if it is not a package."""
    for name in files:
        (here / name).parent.mkdir(exist_ok=True)
        (here / name).write_text("from flask import Flask\napp = Flask(__name__)\n")
    tree = look(here).source
    assert tree is not None
    assert tree.folder == folder
    assert install in tree.install[-1]
    assert command in tree.command


def test_init_uses_a_dockerfile(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Alone it is the default template; beside a console script, another one."""
    (here / "ephemeral.toml").unlink()
    (here / "Dockerfile").write_text("FROM scratch\nEXPOSE 9000/tcp\n")
    assert cli.main(["init", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["container"] == "here"
    read = config.load(here / "ephemeral.toml")
    assert read.template(None).port == 9000
    assert read.template(None).provider == "docker"
    both = starter(Found(Script("shop", "shop"), Container("shop", 80)))
    assert set(tomllib.loads(both)["templates"]) == {"staging", "staging-docker"}


COMPOSE = """
services:
  db: { image: "postgres:16" }
  web:
    build: .
    ports: ["127.0.0.1:80:9000/tcp"]
  worker: { build: { context: ./, dockerfile: Dockerfile } }
  proxy: { build: { context: proxy, target: small, args: ["V=1"] }, expose: [8000] }
"""


def test_init_uses_a_compose_file(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The URL leads to the first service with a port; what services build is baked, each once."""
    (here / "ephemeral.toml").unlink()
    (here / "docker-compose.yml").write_text(COMPOSE)
    (here / "Dockerfile").write_text("FROM scratch\nEXPOSE 9000\n")
    assert cli.main(["init", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["service"] == "web"
    read = config.load(here / "ephemeral.toml")
    template: Any = read.template("staging-compose")
    assert (template.file, template.service, template.port) == ("docker-compose.yml", "web", 9000)
    assert template.replaced == {
        "web": "here-container",
        "worker": "here-container",
        "proxy": "proxy-container",
    }
    proxy: Any = read.images["proxy-container"]
    assert (proxy.context, proxy.target, proxy.build_args) == ("proxy", "small", {"V": "1"})


@pytest.mark.parametrize("text", ["", "services: []", "services: { a: }", "a: [b"])
def test_init_and_a_compose_file_of_nothing(here: Path, text: str) -> None:
    """What is no Compose file is refused; one without services is as if it were not there."""
    (here / "ephemeral.toml").unlink()
    (here / "compose.yaml").write_text(text)
    assert cli.main(["init"]) == (2 if text == "a: [b" else 0)


@pytest.mark.parametrize("name", ["shop", "Shop_2", "x" * 80, "ß", '"\\', "---"])
def test_whatever_a_project_is_called_what_init_writes_can_be_read(name: str, here: Path) -> None:
    """Names become table names, globs and strings of TOML."""
    text = starter(Found(Script(name, name), Container(name, 80)))
    tomllib.loads(text)
    (here / "ephemeral.toml").write_text(text)
    assert config.load(here / "ephemeral.toml").images


def test_init_never_overwrites(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither the file it would write nor one that is named, and no table in a pyproject.toml."""
    other = tmp_path / "other.toml"
    other.write_text("mine")
    assert cli.main(["init", "--config", str(other)]) == 2
    assert other.read_text() == "mine"
    (here / "ephemeral.toml").unlink()
    (here / "pyproject.toml").write_text("[tool.pytest-ephemeral]")
    assert cli.main(["init"]) == 2
    assert "pyproject.toml already exists" in capsys.readouterr().err
    assert not (here / "ephemeral.toml").exists()


def test_doctor_says_what_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    """Every provider's needs, those of the project first."""
    status = cli.main(["doctor"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert said.startswith("project\n  ok   configuration: ")
    assert "\nlocal\n" in said


def test_doctor_fails_for_a_configuration_that_can_not_be_read(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on to the providers all the same: they may be why."""
    (here / "ephemeral.toml").write_text("= broken")
    assert cli.main(["doctor", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert checks["project"][0]["ok"] is False
    assert checks["local"]
