"""What the conformance suite needs of a provider, and the table of those it is run against.

A new provider is one module with a ``Bench``, and one row here.
"""

from __future__ import annotations

import secrets
import subprocess
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from pytest_ephemeral import labels, machine, providers
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers.protocol import BakeJob, Order
from pytest_ephemeral.tables import Recipe, Template

#: Name → the module that has a class ``Bench``.
TABLE: Mapping[str, str] = {
    "local": "bench_local",
    "docker": "bench_docker",
    "podman": "bench_podman",
    "compose": "bench_compose",
    "compose-v2": "bench_compose_v2",
    "ec2": "bench_ec2",
    "cloudformation": "bench_cloudformation",
}

#: The rows whose environments end by themselves when their owner dies; others have a watchdog.
SELF_GUARDING: Final = ("local",)

Kind = Literal["web", "pair", "crash", "elsewhere"]

#: Starts a process that launches one, and gives both.
Owner = Callable[..., tuple[subprocess.Popen[str], Environment]]


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

    def recipe(self, root: Path) -> Recipe:
        """How the image is baked; may write what it needs into ``root``."""

    def template(self, kind: Kind) -> Template:
        """A template of that image.

        ``web``: the application on one port, ``http``. ``pair``: the ``parts`` (of which the
        first serves, and the second prints ``working``), and two ports, ``http`` and ``admin``.
        ``crash``: prints ``no database`` and exits with status 3. ``elsewhere``: the application
        listens on another port than said.
        """

    def traces(self, environment: Environment) -> Sequence[str]:
        """What is there of an environment, seen from outside, without asking the provider."""


def load(name: str) -> Bench:
    """The bench of one provider."""
    bench: Bench = import_module(TABLE[name]).Bench()
    return bench


def with_parts() -> list[str]:
    """The rows whose environments have several processes or services."""
    return [name for name in TABLE if len(load(name).parts) > 1]


def bake(bench: Bench, root: Path) -> Image:
    """Bake, verify and return the bench's image, as the house does it."""
    recipe = bench.recipe(root)
    baker = providers.load(recipe.provider)
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


def order(template: Template, image: Image, *, lifetime: float = 120.0, **changes: Any) -> Order:
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
            image=image.key,
        ),
    )
    images = dict.fromkeys(template.images(), image)
    return Order(environment=environment, template=template, images=images, **changes)


def get(environment: Environment, path: str = "/") -> str:
    """What the application answers."""
    with urllib.request.urlopen(environment.url.rstrip("/") + path, timeout=10) as answer:
        body: bytes = answer.read()
    return body.decode()


class Launcher:
    """Launches for a test, and destroys behind it."""

    def __init__(self, bench: Bench, image: Image, cleanup: ExitStack) -> None:
        self.bench = bench
        self.image = image
        self._cleanup = cleanup

    def __call__(self, kind: Kind = "web", **options: Any) -> Environment:
        """Launch a template; the options are those of ``order``."""
        ordered = order(self.bench.template(kind), self.image, **options)
        provider = providers.load(ordered.template.provider)
        self._cleanup.callback(provider.destroy, ordered.environment)
        launched: Environment = provider.launch(ordered)
        return launched
