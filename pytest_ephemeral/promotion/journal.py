"""What is production, what was, and how far the promotion under way has come.

One record a promotion, ``promotions/NAME/current.json``, changed by compare-and-swap only: so of
two promotions at once one wins, and a process that was taken for dead stops at its next step.
Every step is written down before it is done. What is over goes to ``promotions/NAME/history/``.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any, Final, Literal

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
from pytest_ephemeral.promotion.dns import Record
from pytest_ephemeral.store import Store

FOLDER: Final = "promotions/"

#: Seconds between two signs of life that whoever promotes gives.
BEAT: Final = 5.0
#: Seconds without one after which a process of another machine is taken for dead. They are
#: measured by the watcher's own clock: what the other machine's says does not matter.
SILENCE: Final = 30.0


class Deployed(Model, frozen=True, kw_only=True):
    """What a production name points to, did, or shall.

    Attributes:
        environment: Its id; empty for what the name pointed to before there was a promotion.
        artifact: The artifact its image was baked from, for people: ``shop@1.4.2``.
        revision: What version control says it was built from, where that is known.
        records: What the name says.
        by: Who promoted it, as ``user@host``.
        at: When.
        approved_by: Who said yes.
        comment: What they said.
        stages: The stages that were required, each with the run that passed it.
        until: When it ends, once it has been replaced.
    """

    environment: str = ""
    template: str = ""
    image: ImageReference | None = None
    url: str = ""
    artifact: str = ""
    revision: str = ""
    records: list[Record] = msgspec.field(default_factory=list)
    by: str = ""
    at: datetime
    approved_by: str = ""
    comment: str = ""
    stages: dict[str, str] = msgspec.field(default_factory=dict)
    until: datetime | None = None

    def __str__(self) -> str:
        return self.environment or "what the name pointed to before"


class Done(Model, frozen=True, kw_only=True):
    """A step that was done, and how long it took in seconds."""

    step: str
    detail: str
    seconds: float
    at: datetime


class Run(Model, frozen=True, kw_only=True):
    """A promotion, or a rollback, under way.

    Attributes:
        owner: The process that carries it out.
        beat: Changes as long as that lives.
        target: What the name shall point to.
        expires_at: When the target would have expired.
        steps: Those that are done.
        doing: The one that has been begun.
        old: What the name said before; None until it is known.
        lowered: The same with a shorter time to live, if that was needed.
        failed: Why everything is being taken back.
    """

    id: str
    kind: Literal["promote", "rollback"]
    owner: Owner
    beat: int = 0
    started_at: datetime
    target: Deployed
    expires_at: datetime | None = None
    steps: list[Done] = msgspec.field(default_factory=list)
    doing: str = ""
    old: list[Record] | None = None
    lowered: list[Record] | None = None
    change: str = ""
    failed: str = ""

    def has_done(self, step: str) -> bool:
        """Whether a step is done."""
        return any(one.step == step for one in self.steps)


class Head(Model, frozen=True, kw_only=True):
    """The state of one production name.

    Attributes:
        current: What is production.
        previous: What was, before it.
        run: What is under way.
    """

    current: Deployed | None = None
    previous: Deployed | None = None
    run: Run | None = None


class Entry(Model, frozen=True, kw_only=True):
    """A promotion or a rollback that is over.

    Attributes:
        outcome: ``done``; ``undone``: it failed, and the name points where it did before.
        reason: Why it failed.
    """

    id: str
    kind: Literal["promote", "rollback"]
    outcome: Literal["done", "undone"]
    reason: str = ""
    target: Deployed
    before: Deployed | None
    by: str
    started_at: datetime
    finished_at: datetime
    steps: list[Done]


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
    def run(self) -> Run:
        """What this process carries out."""
        if self.head.run is None:
            raise PromotionError(f"nothing is under way for {self.name}")
        return self.head.run

    def refresh(self) -> None:
        """Look at what the store has now.

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

    def begin(self, run: Run) -> None:
        """Become the one who promotes.

        Raises:
            PromotionError: Somebody else is; says who.
        """
        try:
            self._write(msgspec.structs.replace(self.head, run=run))
        except SupersededError:
            self.refresh()
            raise self.busy() from None

    def take_over(self, *, pause: Callable[[float], object] = time.sleep) -> None:
        """Go on with what a process that is dead has left.

        Args:
            pause: Waits that many seconds.

        Raises:
            PromotionError: It is alive.
        """
        alive = machine.is_alive(self.run.owner)
        if alive or (alive is None and self._stirs(pause)):
            raise self.busy()
        try:
            self.note(owner=machine.this_owner(self.run.id))
        except SupersededError:
            self.refresh()
            raise self.busy() from None

    def busy(self) -> PromotionError:
        """The error for one who comes second."""
        if self.head.run is None:
            return PromotionError(f"{self.name} was just changed by someone else: look again")
        run = self.head.run
        verb = "promoting" if run.kind == "promote" else "rolling back to"
        return PromotionError(
            f"{run.owner} is {verb} {run.target} since {run.started_at:%H:%M:%S} UTC"
            f"{f' ({run.doing})' if run.doing else ''}: wait until that is over"
        )

    def _stirs(self, pause: Callable[[float], object]) -> bool:
        """Whether somebody on another machine gives a sign of life within the time for it."""
        for _ in range(int(SILENCE / BEAT) + 1):
            before = self._version
            pause(BEAT)
            self.refresh()
            if self._version != before:
                return True
        return False

    def beat(self) -> None:
        """Give a sign of life, and learn whether this is still ours to carry out.

        Raises:
            SupersededError: It is not.
        """
        self.note(beat=self.run.beat + 1)

    def note(self, *, head: dict[str, Any] | None = None, **changes: Any) -> None:
        """Write down what has become of the run, and of the head with it, in one act.

        Raises:
            SupersededError: Another process has taken over.
            StoreError: It can't be written. Nothing more may be done.
        """
        run = msgspec.structs.replace(self.run, **changes)
        self._write(msgspec.structs.replace(self.head, run=run, **(head or {})))

    def close(self, outcome: Literal["done", "undone"], before: Deployed | None) -> Entry:
        """Put what is over into the history, and make way for the next."""
        run = self.run
        entry = Entry(
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
        path = f"{FOLDER}{self.name}/history/{run.started_at:%Y%m%dT%H%M%S}-{run.id}.json"
        try:
            self._store.create(path, encode(entry))
        except RecordExistsError:  # one who was killed right afterwards
            entry = decode(self._store.read(path).data, Entry)
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
                f"{self.name} was taken over by another process: this one stops"
            ) from error
        self.head = head


def history(store: Store, name: str) -> list[Entry]:
    """All that was done to one production name, oldest first; a broken record is left out."""
    found = []
    for _, data in store.records(f"{FOLDER}{name}/history/"):
        with suppress(msgspec.MsgspecError):
            found.append(decode(data, Entry))
    return sorted(found, key=lambda entry: entry.started_at)


def images(store: Store) -> set[str]:
    """The keys of all images that a production name points to, pointed to, or shall.

    Raises:
        StoreError: A record is broken, so that it can't be told which images are to stay.
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


def _places(data: bytes, *, is_head: bool) -> list[Deployed | None]:
    """What one record says that a name points to, pointed to, or shall."""
    if not is_head:
        entry = decode(data, Entry)
        return [entry.target, entry.before]
    head = decode(data, Head)
    return [head.current, head.previous, None if head.run is None else head.run.target]
