"""The command line's grammar, and its messages for usage errors."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_ephemeral import cli
from pytest_ephemeral.cli import output
from unit.test_config import MINIMAL


@pytest.fixture(autouse=True)
def here(workplace: Path) -> Path:
    """The folder of a small project."""
    (workplace / "ephemeral.toml").write_text(MINIMAL)
    return workplace


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("", "a command is missing: `pytest-ephemeral --help` lists them"),
        ("lst", "unknown command 'lst'. Did you mean 'list'?"),
        ("images prun", "unknown command 'prun'. Did you mean 'prune'?"),
        ("list --jsn", "unknown option '--jsn'. Did you mean '--json'?"),
        ("reap --dry-rum=1", "unknown option '--dry-rum'. Did you mean '--dry-run'?"),
        ("list x", "unexpected argument 'x'"),
        ("list -- x", "this command takes nothing after `--`"),
        ("run staging-x", "the command is missing: put it after `--`"),
        ("run staging-x ls", "unexpected argument 'ls'"),
        ("down", "name environments, or use --all"),
        ("down x --all", "name environments, or use --all, not both"),
        ("up --ttl 0s", "expected more than 0, got '0s'"),
        ("up --ttl 5", 'expected a duration such as "90s", "5m" or "2h", got \'5\''),
        ("extend x soon", 'expected a duration such as "90s", "5m" or "2h", got \'soon\''),
        ("images prune --keep -1", "expected a number such as 5, got '-1'"),
        ("images prune", "the following arguments are required: --keep"),
        ("artifact", "a command is missing: `pytest-ephemeral artifact --help` lists them"),
    ],
)
def test_usage_errors_exit_with_2_and_explain_the_mistake(
    line: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """stdout stays empty, and stderr has the usage."""
    assert cli.main(line.split()) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert said in printed.err
    assert printed.err.startswith("usage: pytest-ephemeral")


@pytest.mark.parametrize(
    ("line", "status", "kind", "said", "hint"),
    [
        ("up stagin", 2, "ConfigurationError", "no template 'stagin'", "Did you mean 'staging'?"),
        ("bake shp", 2, "ConfigurationError", "no image 'shp'", "Did you mean 'shop'?"),
        ("show x", 3, "NothingMatchedError", "no environment 'x'. The store has no env", ""),
        ("history prod", 2, "ConfigurationError", "no promotion 'prod'. Define it in", ""),
        ("images show shop", 3, "NothingMatchedError", "no image 'shop' is baked.", ""),
        ("down x", 3, "NothingMatchedError", "no environment 'x'.", ""),
        ("artifact push x.whl", 1, "ArtifactError", "x.whl can't be read as an artifact", ""),
        ("list --config x", 2, "ConfigurationError", "x: can't be read: No such file", ""),
        ("init", 2, "ConfigurationError", "ephemeral.toml already exists: left unchanged", ""),
        ("list --jsn", 2, "UsageError", "unknown option '--jsn'", ""),
        ("lst", 2, "UsageError", "unknown command 'lst'", ""),
    ],
)
def test_errors_are_printed_as_text_and_as_json(
    line: str, status: int, kind: str, said: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each error has its own exit status; stdout is empty, or one JSON object."""
    assert cli.main(line.split()) == status
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("usage: " if kind == "UsageError" else "error: ")
    assert said in printed.err
    assert hint in printed.err
    assert "Traceback" not in printed.err

    assert cli.main([*line.split(), "--json"]) == status
    printed = capsys.readouterr()
    document = json.loads(printed.out)
    error = document["error"]
    assert (document["version"], error["type"], error["exit_status"]) == (1, kind, status)
    assert said in error["message"]
    assert hint in error["hint"]
    assert said in printed.err


@pytest.mark.parametrize(
    "line",
    ["list --json --config {}", "--json list --config {}", "--config {} --json list"],
)
def test_global_options_may_stand_before_or_after_the_command(
    line: str, here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both positions mean the same."""
    monkeypatch.chdir("/")
    assert cli.main(line.format(here / "ephemeral.toml").split()) == 0
    assert json.loads(capsys.readouterr().out) == {"version": 1, "environments": [], "broken": []}


@pytest.mark.parametrize("line", ["list", "images", "images list", "artifact list", "reap"])
def test_empty_lists_are_no_errors(
    line: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message goes to stderr, so a program that reads stdout gets nothing."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")  # skips expired containers of others
    assert cli.main(line.split()) == 0
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert cli.main([*line.split(), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["version"] == 1


def test_missing_configuration_error_suggests_init(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new user learns how to create a configuration."""
    (tmp_path / "here" / "ephemeral.toml").unlink()
    assert cli.main(["list"]) == 2
    assert "pytest-ephemeral init" in capsys.readouterr().err


@pytest.mark.parametrize("verb", ["--help", "up --help", "images --help", "images prune --help"])
def test_help_works_even_with_a_broken_configuration(
    verb: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A user who made a mistake in the file needs the help."""
    (here / "ephemeral.toml").write_text("= broken")
    assert cli.main(verb.split()) == 0
    assert capsys.readouterr().out.startswith("usage: pytest-ephemeral")


def test_an_unexpected_error_is_reported_as_a_bug(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message is short; ``--traceback`` shows the traceback."""

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
    """The account can't be searched: that is a short error, not a bug of ours."""
    for name in ("boto3", "botocore", "botocore.exceptions"):
        monkeypatch.setitem(sys.modules, name, None)
    assert cli.main(["reap", "--account", "123456789012"]) == 6
    said = capsys.readouterr().err
    assert "AWS needs boto3, which is not installed: pip install 'pytest-ephemeral[aws]'" in said
    assert "This is a bug" not in said


def test_ctrl_c_exits_with_130(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """This is the convention of shells."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("pytest_ephemeral.cli.environments.open_project", interrupted)
    assert cli.main(["list"]) == 130
    assert capsys.readouterr().err == "interrupted\n"


def test_a_closed_stdout_prints_no_traceback(here: Path) -> None:
    """``pytest-ephemeral schema | head -1`` closes the pipe early."""
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
    """Editors use it: ``pytest-ephemeral schema > ephemeral.schema.json``."""
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
    """A terminal gets colours; FORCE_COLOR overrides that, and NO_COLOR overrides both."""
    for name in ("NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert output.uses_colour(Terminal()) is terminal
    assert output.uses_colour(io.StringIO()) is pipe


def test_a_table_in_a_pipe_has_one_line_for_each_row(capsys: pytest.CaptureFixture[str]) -> None:
    """Long cells are not wrapped, and brackets are not interpreted as markup."""
    output.Printer(as_json=False).table(("A", "B"), [("x" * 300, "[bold]y[/]")])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[1].split() == ["x" * 300, "[bold]y[/]"]


def test_tables_wrap_to_the_terminal_width(monkeypatch: pytest.MonkeyPatch) -> None:
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
def test_durations_show_their_two_largest_units(seconds: float, expected: str) -> None:
    """The seconds of a duration of days are not useful."""
    assert output.span(seconds) == expected


def test_doctor_reports_project_and_providers(capsys: pytest.CaptureFixture[str]) -> None:
    """The project's checks come first, then those of every provider."""
    status = cli.main(["doctor"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert said.startswith("project\n  ok   configuration: ")
    assert "\nlocal\n" in said


def test_doctor_fails_for_an_unreadable_configuration(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The providers are still checked."""
    (here / "ephemeral.toml").write_text("= broken")
    assert cli.main(["doctor", "--json"]) == 1
    checks = json.loads(capsys.readouterr().out)["checks"]
    assert checks["project"][0]["ok"] is False
    assert checks["local"]
