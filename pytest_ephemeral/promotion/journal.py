"""The journal of a production name: its current and previous target, and the running promotion.

It is one record, ``promotions/NAME/current.json``, which changes by compare-and-swap. So only one
of two simultaneous promotions starts, and a process that has been superseded stops at its next
step. Every step is recorded before it is done. A promotion that has ended is moved to
``promotions/NAME/history/``.
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
#: Seconds without a heartbeat after which a process on another machine counts as dead. The waiting
#: process measures them with its own clock.
SILENCE: Final = 30.0


_IdOrEmpty: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\A([a-z0-9][a-z0-9-]{0,78})?\Z")]


class Deployment(Model, frozen=True, kw_only=True):
    """A past, current or future target of a production name.

    Attributes:
        environment: The environment's id; empty for the target before the first promotion.
        url: Its URL under the production name.
        artifact: The artifact of its image, such as ``shop@1.4.2``, or the digest.
        revision: The commit that the last required stage tested; empty if unknown.
        records: The DNS records that point to it.
        by: The user who promoted it, as ``user@host``.
        at: When it was promoted.
        approved_by: The name of the person who approved it. It is not verified.
        comment: The comment of the approval.
        stages: The id of the run that passed each required stage, by the stage's name.
        until: Its expiry, after another target has replaced it; None before.
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
    """A completed step, with its result for the user and how many seconds it took."""

    step: str
    detail: str
    seconds: float
    at: datetime


class PromotionRun(Model, frozen=True, kw_only=True):
    """A running promotion or rollback.

    Attributes:
        owner: The process that runs it.
        heartbeat: The number of heartbeats.
        target: The new target of the name.
        expires_at: The target's expiry before the promotion turned it off.
        steps: The completed steps.
        doing: The step that has begun; empty between two steps.
        old: The records before the promotion; None until they are read.
        lowered: The records ``old`` with a lower TTL; None if the TTL was not lowered.
        change: The id of the change of the records; see ``DnsBackend.swap``.
        failed: Why it is being undone; empty if it is not.
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
        current: The target in production; None before the first promotion.
        previous: The target before that, which a rollback restores.
        run: The running promotion or rollback; None if there is none.
    """

    current: Deployment | None = None
    previous: Deployment | None = None
    run: PromotionRun | None = None


class HistoryEntry(Model, frozen=True, kw_only=True):
    """A promotion or rollback that has ended.

    Attributes:
        outcome: ``done``, or ``undone`` if it failed and the records were restored.
        reason: Why it failed; empty if it did not.
        before: The target before it.
        by: The user who ran it, as ``user@host``.
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
    """The journal of one production name.

    Attributes:
        name: The promotion's name.
        head: The state that this process last read or wrote.
    """

    def __init__(self, store: Store, name: str) -> None:
        self.name = name
        self._store = store
        self._path = f"{FOLDER}{name}/current.json"
        self._version: str | None = None
        self.head = Head()
        self.refresh()

    @property
    def run(self) -> PromotionRun:
        """The running promotion or rollback; raises a PromotionError if there is none."""
        if self.head.run is None:
            raise PromotionError(f"no promotion to {self.name} is running")
        return self.head.run

    def refresh(self) -> None:
        """Read the record again.

        Raises:
            StoreError: The store can't be read, or the record is broken.
        """
        try:
            data, self._version = self._store.read(self._path)
            self.head = decode(data, Head)
        except RecordMissingError:
            self._version, self.head = None, Head()
        except msgspec.MsgspecError as error:
            raise StoreError(f"{self._path} in {self._store.url} is broken: {error}") from error

    def begin(self, run: PromotionRun) -> None:
        """Record the start of a promotion by this process.

        Raises:
            PromotionError: Another process is promoting; the message names it.
        """
        try:
            self._write(msgspec.structs.replace(self.head, run=run))
        except SupersededError:
            self.refresh()
            raise self.busy() from None

    def take_over(self, *, pause: Callable[[float], object] = time.sleep) -> None:
        """Take over the run of a dead process. For another machine, that takes up to 35 seconds.

        Args:
            pause: Waits for a number of seconds.

        Raises:
            PromotionError: The process is alive.
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
        """Make the error for a second promotion to the same name."""
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
        """Whether a process on another machine writes a heartbeat within ``SILENCE``."""
        for _ in range(int(SILENCE / BEAT) + 1):
            before = self._version
            pause(BEAT)
            self.refresh()
            if self._version != before:
                return True
        return False

    def heartbeat(self) -> None:
        """Write a heartbeat.

        Raises:
            SupersededError: Another process has taken over.
        """
        self.note(heartbeat=self.run.heartbeat + 1)

    def note(self, *, head: dict[str, Any] | None = None, **changes: Any) -> None:
        """Change attributes of the run, and of the head, in one write.

        Args:
            head: Attributes of ``Head``; None for no changes.
            changes: Attributes of ``PromotionRun``.

        Raises:
            SupersededError: Another process has taken over.
            StoreError: The store can't be written. The promotion must not continue.
        """
        run = msgspec.structs.replace(self.run, **changes)
        self._write(msgspec.structs.replace(self.head, run=run, **(head or {})))

    def close(self, outcome: Literal["done", "undone"], before: Deployment | None) -> HistoryEntry:
        """Move the run to the history; after that, another one can begin."""
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
        except RecordExistsError:  # an earlier process was killed before the next write
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
    """The history of one production name, oldest first. Records that can't be read are skipped."""
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
    """The keys of all images of current, former and future production targets.

    Raises:
        StoreError: A record is broken, so that the keys are not known.
    """
    found: set[str] = set()
    for path, data in store.records(FOLDER):
        try:
            targets = _targets(data, is_head=path.endswith("/current.json"))
        except msgspec.MsgspecError as error:
            raise StoreError(
                f"{path} in {store.url} is broken, and may refer to an image: {error}"
            ) from error
        found |= {one.image.key for one in targets if one is not None and one.image}
    return found


def _targets(data: bytes, *, is_head: bool) -> list[Deployment | None]:
    """All targets in one record."""
    if not is_head:
        entry = decode(data, HistoryEntry)
        return [entry.target, entry.before]
    head = decode(data, Head)
    return [head.current, head.previous, None if head.run is None else head.run.target]
