"""``images vet``: check that machines resumed from one memory share no random numbers or keys."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from typing import TYPE_CHECKING

from pytest_ephemeral import providers
from pytest_ephemeral.cli import progress
from pytest_ephemeral.cli.output import Printer
from pytest_ephemeral.cli.session import lifecycle, open_project
from pytest_ephemeral.environments import vetting
from pytest_ephemeral.errors import EphemeralError, NothingMatchedError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.abilities import SupportsFreeze
from pytest_ephemeral.providers.protocol import RESUMED

if TYPE_CHECKING:
    from pytest_ephemeral.environments.lifecycle import Lifecycle
    from pytest_ephemeral.project import Project
    from pytest_ephemeral.tables import Template


def vet(arguments: argparse.Namespace, output: Printer) -> int:
    """Resume two machines of each template of the image, and compare them."""
    project = open_project(arguments)
    templates = _find_templates(project, arguments.image)
    ok = True
    found: dict[str, list[vetting.Finding]] = {}
    with progress.show() as say, lifecycle(project, say) as made:
        for template in templates:
            found[template.name] = _vet(made, template)
    for name, findings in found.items():
        for finding in findings:
            ok = ok and finding.ok
            mark = "ok  " if finding.ok else "SAME" if "clock" not in finding.what else "OFF "
            output.line(f"{name}: {mark} {finding.what}: {finding.detail}")
    if output.as_json:
        output.data(findings=found, ok=ok)
    return 0 if ok else 1


def _find_templates(project: Project, image: str) -> list[Template]:
    project.config.recipe(image)  # for an unknown name, the error names the closest one
    templates = [
        template
        for template in project.config.templates.values()
        if template.image == image and getattr(template, "warm", False)
    ]
    if not templates:
        raise NothingMatchedError(
            f"no template of the image {image!r} is resumed from memory: set `warm = true` in one"
        )
    return templates


def _vet(made: Lifecycle, template: Template) -> list[vetting.Finding]:
    """Compare two machines of a template. If they share something, refuse their memory."""
    provider = providers.load(template.provider)
    assert isinstance(provider, SupportsFreeze)
    with ExitStack() as cleanup:

        def bring_up() -> Environment:
            environment = made.bring_up(template).environment
            cleanup.callback(made.destroy, environment)
            return environment

        first = bring_up()
        if RESUMED not in first.handle:  # it was booted, and its memory saved
            first = bring_up()
        second = bring_up()
        for one in (first, second):
            if RESUMED not in one.handle:
                raise EphemeralError(f"{one.id} was not resumed from memory, so nothing was vetted")
        findings = vetting.compare([first, second])
        if bad := [finding for finding in findings if not finding.ok]:
            why = "; ".join(f"{finding.what}: {finding.detail}" for finding in bad)
            provider.refuse_memory(first, why)
    return findings
