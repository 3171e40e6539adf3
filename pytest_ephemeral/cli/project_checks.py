"""The checks of `doctor` on a project: artifacts, scripts, variables, the chosen Python."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator
from typing import Final

from pytest_ephemeral import interpolation
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.images.archives import baker_of
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers import install_script
from pytest_ephemeral.providers.protocol import Check
from pytest_ephemeral.tables import Recipe, Template

#: The variables of our own that are read; see docs/reference/environment-variables.md.
_VARIABLES: Final = (
    "PYTEST_EPHEMERAL_STATE",
    "PYTEST_EPHEMERAL_PREFIX_ROOT",
    "PYTEST_EPHEMERAL_SIGNING_KEY",
    "PYTEST_EPHEMERAL_REPOSITORY_TOKEN",
    "PYTEST_EPHEMERAL_REPOSITORY_USER",
    "PYTEST_EPHEMERAL_REPOSITORY_PASSWORD",
)


def check_project(project: Project) -> Iterator[Check]:
    """Check all images and templates of a project; nothing is baked or launched."""
    yield from _check_variables()
    for recipe in project.config.images.values():
        yield from _check_image(project, recipe)
    for template in project.config.templates.values():
        yield from _check_template(template)


def _check_variables() -> Iterator[Check]:
    for name in sorted(os.environ.keys() - set(_VARIABLES)):
        if near := difflib.get_close_matches(name, _VARIABLES, n=1, cutoff=0.9):
            hint = f"did you mean {near[0]}?"
            yield Check("environment variables", False, f"{name} is not one that is read", hint)


def _check_image(project: Project, recipe: Recipe) -> Iterator[Check]:
    name = f"image {recipe.name}"
    if recipe.artifact is not None:
        yield _check_artifact(project, recipe, name)
    if isinstance(recipe.install, str):
        script = project.config.root / recipe.install
        try:
            install_script.command(script.read_bytes(), str(script))
        except OSError as error:
            yield Check(name, False, f"install = {recipe.install!r}: {error.strerror}")
        except EphemeralError as error:
            yield Check(name, False, str(error))
        else:
            yield Check(name, True, f"install script {recipe.install}")
    unset = [one for one in recipe.pass_env if one not in os.environ]
    if unset:
        yield Check(name, False, f"pass-env: {', '.join(unset)} not set", "export it before baking")
    if getattr(recipe, "python", None) is not None:
        try:
            baker_of(recipe.provider).resolve(recipe, project.config.root)
        except EphemeralError as error:
            yield Check(name, False, str(error))


def _check_artifact(project: Project, recipe: Recipe, name: str) -> Check:
    if recipe.build is not None:
        return Check(name, True, f"artifact {recipe.artifact}, built when its sources change")
    root, wanted = project.config.root, recipe.artifact or ""
    if (root / wanted).is_dir():
        return Check(name, True, f"artifact {wanted}, a folder")
    try:
        found = project.artifacts.find(wanted, root)
    except EphemeralError as error:
        return Check(name, False, str(error))
    return Check(name, True, f"artifact {found.filename}")


def _check_template(template: Template) -> Iterator[Check]:
    headers = template.ready.headers if template.ready else {}
    values = [*template.env.values(), *headers.values()]
    names = {name for value in values for name in interpolation.references(value, "env")}
    for name in sorted(names - os.environ.keys()):
        yield Check(
            f"template {template.name}",
            False,
            f"{{env:{name}}} is not set",
            f"export {name}=…, or make it a secret of the CI job",
        )
