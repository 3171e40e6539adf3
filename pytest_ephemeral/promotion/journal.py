"""The journal of a production name: what is in production, what was, and the running promotion.

One record, ``promotions/NAME/current.json``, changed by compare-and-swap only: of two promotions
at once one wins, and a process that was replaced while it hung stops at its next step. Every step
is recorded before it is done. What has ended goes to ``promotions/NAME/history/``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Annotated, Any, Final, Literal, TypeAlias

import msgspec

from pytest_ephemeral import machine
from pytest_ephemeral.errors import (
    PromotionError,
    RecordConflictError,
    RecordExistsError,
    RecordMissingError,
    StoreError,
    SupersededError,
)
from pytest_ephemeral.models import ImageReference, Model, Owner, decode, encode
from pytest_ephemeral.promotion.dns import DnsRecord
from pytest_ephemeral.store import Store

FOLDER: Final = "promotions/"

#: Seconds between two heartbeats of a running promotion.
BEAT: Final = 5.0
#: Seconds without a heartbeat after which a process on another machine counts as dead, measured
#: by the clock of the process that waits.
SILENCE: Final = 30.0


_IdOrEmpty: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A([a-z0-9][a-z0-9-]{0,78})?\Z")]


class Deployment(Model, frozen=True, kw_only=True):
    """A past, present or future target of a production name.

    Attributes:
        environment: Its id; empty for the target before the first promotion.
        artifact: The artifact its image was baked from, for people: ``shop@1.4.2``.
        revision: The commit it was built from, if known.
        records: The DNS records that point to it.
        by: Who promoted it, as ``user@host``.
        at: When it was promoted.
        approved_by: Who approved it; nobody checks this name.
        comment: The approver's comment.
        stages: The required stages, each with the run that passed it.
        until: When it ends, once it has been replaced.
    """

    environment: _IdOrEmpty = ""
    template: str = ""
    image: ImageReference | None = None
    url: str = ""
    artifact: str = ""
    revision: str = ""
    records: list[DnsRecord] = msgspec.field(default_factory=list)
    by: str = ""
    at: datetime
    approved_by: str = ""
    comment: str = ""
    stages: dict[str, str] = msgspec.field(default_factory=dict)
    until: datetime | None = None

    def __str__(self) -> str:
        return self.environment or "the target before the first promotion"


class CompletedStep(Model, frozen=True, kw_only=True):
    """A completed step, and how many seconds it took."""

    step: str
    detail: str
    seconds: float
    at: datetime


class PromotionRun(Model, frozen=True, kw_only=True):
    """A running promotion or rollback.

    Attributes:
        owner: The process that does it.
        heartbeat: Counts its heartbeats.
        target: What the name is to point to.
        expires_at: The target's expiry before the promotion turned it off.
        steps: The completed steps.
        doing: The step that has begun.
        old: The records before it; None until they are read.
        lowered: The same with a lower TTL, if that was needed.
        failed: Why it is being undone.
    """

    id: str
    kind: Literal["promote", "rollback"]
    owner: Owner
    heartbeat: int = 0
    started_at: datetime
    target: Deployment
    expires_at: datetime | None = None
    steps: list[CompletedStep] = msgspec.field(default_factory=list)
    doing: str = ""
    old: list[DnsRecord] | None = None
    lowered: list[DnsRecord] | None = None
    change: str = ""
    failed: str = ""

    def has_done(self, step: str) -> bool:
        """Whether a step is completed."""
        return any(one.step == step for one in self.steps)


class Head(Model, frozen=True, kw_only=True):
    """The state of one production name.

    Attributes:
        current: What is in production.
        previous: What was in production before it.
        run: The running promotion or rollback.
    """

    current: Deployment | None = None
    previous: Deployment | None = None
    run: PromotionRun | None = None


class HistoryEntry(Model, frozen=True, kw_only=True):
    """A promotion or rollback that has ended.

    Attributes:
        outcome: ``done``, or ``undone``: it failed, and the name points where it did before.
        reason: Why it failed.
    """

    id: str
    kind: Literal["promote", "rollback"]
    outcome: Literal["done", "undone"]
    reason: str = ""
    target: Deployment
    before: Deployment | None
    by: str
    started_at: datetime
    finished_at: datetime
    steps: list[CompletedStep]


class Journal:
    """The head of one promotion, as this process last saw or wrote it."""

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._store = store
        self._path = f"{FOLDER}{name}/current.json"
        self._version: str | None = None
        self.head = Head()
        self.refresh()

    @property
    def run(self) -> PromotionRun:
        """What this process does."""
        if self.head.run is None:
            raise PromotionError(f"no promotion to {self.name} is running")
        return self.head.run

    def refresh(self) -> None:
        """Read the record again.

        Raises:
            StoreError: It can't be read, or the record is broken.
        """
        try:
            data, self._version = self._store.read(self._path)
            self.head = decode(data, Head)
        except RecordMissingError:
            self._version, self.head = None, Head()
        except msgspec.MsgspecError as error:
            raise StoreError(f"{self._path} in {self._store.url} is broken: {error}") from error

    def begin(self, run: PromotionRun) -> None:
        """Become the process that promotes.

        Raises:
            PromotionError: Another process is promoting; names it.
        """
        try:
            self._write(msgspec.structs.replace(self.head, run=run))
        except SupersededError:
            self.refresh()
            raise self.busy() from None

    def take_over(self, *, pause: Callable[[float], object] = time.sleep) -> None:
        """Continue the run of a process that is dead.

        Args:
            pause: Waits that many seconds.

        Raises:
            PromotionError: That process is alive.
        """
        alive = machine.is_alive(self.run.owner)
        if alive or (alive is None and self._shows_heartbeat(pause)):
            raise self.busy()
        try:
            self.note(owner=machine.this_owner(self.run.id))
        except SupersededError:
            self.refresh()
            raise self.busy() from None

    def busy(self) -> PromotionError:
        """The error for whoever comes second."""
        if self.head.run is None:
            return PromotionError(f"{self.name} was just changed by another process: try again")
        run = self.head.run
        action = "promoting" if run.kind == "promote" else "rolling back to"
        step = f" (step {run.doing})" if run.doing else ""
        return PromotionError(
            f"{run.owner} has been {action} {run.target} since {run.started_at:%H:%M:%S} UTC"
            f"{step}: wait until that has ended"
        )

    def _shows_heartbeat(self, pause: Callable[[float], object]) -> bool:
        """Whether a process on another machine sends a heartbeat within the time for it."""
        for _ in range(int(SILENCE / BEAT) + 1):
            before = self._version
            pause(BEAT)
            self.refresh()
            if self._version != before:
                return True
        return False

    def heartbeat(self) -> None:
        """Send a heartbeat.

        Raises:
            SupersededError: Another process has taken over.
        """
        self.note(heartbeat=self.run.heartbeat + 1)

    def note(self, *, head: dict[str, Any] | None = None, **changes: Any) -> None:
        """Record changes of the run, and of the head with it, in one write.

        Raises:
            SupersededError: Another process has taken over.
            StoreError: It can't be written. Nothing more may be done.
        """
        run = msgspec.structs.replace(self.run, **changes)
        self._write(msgspec.structs.replace(self.head, run=run, **(head or {})))

    def close(self, outcome: Literal["done", "undone"], before: Deployment | None) -> HistoryEntry:
        """Move the run to the history, so that the next one can begin."""
        run = self.run
        entry = HistoryEntry(
            id=run.id,
            kind=run.kind,
            outcome=outcome,
            reason=run.failed,
            target=run.target,
            before=before,
            by=f"{run.owner.user}@{run.owner.host}",
            started_at=run.started_at,
            finished_at=datetime.now(UTC),
            steps=run.steps,
        )
        path = _history_path(self.name, entry)
        try:
            self._store.create(path, encode(entry))
        except RecordExistsError:  # one who was killed right afterwards
            entry = decode(self._store.read(path).data, HistoryEntry)
        self._write(msgspec.structs.replace(self.head, run=None))
        return entry

    def _write(self, head: Head) -> None:
        data = encode(head)
        try:
            if self._version is None:
                self._version = self._store.create(self._path, data)
            else:
                self._version = self._store.replace(self._path, data, self._version)
        except (RecordConflictError, RecordExistsError) as error:
            raise SupersededError(
                f"another process has taken over {self.name}: this one stops"
            ) from error
        self.head = head


def history(store: Store, name: str) -> list[HistoryEntry]:
    """The history of one production name, oldest first; bad records are skipped."""
    found = []
    for path, data in store.records(f"{FOLDER}{name}/history/"):
        with suppress(msgspec.MsgspecError):
            entry = decode(data, HistoryEntry)
            if _history_path(name, entry) == path:
                found.append(entry)
    return sorted(found, key=lambda entry: entry.started_at)


def _history_path(name: str, entry: HistoryEntry) -> str:
    return f"{FOLDER}{name}/history/{entry.started_at:%Y%m%dT%H%M%S}-{entry.id}.json"


def images(store: Store) -> set[str]:
    """The keys of all images that are, were, or are about to be in production.

    Raises:
        StoreError: A record is broken, so that it is unknown which images must stay.
    """
    found: set[str] = set()
    for path, data in store.records(FOLDER):
        try:
            places = _places(data, is_head=path.endswith("/current.json"))
        except msgspec.MsgspecError as error:
            raise StoreError(
                f"{path} in {store.url} is broken, and may refer to an image: {error}"
            ) from error
        found |= {place.image.key for place in places if place is not None and place.image}
    return found


def _places(data: bytes, *, is_head: bool) -> list[Deployment | None]:
    """All targets in one record."""
    if not is_head:
        entry = decode(data, HistoryEntry)
        return [entry.target, entry.before]
    head = decode(data, Head)
    return [head.current, head.previous, None if head.run is None else head.run.target]
