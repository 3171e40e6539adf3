"""The board's data, which is read from the store before the page is rendered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Literal, TypeAlias

import msgspec

from pytest_ephemeral import machine, providers
from pytest_ephemeral.environments import overdue
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.images.stages import Stage
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.project import Project
from pytest_ephemeral.promotion import journal, requirements
from pytest_ephemeral.promotion.approval_records import Approval, Approvals
from pytest_ephemeral.promotion.journal import Head, HistoryEntry, Journal
from pytest_ephemeral.tables import Promotion

#: How many entries of the history to show, and how many decisions.
ENTRIES = 12
DECISIONS = 8

#: The colour of a state, which is shown in addition to its word.
Tone: TypeAlias = Literal["good", "busy", "warn", "bad", "quiet"]


class Card(msgspec.Struct, frozen=True):
    """An environment on the board.

    Attributes:
        word: Its state as one word.
        tone: The colour of the state.
        image: The catalog's record of its image; None if there is none.
        artifact: The name and version of its artifact, or the digest; empty if it has none.
        stages: The last outcome of each stage.
    """

    environment: Environment
    word: str
    tone: Tone
    image: Image | None
    artifact: str
    stages: Sequence[Stage]

    @property
    def link(self) -> str:
        """Its URL if that is HTTP or HTTPS; otherwise empty."""
        return web_link(self.environment.url)


class Production(msgspec.Struct, frozen=True):
    """A production name on the board.

    Attributes:
        head: What is in production now.
        card: The environment in production; None if it is not in the ledger.
        history: The last promotions and rollbacks, newest first.
    """

    promotion: Promotion
    head: Head
    card: Card | None
    history: Sequence[HistoryEntry]

    @property
    def link(self) -> str:
        """The production URL if that is HTTP or HTTPS; otherwise empty."""
        return web_link(self.head.current.url) if self.head.current else ""


class Pending(msgspec.Struct, frozen=True):
    """A pending request.

    Attributes:
        card: The environment; None if it is gone.
    """

    approval: Approval
    card: Card | None

    @property
    def can_be_approved(self) -> bool:
        """Whether the environment runs, so that it can be approved."""
        return self.card is not None and self.card.word not in {"stopped", "expired", "destroying"}


class Board(msgspec.Struct, frozen=True):
    """The whole page's content."""

    project: str
    now: datetime
    pending: Sequence[Pending]
    decided: Sequence[Approval]
    productions: Sequence[Production]
    cards: Sequence[Card]


def web_link(url: str) -> str:
    """The URL if a link may lead to it; empty for other schemes, such as ``javascript:``."""
    return url if url.startswith(("http://", "https://")) else ""


def gather(project: Project, now: datetime) -> Board:
    """Read all data of the page.

    Args:
        project: The project.
        now: The current time in UTC.

    Raises:
        StoreError: The store can't be read.
    """
    names = _Names(project)
    cards = [_card(project, names, one, now) for one in project.ledger.entries()]
    by_id = {card.environment.id: card for card in cards}
    approvals = Approvals(project.store).entries()
    waiting = [one for one in approvals if one.state == "pending" and now < one.deadline]
    decided = [one for one in approvals if one.state != "pending" or now >= one.deadline]
    asked = {one.environment for one in waiting}
    return Board(
        project=project.config.root.name,
        now=now,
        # Requests that can't be approved come last, without buttons.
        pending=sorted(
            (Pending(one, by_id.get(one.environment)) for one in waiting),
            key=lambda one: not one.can_be_approved,
        ),
        decided=sorted(decided, key=_end_of, reverse=True)[:DECISIONS],
        productions=[
            _production(project, promotion, by_id)
            for promotion in project.config.promotions.values()
        ],
        cards=[
            card
            for card in reversed(cards)
            if card.environment.id not in asked and card.environment.production is None
        ],
    )


def _end_of(approval: Approval) -> datetime:
    return approval.decided_at or approval.deadline


class _Names:
    """The names of images and artifacts, read once for each page."""

    def __init__(self, project: Project) -> None:
        self._images = {image.key: image for image in project.images.catalog.entries()}
        try:
            entries = project.artifacts.entries()
        except EphemeralError:  # without the repository, the page shows digests
            entries = []
        self._artifacts = {one.digest: f"{one.name} {one.version}" for one in entries}

    def image(self, environment: Environment) -> Image | None:
        return self._images.get(environment.image.key) if environment.image else None

    def artifact(self, environment: Environment) -> str:
        digest = environment.image.artifact if environment.image else None
        return self._artifacts.get(digest, digest[:19]) if digest else ""


def _card(project: Project, names: _Names, environment: Environment, now: datetime) -> Card:
    word, tone = _state(environment, now)
    stages = requirements.latest_stages(project.store, environment)
    return Card(
        environment=environment,
        word=word,
        tone=tone,
        image=names.image(environment),
        artifact=names.artifact(environment),
        stages=sorted(stages.values(), key=lambda stage: stage.finished_at),
    )


def _state(environment: Environment, now: datetime) -> tuple[str, Tone]:
    """The word and the colour of a state: the most serious one that applies."""
    if overdue.explain_overdue(environment, now):
        return "expired", "bad"
    if environment.state != "ready":
        return environment.state, "busy"
    if machine.is_here(environment.owner) and not _runs(environment):
        return "stopped", "bad"
    return ("production", "good") if environment.production else ("up", "good")


def _runs(environment: Environment) -> bool:
    try:
        return not providers.load(environment.provider).status(environment).stop_reason()
    except EphemeralError:
        return True  # unknown from here: not reported as stopped


def _production(project: Project, promotion: Promotion, cards: dict[str, Card]) -> Production:
    head = Journal(project.store, promotion.name).head
    current = head.current
    return Production(
        promotion=promotion,
        head=head,
        card=cards.get(current.environment) if current else None,
        history=list(reversed(journal.history(project.store, promotion.name)))[:ENTRIES],
    )
