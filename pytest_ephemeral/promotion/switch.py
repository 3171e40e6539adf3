"""Moving a production name to an environment, and back.

Whenever this is killed, running it again finishes it or takes it back: every step is written down
in the store first, and can be done twice.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import Literal

import msgspec

from pytest_ephemeral import machine
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import (
    EphemeralError,
    NameChangedError,
    NothingMatchedError,
    PromotionError,
    StoreError,
    SupersededError,
)
from pytest_ephemeral.models import Environment
from pytest_ephemeral.project import Project
from pytest_ephemeral.promotion import probing, requirements
from pytest_ephemeral.promotion.dns import Backend, shown
from pytest_ephemeral.promotion.journal import Deployed, Entry, Journal, Run
from pytest_ephemeral.promotion.moving import Times
from pytest_ephemeral.promotion.steps import Event, Steps, kept_for, unchanged
from pytest_ephemeral.tables import Promotion


class Switch(msgspec.Struct):
    """Moves one production name.

    Attributes:
        project: Where ledger, approvals and journals are.
        promotion: The name's table.
        backend: What serves the name.
        publish: Told the environment, and the URL it has as production.
        say: Told what is going on.
        accept: Whether a name that someone has changed by hand is taken as it is.
        times: How time passes.
        at: Called at each point between two acts, with its name. Tests stop the process there.
    """

    project: Project
    promotion: Promotion
    backend: Backend
    publish: Callable[[Environment, str], None]
    say: Callable[[Event], None]
    accept: bool = False
    times: Times = msgspec.field(default_factory=Times)
    at: Callable[[str], None] = lambda _: None

    def promote(self, id: str) -> Entry | None:
        """Make an environment production, or go on where one who was killed has stopped.

        Args:
            id: The environment's, or the beginning of it.

        Returns:
            What was done; None when it is production already.

        Raises:
            PromotionError: It is not, and the name points where it did before; or somebody else
                is at it.
            StoreError: What was done can't be written down. Nothing more was done.
            NothingMatchedError: There is no such environment.
        """
        journal = self._journal()
        if journal.head.run is not None:
            self._resume(journal, "promote", id)
            return self._carry_out(journal)
        environment = self.project.ledger.get(id)
        current = journal.head.current
        if current is not None and current.environment == environment.id:
            return None
        journal.begin(self._run("promote", self._target(environment, journal), environment))
        return self._carry_out(journal)

    def rollback(self) -> Entry:
        """Point the name to what was production before, or take back what was left unfinished.

        Raises:
            PromotionError: There is nothing to go back to, or it failed.
            NothingMatchedError: What was production before is gone.
        """
        journal = self._journal()
        run = journal.head.run
        if run is not None and run.kind == "promote":
            journal.take_over(pause=self.times.pause)
            if not run.has_done("record"):
                return self._undo(journal, run.failed or "it was left unfinished")
            self._carry_out(journal)
            run = None
        if run is not None:
            self._resume(journal, "rollback", run.target.environment)
        else:
            journal.begin(self._way_back(journal))
        return self._carry_out(journal)

    def plan(self, id: str) -> list[str]:
        """What ``promote`` would do, step by step, having checked all that can be checked.

        Raises:
            EphemeralError: It would be refused.
        """
        journal = self._journal()
        if journal.head.run is not None:
            raise journal.busy()
        environment = self.project.ledger.get(id)
        before = journal.head.current
        if before is not None and before.environment == environment.id:
            return []
        self._target(environment, journal)
        old = unchanged(self.promotion, self.backend.read(), journal.head, accept=self.accept)
        ttl, host = int(self.promotion.record_ttl), probing.endpoint_of(environment).host
        new = self.backend.pointing_to(host, ttl, old)
        longest = max((record.ttl for record in old), default=0)
        lower = f"lower the record's time to live from {longest} s to {ttl} s, and wait {longest} s"
        kept = Duration(kept_for(self.promotion, new).total_seconds())
        ours = before is not None and before.environment
        return [
            f"disarm the expiry of {environment.id}, and prove it",
            *([lower] if longest > ttl else []),
            f"check {environment.id} at {environment.url}",
            f"move {self.promotion.record} from {shown(old)} to {shown(new)}",
            "wait until all authoritative servers answer with it",
            f"verify it through {self.promotion.record}, and go back if that fails",
            f"let {before} end after {kept}" if ours else "leave what the name pointed to before",
        ]

    # -- before the first step ---------------------------------------------------------------

    def _journal(self) -> Journal:
        return Journal(self.project.store, self.promotion.name)

    def _target(self, environment: Environment, journal: Journal) -> Deployed:
        """What the name shall point to, if it may.

        Raises:
            PromotionError: It may not.
        """
        if environment.production is not None:
            raise PromotionError(f"{environment.id} is {environment.production} already")
        if environment.state != "ready" or not environment.endpoints:
            raise PromotionError(f"{environment.id} has nothing that answers: it is not up")
        evidence = requirements.check(self.project.store, self.promotion, environment)
        url = self._url(environment)
        current = journal.head.current
        # A name says an address and no port: clients go on using the port they know.
        if current is not None and current.url not in {"", url}:
            raise PromotionError(
                f"clients know {self.promotion.name} as {current.url}, and {environment.id} would "
                f"be {url}: promote an environment of a template with the same port"
            )
        approval, owner = evidence.approval, machine.this_owner("")
        return Deployed(
            environment=environment.id,
            template=environment.template,
            image=environment.image,
            url=url,
            artifact=self._artifact(environment),
            revision=evidence.revision,
            by=f"{owner.user}@{owner.host}",
            at=self.times.now(),
            approved_by=approval.decided_by if approval else "",
            comment=approval.comment if approval else "",
            stages={name: stage.run for name, stage in evidence.stages.items()},
        )

    def _url(self, environment: Environment) -> str:
        endpoint = probing.endpoint_of(environment)
        return msgspec.structs.replace(endpoint, host=self.promotion.record).url

    def _artifact(self, environment: Environment) -> str:
        """What the image was baked from, as people call it."""
        digest = environment.image.artifact if environment.image else None
        try:
            entries = self.project.artifacts.entries() if digest else []
        except EphemeralError:
            entries = []
        return next(
            (f"{one.name}@{one.version}" for one in entries if one.digest == digest), digest or ""
        )

    def _run(
        self,
        kind: Literal["promote", "rollback"],
        target: Deployed,
        environment: Environment | None,
    ) -> Run:
        id = secrets.token_hex(4)
        return Run(
            id=id,
            kind=kind,
            owner=machine.this_owner(id),
            started_at=self.times.now(),
            target=target,
            expires_at=environment.expires_at if environment else None,
        )

    def _way_back(self, journal: Journal) -> Run:
        name, previous = self.promotion.name, journal.head.previous
        if previous is None or not previous.records:
            raise PromotionError(
                f"there was no {name} before: see `pytest-ephemeral history {name}`"
            )
        if not previous.environment:
            return self._run("rollback", previous, None)
        try:
            environment = self.project.ledger.get(previous.environment)
        except NothingMatchedError:
            raise NothingMatchedError(
                f"{previous}, which was {name} before, is gone: it was kept for "
                f"{self.promotion.keep_old}. Promote another environment"
            ) from None
        return self._run("rollback", previous, environment)

    def _resume(self, journal: Journal, kind: str, id: str) -> None:
        run = journal.run
        if run.kind != kind or not run.target.environment.startswith(id):
            verb = "rollback"
            if run.kind == "promote":
                verb = f"promote {run.target.environment} --to"
            raise PromotionError(
                f"{journal.busy()}. If its process is dead, this finishes it: "
                f"pytest-ephemeral {verb} {self.promotion.name}"
            )
        journal.take_over(pause=self.times.pause)

    # -- and then ----------------------------------------------------------------------------

    def _steps(self, journal: Journal) -> Steps:
        return Steps(
            promotion=self.promotion,
            ledger=self.project.ledger,
            backend=self.backend,
            journal=journal,
            publish=self.publish,
            say=self.say,
            times=self.times,
            at=self.at,
            accept=self.accept,
        )

    def _carry_out(self, journal: Journal) -> Entry:
        if why := journal.run.failed:
            self._undo(journal, why)
            raise PromotionError(self._undone(why))
        try:
            self._steps(journal).forward()
        except SupersededError:
            self._withdraw(journal.run)
            raise
        except StoreError as error:
            error.add_note("Nothing more was done. When the store is back, run the same again")
            raise
        except BaseException as error:
            if journal.run.has_done("record"):
                raise
            why = str(error) or type(error).__name__
            self._take_back(journal, why, error)
            if not isinstance(error, Exception):
                raise
            raise PromotionError(self._undone(why)) from error
        return journal.close("done", journal.head.previous)

    def _take_back(self, journal: Journal, why: str, error: BaseException) -> None:
        """Undo; where that fails as well, say so: running it again goes on with it."""
        try:
            self._undo(journal, why)
        except EphemeralError as worse:
            error.add_note(
                f"And taking it back failed: {worse}\nBoth environments stay up. Run the same "
                "again, and it goes on taking it back"
            )
            raise error from None

    def _undo(self, journal: Journal, why: str) -> Entry:
        self._steps(journal).backward(why)
        return journal.close("undone", journal.head.current)

    def _undone(self, why: str) -> str:
        return f"{self.promotion.name} is what it was before: {why}"

    def _withdraw(self, mine: Run) -> None:
        """Taken for dead while it only stood still: leave no name behind that nobody knows of."""
        latest = self._journal().head
        resumed = latest.run is not None and latest.run.id == mine.id
        current = latest.current
        meant = current is not None and current.environment == mine.target.environment
        if resumed or meant or mine.old is None:
            return
        try:
            self.backend.swap(mine.target.records, mine.old)
        except NameChangedError:
            return  # it had not been moved
