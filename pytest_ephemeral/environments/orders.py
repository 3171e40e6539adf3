"""Make orders for providers. An order has all values filled in."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from pytest_ephemeral import interpolation, labels, machine
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.environments import cleanup
from pytest_ephemeral.errors import EphemeralError, LaunchError, describe_error
from pytest_ephemeral.ledger import register
from pytest_ephemeral.models import Environment, Image, ImageReference
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.protocol import Order
from pytest_ephemeral.tables import Template


def register_environment(
    project: Project, run: str, template: Template, images: Mapping[str, Image], ttl: Duration
) -> Environment:
    """Record a new environment with all its labels, before its first resource is created.

    Args:
        project: The project.
        run: The id of this run.
        template: The environment's template.
        images: The images, by name.
        ttl: The time to live.
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
    """Make the order for one environment, with every ``{env:…}`` and ``{image:…}`` filled in.

    Args:
        project: The project.
        environment: The environment, as recorded.
        template: The environment's template.
        images: The images, by name.
        journal: See ``Order``.

    Raises:
        ConfigurationError: An environment variable that the template refers to is not set.
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
    """Let the hook ``pytest_ephemeral_modify_template`` change a template.

    Args:
        template: A template of the configuration.
        hooks: A pluggy hook relay.
        config: The value of the hook's argument ``config``.

    Returns:
        The changed template, or the same one.

    Raises:
        LaunchError: The hook failed, or returned no template.
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
    """The names of a template's own images, and of those that its ``env`` refers to."""
    referred = (
        name for value in template.env.values() for name in interpolation.references(value, "image")
    )
    return list(dict.fromkeys([*template.images(), *referred]))
