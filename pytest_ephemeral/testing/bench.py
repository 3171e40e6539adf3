"""What the conformance suite needs of a provider."""

from __future__ import annotations

import secrets
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal, Protocol

from pytest_ephemeral import labels, machine, providers
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers.protocol import BakeJob, Baker, Order
from pytest_ephemeral.tables import Recipe, Template

Kind = Literal["web", "pair", "crash", "elsewhere"]


class Bench(Protocol):
    """One provider on the bench.

    Its image holds a small web application that prints ``started`` (and its ``$GREETING``, if it
    has one) when it listens, prints ``GET /path`` for each request, answers ``/`` with 200 and
    ``/variable/NAME`` with that variable's value, and on ``/exit/3`` exits with status 3.

    Attributes:
        parts: What its processes or services are called in logs and when one ends; of a provider
            that has no several, the one name.
    """

    parts: Sequence[str]

    def unavailable(self) -> str:
        """Why this can't be tested here; empty when it can."""

    def recipe(self, root: Path) -> Recipe | None:
        """How the image is baked; may write what it needs into ``root``. None without images."""

    def template(self, kind: Kind) -> Template:
        """A template of that image.

        ``web``: the application on one port, ``http``. ``pair``: the ``parts`` (of which the
        first serves, and the second prints ``working``), and two ports, ``http`` and ``admin``.
        ``crash``: prints ``no database`` and exits with status 3. ``elsewhere``: the application
        listens on another port than said.
        """

    def traces(self, environment: Environment) -> Sequence[str]:
        """What is there of an environment, seen from outside, without asking the provider."""


def bake(recipe: Recipe, root: Path) -> Image:
    """Bake, verify and return the image of a recipe, as the pipeline does it.

    Args:
        recipe: Of a bench.
        root: A folder for it.
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
    template: Template, image: Image | None, *, lifetime: float = 120.0, **changes: Any
) -> Order:
    """An order as the lifecycle gives it.

    Args:
        template: What to bring up.
        image: What it is made of.
        lifetime: Seconds until it expires.
        changes: Of the order.
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
    """What the application answers."""
    with urllib.request.urlopen(environment.url.rstrip("/") + path, timeout=10) as answer:  # noqa: S310 - its own URL
        body: bytes = answer.read()
    return body.decode()


class Launcher:
    """Launches for a test, and destroys behind it."""

    def __init__(self, bench: Bench, image: Image | None, cleanup: ExitStack) -> None:
        self.bench = bench
        self.image = image
        self._cleanup = cleanup

    def __call__(self, kind: Kind = "web", **options: Any) -> Environment:
        """Launch a template; the options are those of ``order``."""
        order = make_order(self.bench.template(kind), self.image, **options)
        provider = providers.load(order.template.provider)
        self._cleanup.callback(provider.destroy, order.environment)
        launched: Environment = provider.launch(order)
        return launched
