"""``doctor``: check what the project and each provider need."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ephemeral import discovery, providers
from pytest_ephemeral.cli.arguments import add_command
from pytest_ephemeral.cli.output import Printer
from pytest_ephemeral.cli.project_checks import check_project
from pytest_ephemeral.errors import EphemeralError, UnavailableError
from pytest_ephemeral.models import to_builtins
from pytest_ephemeral.providers.abilities import SupportsPermissionChecks
from pytest_ephemeral.providers.protocol import Check
from pytest_ephemeral.store.probe import check_conditions

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Subcommands
    from pytest_ephemeral.project import Project


def add_to(commands: Subcommands) -> None:
    """Add the command."""
    add_command(
        commands,
        "doctor",
        doctor,
        "check what this project and each provider need",
        epilog="The exit status is 1 when something that the configuration uses is missing.",
    )


def doctor(arguments: argparse.Namespace, output: Printer) -> int:
    """Check the project and all providers, and print the results."""
    project, own = _project(arguments)
    used = _providers_in_use(project)
    found = {"project": own, **{name: _checks(name) for name in providers.names()}}
    if project is not None:
        for name in sorted(used & found.keys()):
            if all(check.ok for check in found[name]):
                found[name] += _permissions(name, project)
    if output.as_json:
        output.data(
            used=sorted(used),
            checks={
                name: [to_builtins(check) for check in checks] for name, checks in found.items()
            },
        )
    else:
        for name, checks in found.items():
            unused = "" if name == "project" or name in used else " (not used here)"
            output.line(f"{name}{unused}")
            for check in checks:
                _print(check, output, is_used=not unused)
    needed = [check for name in {"project", *used} for check in found[name]]
    return 0 if all(check.ok for check in needed) else 1


def _project(arguments: argparse.Namespace) -> tuple[Project | None, list[Check]]:
    """The project, or None if it can't be opened; and its checks."""
    from pytest_ephemeral.cli.session import open_project

    if arguments.config is None and discovery.find(Path.cwd()) is None:
        return None, [Check("configuration", True, "none here yet: pytest-ephemeral init")]
    try:
        project = open_project(arguments)
    except EphemeralError as error:
        return None, [Check("configuration", False, str(error))]
    checks = [Check("configuration", True, str(project.config.path))]
    try:
        project.ledger.entries()
    except EphemeralError as error:
        return project, [*checks, Check("store", False, str(error))]
    if broken := project.ledger.broken:
        return project, [*checks, Check("store", False, f"can't be read: {', '.join(broken)}")]
    checks.append(_check_store(project))
    return project, [*checks, *check_project(project)]


def _check_store(project: Project) -> Check:
    """Check that a bucket supports conditional writes; a folder needs no check."""
    try:
        if "://" in project.store.url:
            check_conditions(project.store)
    except EphemeralError as error:
        return Check("store", False, str(error))
    return Check("store", True, project.store.url)


def _providers_in_use(project: Project | None) -> set[str]:
    if project is None:
        return set()
    recipes, templates = project.config.images.values(), project.config.templates.values()
    return {one.provider for one in recipes} | {one.provider for one in templates}


def _checks(name: str) -> list[Check]:
    try:
        return list(providers.load(name).doctor())
    except UnavailableError as error:
        return [Check("library", False, str(error))]


def _permissions(name: str, project: Project) -> list[Check]:
    """Check the permissions that the project needs, by requests without effect."""
    provider = providers.load(name)
    if not isinstance(provider, SupportsPermissionChecks):
        return []
    config = project.config
    templates = [one for one in config.templates.values() if one.provider == name]
    recipes = list(config.images.values())
    return list(provider.check_permissions(templates, recipes, config.root))


def _print(check: Check, output: Printer, *, is_used: bool) -> None:
    verdict = "ok  " if check.ok else "FAIL" if is_used else "-   "
    output.line(f"  {verdict} {check.name}: {check.detail}")
    if check.hint and not check.ok:
        output.line(f"       {check.hint}")
