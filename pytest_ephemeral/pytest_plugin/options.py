"""The options on pytest's command line, and their twins in its configuration file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

GROUP: Final = "ephemeral"
BAKE_MODES: Final = ("missing", "always", "never")
KEEP_MODES: Final = ("never", "failed", "always")

#: What a stage may be called: it becomes part of a path in the store.
STAGE_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Option:
    """One option that takes a value.

    Attributes:
        name: Without its dashes.
        metavar: What stands for the value in ``--help``.
        default: What it is when nobody says.
        choices: The values there are; empty when it may be anything.
        ini: Whether the configuration file may set it.
    """

    name: str
    metavar: str
    help: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    ini: bool = True

    @property
    def key(self) -> str:
        """Its name in the configuration file, and on ``config.option``."""
        return self.name.replace("-", "_")


OPTIONS: Final = (
    Option(
        "ephemeral-template",
        "NAME",
        "the template of tests that name none (by default default-template, or the only one)",
    ),
    Option(
        "ephemeral-bake",
        "MODE",
        "bake images that are missing, always, or never (then a missing one is an error)",
        "missing",
        BAKE_MODES,
    ),
    Option(
        "ephemeral-keep",
        "WHEN",
        "leave environments up: never, those of failed tests, or always",
        "never",
        KEEP_MODES,
    ),
    Option(
        "ephemeral-attach",
        "REF",
        "use a running environment instead, by its id, or a plain URL; it is never torn down",
        ini=False,
    ),
    Option(
        "ephemeral-stage",
        "NAME",
        "the name under which the outcome is recorded against the image that was tested",
        "tests",
    ),
    Option("ephemeral-report", "FILE", "write one JSON document of all that was brought up"),
    Option("ephemeral-logs", "DIR", "write every environment's logs there, one folder each"),
    Option("ephemeral-config", "FILE", "the ephemeral.toml to use (by default found from rootdir)"),
)


@dataclass(frozen=True, slots=True)
class Settings:
    """What one run was told to do. Paths are absolute."""

    template: str | None
    bake: str
    keep: str
    attach: str | None
    stage: str
    report: Path | None
    logs: Path | None
    config: Path | None


def add(parser: pytest.Parser) -> None:
    """Declare every option and its twin."""
    group = parser.getgroup(GROUP, "ephemeral environments")
    group.addoption(
        "--ephemeral-env",
        action="store_true",
        default=False,
        help="bring up the environments that the selected tests need, and tear them all down",
    )
    for option in OPTIONS:
        text = option.help + (f" (default: {option.default})" if option.default else "")
        group.addoption(
            f"--{option.name}",
            metavar=option.metavar,
            default=None,
            choices=option.choices or None,
            help=text,
        )
        if option.ini:
            parser.addini(option.key, f"--{option.name}: {text}", default="")


def read(config: pytest.Config) -> Settings:
    """What this run was told to do, on the command line or else in the configuration file.

    Raises:
        pytest.UsageError: A value in the configuration file is none that there is.
    """
    values = {option.key: _value(config, option) for option in OPTIONS}
    stage = values["ephemeral_stage"] or ""
    if not STAGE_PATTERN.fullmatch(stage):
        raise pytest.UsageError(
            f"--ephemeral-stage: expected letters, digits, '.', '_' and '-', got {stage!r}"
        )
    return Settings(
        template=values["ephemeral_template"],
        bake=values["ephemeral_bake"] or "",
        keep=values["ephemeral_keep"] or "",
        attach=values["ephemeral_attach"],
        stage=stage,
        report=_path(config, "ephemeral_report"),
        logs=_path(config, "ephemeral_logs"),
        config=_path(config, "ephemeral_config"),
    )


def _value(config: pytest.Config, option: Option) -> str | None:
    given: str | None = config.getoption(option.key)
    if given is None and option.ini:
        given = str(config.getini(option.key)) or None
        if given is not None and option.choices and given not in option.choices:
            raise pytest.UsageError(
                f"{config.inipath}: {option.key}: expected one of {', '.join(option.choices)}, "
                f"got {given!r}"
            )
    return option.default if given is None else given


def _path(config: pytest.Config, key: str) -> Path | None:
    """A file or folder: as typed, from where it was typed; else from the configuration file."""
    if given := config.getoption(key):
        return Path(config.invocation_params.dir, given).absolute()
    if written := config.getini(key):
        folder = config.inipath.parent if config.inipath else config.rootpath
        return Path(folder, str(written)).absolute()
    return None
