"""The help's width, shell completion, and the project checks of ``doctor``."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

import pytest_ephemeral
from pytest_ephemeral import cli
from support.lacks import skip_without
from support.processes import PROGRAM, run
from unit.test_docs_config_cli import PARSER, commands

CONFIGURATION = """
[images.shop]
provider = "local"
artifact = "dist/*.whl"
install = "deploy/install.sh"
pass-env = ["SHOP_LICENSE"]

[images.site]
provider = "local"
install = "good.sh"

[templates.staging]
image = "shop"
command = "serve"
port = 8080
env = { KEY = "{env:SHOP_KEY}" }

[templates.staging-german]
image = "site"
command = "serve"
port = 8080
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with many missing files and variables."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(tmp_path / "prefixes"))
    for name in ("SHOP_KEY", "SHOP_LICENSE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "ephemeral.toml").write_text(CONFIGURATION)
    (tmp_path / "good.sh").write_text("echo\n")
    (tmp_path / "deploy").mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ["", *(name for name, _ in commands(PARSER))])
def test_help_fits_80_columns(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """This is the usual width of a new terminal."""
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main([*name.split(), "--help"]) == 0
    for line in capsys.readouterr().out.splitlines():
        assert len(line) <= 80, line


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("pytest-ephemeral hist", {"history "}),
        ("pytest-ephemeral images pr", {"prune "}),
        ("pytest-ephemeral reap --dr", {"--dry-run "}),
        ("pytest-ephemeral up st", {"staging", "staging-german"}),
        ("pytest-ephemeral bake sh", {"shop "}),
    ],
)
def test_shell_completion_offers_matching_words(here: Path, typed: str, offered: set[str]) -> None:
    """These are commands, options, and the names in the project's configuration."""
    answer = here / "answer"
    asked = {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_SHELL": "bash",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(answer),
        "COMP_LINE": typed,
        "COMP_POINT": str(len(typed)),
        "_ARGCOMPLETE_IFS": "\n",
    }
    run(PROGRAM, environ={**os.environ, **asked}, timeout=60)
    assert set(answer.read_text().split("\n")) == offered


ZSH = r"""
zmodload zsh/zpty
zpty shell zsh -f -i
zpty -w shell 'autoload -U compinit; compinit -u -D
eval "$(register-python-argcomplete pytest-ephemeral)"; echo READ""Y'
zpty -r shell line '*READY*'
zpty -n -w shell $'pytest-ephemeral hist\t'
zpty -r shell line '*history*' && print history
zpty -d shell
"""
SHELLS = {
    "bash": """
eval "$(register-python-argcomplete pytest-ephemeral)"
COMP_LINE='pytest-ephemeral hist'; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
_python_argcomplete pytest-ephemeral; printf '%s' "${COMPREPLY[@]}"
""",
    "zsh": ZSH,
    "fish": """
register-python-argcomplete --shell fish pytest-ephemeral | source
complete -C 'pytest-ephemeral hist' | cut -f 1
""",
}


@pytest.mark.parametrize("shell", SHELLS)
def test_documented_shell_completion_works(here: Path, shell: str) -> None:
    """A real shell runs the line of the reference page."""
    if shutil.which(shell) is None:
        skip_without(shell, "apt-get install zsh fish")
    environ = {**os.environ, "PATH": f"{PROGRAM.parent}:{os.environ['PATH']}"}
    done = run(shell, "-c", SHELLS[shell], environ=environ, timeout=60)
    assert done.stdout.strip() == "history"


def test_doctor_reports_project_problems(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would fail a bake or a launch later."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STAT", "/x")
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr().out
    assert "FAIL image shop: no file matches 'dist/*.whl'" in printed
    assert "FAIL image shop: install = 'deploy/install.sh': No such file" in printed
    assert "FAIL image shop: pass-env: SHOP_LICENSE not set" in printed
    assert "FAIL template staging: {env:SHOP_KEY} is not set" in printed
    assert "ok   image site: install script good.sh" in printed
    assert "did you mean PYTEST_EPHEMERAL_STATE?" in printed


def test_doctor_ignores_failures_of_unused_providers(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A project with only local environments needs no container engine."""
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere")
    cli.main(["doctor"])
    unused = capsys.readouterr().out.partition("\ndocker (not used here)\n")[2]
    assert unused.splitlines()[0].startswith("  -    ")
    cli.main(["doctor", "--json"])
    assert json.loads(capsys.readouterr().out)["used"] == ["local"]


def test_the_package_exposes_its_version() -> None:
    """It is the version in the package's metadata."""
    from importlib.metadata import version

    assert pytest_ephemeral.__version__ == version("pytest-ephemeral")
