"""Orders for providers: everything is filled in, and nothing is left to look up."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pytest_ephemeral import interpolation, labels, machine
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.environments import cleanup
from pytest_ephemeral.environments.ledger import register
from pytest_ephemeral.errors import EphemeralError, LaunchError, describe_error
from pytest_ephemeral.models import Environment, Image, ImageReference
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.protocol import Order
from pytest_ephemeral.tables import Template


def register_environment(
    project: Project, run: str, template: Template, images: Mapping[str, Image], ttl: Duration
) -> Environment:
    """Record a new environment, with all its labels, before anything of it is created.

    Args:
        project: Whose ledger.
        run: The id of the run that brings it up.
        template: What it is made from.
        images: The baked images by name.
        ttl: How long it may live.
    """
    references = [ImageReference.to(images[name]) for name in template.images()]
    image = references[0] if references else None
    owner = machine.this_owner(run)
    now = datetime.now(UTC)
    expires_at = now + timedelta(seconds=ttl)

    def describe(id: str) -> Environment:
        return Environment(
            id=id,
            template=template.name,
            provider=template.provider,
            image=image,
            more_images=references[1:],
            created_at=now,
            expires_at=expires_at,
            owner=owner,
            labels=labels.for_environment(
                id=id,
                template=template.name,
                run=run,
                owner=str(owner),
                expires_at=expires_at,
                image=image.key if image else "",
            ),
        )

    return register(project.ledger, template, describe)


def make_order(
    project: Project,
    environment: Environment,
    template: Template,
    images: Mapping[str, Image],
    journal: Callable[[Environment], None],
) -> Order:
    """The order for one environment, with every ``{env:…}`` and ``{image:…}`` filled in.

    Args:
        project: Whose.
        environment: As it is recorded.
        template: What it is made from.
        images: The baked images by name.
        journal: See ``Order``.

    Raises:
        ConfigurationError: A variable that it refers to is not set.
    """
    where = f"templates.{template.name}"
    filled = interpolation.fill(
        template.env, environ=os.environ, images=images, where=f"{where}.env"
    )
    headers = interpolation.fill(
        {} if template.ready is None else template.ready.headers,
        environ=os.environ,
        images={},
        where=f"{where}.ready.headers",
    )
    return Order(
        environment=environment,
        template=template,
        images=images,
        variables=filled.variables,
        headers=headers.variables,
        secrets=(*filled.secrets, *headers.secrets),
        settle=cleanup.settle_command(project.store.url, environment.id),
        root=project.config.root,
        journal=journal,
    )


def modify(template: Template, hooks: Any, config: Any) -> Template:
    """The template, changed by the users' hook.

    Args:
        template: Of the configuration.
        hooks: A pluggy hook relay.
        config: What the hook gets as ``config``.

    Raises:
        LaunchError: The hook has failed, or returned something else.
    """
    try:
        changed = hooks.pytest_ephemeral_modify_template(template=template, config=config)
    except EphemeralError:
        raise
    except Exception as error:
        raise LaunchError(
            f"pytest_ephemeral_modify_template failed for {template.name!r}: "
            f"{describe_error(error)}"
        ) from error
    if changed is None:
        return template
    if not isinstance(changed, Template):
        raise LaunchError(
            f"pytest_ephemeral_modify_template returned {type(changed).__name__} for "
            f"{template.name!r}: return a Template, or None to leave it as it is"
        )
    return changed


def image_names(template: Template) -> list[str]:
    """The images a template is made of, and those its values refer to."""
    referred = (
        name for value in template.env.values() for name in interpolation.references(value, "image")
    )
    return list(dict.fromkeys([*template.images(), *referred]))
