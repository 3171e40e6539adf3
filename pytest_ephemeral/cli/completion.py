"""Completion in bash, zsh and fish: of commands, options, and the names in this project.

The shell runs this program with the text typed so far, and argcomplete prints the completions.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

#: The environment variable that argcomplete's shell function sets.
VARIABLE = "_ARGCOMPLETE"


def complete(parser: argparse.ArgumentParser) -> None:
    """If a shell requests completions, print them and exit; otherwise do nothing."""
    if VARIABLE not in os.environ:
        return
    try:
        import argcomplete
    except ImportError:
        return
    _attach(parser)
    argcomplete.autocomplete(parser)


def _attach(parser: argparse.ArgumentParser) -> None:
    """Attach to each argument that is a name the function that lists all such names."""
    completers: dict[str, Callable[..., Iterable[str]]] = {
        "ENV": _environments,
        "TEMPLATE": _templates,
        "IMAGE": _images,
        "NAME": _promotions,
    }
    for action in parser._actions:  # noqa: SLF001 - argparse has no public list of them
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for inner in action.choices.values():
                _attach(inner)
        elif action.metavar in completers:
            action.completer = completers[str(action.metavar)]  # type: ignore[attr-defined]


def _project(arguments: argparse.Namespace) -> Any:
    from pytest_ephemeral.project import Project

    return Project.open(getattr(arguments, "config", None), Path.cwd())


def _environments(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    return [one.id for one in _project(parsed_args).ledger.entries()]


def _templates(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    return list(_project(parsed_args).config.templates)


def _images(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    return list(_project(parsed_args).config.images)


def _promotions(parsed_args: argparse.Namespace, **_: Any) -> list[str]:
    return list(_project(parsed_args).config.promotions)
