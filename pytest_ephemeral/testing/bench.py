"""The bench: what the conformance suite needs to test a provider."""

from __future__ import annotations

import secrets
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from pytest_ephemeral import labels, machine, providers
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers.protocol import BakeJob, Baker, Order
from pytest_ephemeral.tables import Recipe, Template

#: Seconds until the environments of tests expire. An emulated machine may boot for minutes.
LIFETIME: Final = 600.0

Kind = Literal["web", "pair", "crash", "elsewhere"]


class Bench(Protocol):
    """One provider under test.

    Its image has a small web application. The application prints ``started`` (and ``$GREETING``,
    if that is set) when it listens, and ``GET /path`` for each request. It answers ``/`` with
    ``hello`` and ``/variable/NAME`` with that variable's value. On ``/exit/3``, it exits with
    status 3.

    Attributes:
        parts: The names of the processes or services in logs and messages; one name if the
            provider does not support several.
    """

    parts: Sequence[str]

    def unavailable(self) -> str:
        """Why the provider can't be tested on this machine, or empty."""

    def recipe(self, root: Path) -> Recipe | None:
        """The recipe of the image, or None if the provider has no images.

        Args:
            root: A folder for files that the recipe needs.
        """

    def template(self, kind: Kind) -> Template:
        """A template of the image.

        ``web``: the application on one port, ``http``. ``pair``: all ``parts`` (the first is the
        application, the second prints ``working``), with two ports, ``http`` and ``admin``.
        ``crash``: a command that prints ``no database`` and exits with status 3. ``elsewhere``:
        the application listens on 18478, while the template's port is 18477.
        """

    def traces(self, environment: Environment) -> Sequence[str]:
        """All processes, files and so on of an environment, found without the provider."""


def bake(recipe: Recipe, root: Path) -> Image:
    """Bake, verify and return the image of a recipe, as the pipeline does.

    Args:
        recipe: The recipe of a bench.
        root: The folder that its paths are relative to.
    """
    baker = providers.load(recipe.provider)
    assert isinstance(baker, Baker), f"{recipe.provider} bakes no images"
    key = f"sha256:{secrets.token_hex(32)}"
    baker.resolve(recipe, root)
    with baker.exclusive(key, "baking for the conformance suite", print) as descriptors:
        job = BakeJob(
            recipe=recipe,
            key=key,
            root=root,
            artifact=None,
            log=root / "bake.log",
            say=print,
            descriptors=descriptors,
        )
        try:
            image = baker.bake(job)
            baker.verify(job, image)
        except BaseException:
            baker.discard(job)
            raise
    return image


def make_order(
    template: Template, image: Image | None, *, lifetime: float = LIFETIME, **changes: Any
) -> Order:
    """An order, as the lifecycle makes it.

    Args:
        template: The template.
        image: The template's image.
        lifetime: Seconds until the environment's expiry.
        changes: Further fields of the order.
    """
    now = datetime.now(UTC)
    expires_at = now + timedelta(seconds=lifetime)
    owner = machine.this_owner("conformance")
    id = f"{template.name}-{secrets.token_hex(3)}"
    environment = Environment(
        id=id,
        template=template.name,
        provider=template.provider,
        created_at=now,
        expires_at=expires_at,
        owner=owner,
        labels=labels.for_environment(
            id=id,
            template=template.name,
            run="conformance",
            owner=str(owner),
            expires_at=expires_at,
            image=image.key if image else "",
        ),
    )
    images = dict.fromkeys(template.images(), image) if image else {}
    return Order(environment=environment, template=template, images=images, **changes)


def get(environment: Environment, path: str = "/") -> str:
    """The application's answer to a GET request."""
    with urllib.request.urlopen(environment.url.rstrip("/") + path, timeout=10) as answer:  # noqa: S310 - its own URL
        body: bytes = answer.read()
    return body.decode()


class Launcher:
    """Launches environments, which are destroyed after the test."""

    def __init__(self, bench: Bench, image: Image | None, cleanup: ExitStack) -> None:
        self.bench = bench
        self.image = image
        self._cleanup = cleanup

    def __call__(self, kind: Kind = "web", **options: Any) -> Environment:
        """Launch a template of the bench; the options are those of ``make_order``."""
        order = make_order(self.bench.template(kind), self.image, **options)
        provider = providers.load(order.template.provider)
        self._cleanup.callback(provider.destroy, order.environment)
        launched: Environment = provider.launch(order)
        return launched
