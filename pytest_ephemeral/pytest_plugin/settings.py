"""The settings of a run with ``--ephemeral-env``."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Final

import pytest

from pytest_ephemeral import discovery
from pytest_ephemeral.broker.protocol import ClientProcess, Settings
from pytest_ephemeral.pytest_plugin import hooks
from pytest_ephemeral.pytest_plugin.options import EARLY, OPTIONS, Option

#: The valid names of stages: a name becomes part of a path in the store.
STAGE_PATTERN: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def read(config: pytest.Config) -> Settings:
    """Read the settings from the command line and the configuration file.

    Raises:
        pytest.UsageError: A value or a path is not valid.
    """
    values = {option.key: _value(config, option) for option in OPTIONS}
    stage = values["ephemeral_stage"] or ""
    if not STAGE_PATTERN.fullmatch(stage):
        raise pytest.UsageError(
            f"--ephemeral-stage: expected letters, digits, '.', '_' and '-', got {stage!r}"
        )
    if values["ephemeral_approval"] is not None and values["ephemeral_attach"] is not None:
        raise pytest.UsageError(
            "--ephemeral-approval can't be combined with --ephemeral-attach: it is for what "
            "the run brings up. Leave it out, and run `pytest-ephemeral approval request ENV`"
        )
    return Settings(
        template=values["ephemeral_template"],
        bake=values["ephemeral_bake"] or "",
        keep=values["ephemeral_keep"] or "",
        attach=values["ephemeral_attach"],
        stage=stage,
        report=_file(config, "ephemeral_report"),
        logs=_folder(config, "ephemeral_logs"),
        config=_path(config, "ephemeral_config"),
        approval=_seconds(values["ephemeral_approval"]),
        start=discovery.common_folder(config.args, config.invocation_params.dir),
        early=tuple(config.getini(EARLY)),
    )


def get_timeline(config: pytest.Config) -> Path | None:
    """The file for the timeline of this run, or None.

    Raises:
        pytest.UsageError: It is neither SVG nor HTML, or is a folder.
    """
    path = _file(config, "ephemeral_timeline")
    if path is not None and path.suffix.lower() not in {".svg", ".html", ".htm"}:
        raise pytest.UsageError(
            f"--ephemeral-timeline: expected a name that ends in .svg or .html, got {path.name!r}"
        )
    return path


def process(config: pytest.Config) -> ClientProcess:
    """The facts about this process that the owner needs."""
    return ClientProcess(
        environ=dict(os.environ),
        path=tuple(sys.path),
        hooks=hooks.implementers(config.pluginmanager),
    )


def _seconds(given: str | None) -> float | None:
    """Parse a number of seconds.

    Raises:
        pytest.UsageError: It is not a number of seconds.
    """
    if given is None:
        return None
    try:
        seconds = float(given)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise pytest.UsageError(
            f"--ephemeral-approval: expected seconds such as 1800, got {given!r}"
        )
    return seconds


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


def _file(config: pytest.Config, key: str) -> Path | None:
    """The path of a file to write.

    Raises:
        pytest.UsageError: It is a folder.
    """
    path = _path(config, key)
    if path is not None and path.is_dir():
        raise pytest.UsageError(f"{_as_typed(key)}: {path} is a folder: name a file in it")
    return path


def _folder(config: pytest.Config, key: str) -> Path | None:
    """The path of a folder to write to, which need not exist.

    Raises:
        pytest.UsageError: It, or a folder above it, is a file.
    """
    path = _path(config, key)
    for each in (path, *path.parents) if path is not None else ():
        if each.exists():
            if not each.is_dir():
                raise pytest.UsageError(f"{_as_typed(key)}: {each} is a file: name a folder")
            break
    return path


def _as_typed(key: str) -> str:
    """The name of an option on the command line."""
    return f"--{key.replace('_', '-')}"


def _path(config: pytest.Config, key: str) -> Path | None:
    """A path: from the command line, relative to the current folder; or the configuration file."""
    if given := config.getoption(key):
        return Path(config.invocation_params.dir, given).absolute()
    if written := config.getini(key):
        folder = config.inipath.parent if config.inipath else config.rootpath
        return Path(folder, str(written)).absolute()
    return None
