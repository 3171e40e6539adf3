"""Promotion: make a production name point to an environment, or back to the previous one.

Every step is recorded in the store before it is done, and can be repeated. So after a kill at any
point, the same command completes or undoes the promotion.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
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
from pytest_ephemeral.promotion.dns import DnsBackend, format_records
from pytest_ephemeral.promotion.dns_polling import Times
from pytest_ephemeral.promotion.journal import Deployment, HistoryEntry, Journal, PromotionRun
from pytest_ephemeral.promotion.steps import StepEvent, Steps, check_unchanged, retention
from pytest_ephemeral.tables import Promotion


class Promoter(msgspec.Struct):
    """Promotes environments to one production name.

    Attributes:
        project: The project with the ledger, the approvals and the journals.
        promotion: The promotion's table.
        backend: The DNS backend of the name.
        publish: Publishes the production URL of an environment.
        say: Receives progress.
        accept: Whether to continue if the DNS records were changed by somebody else.
        times: The clock and the time limits.
        checkpoint: Called with a name at each point where tests kill the process.
    """

    project: Project
    promotion: Promotion
    backend: DnsBackend
    publish: Callable[[Environment, str], None]
    say: Callable[[StepEvent], None]
    accept: bool = False
    times: Times = msgspec.field(default_factory=Times)
    checkpoint: Callable[[str], None] = lambda _: None

    def promote(self, id: str) -> HistoryEntry | None:
        """Promote an environment, or complete its promotion after a kill.

        Args:
            id: The environment's id, or a unique prefix of it.

        Returns:
            The entry of the history; None if the environment is in production already.

        Raises:
            PromotionError: The promotion failed and was undone, or another one is running.
            StoreError: A step can't be recorded. The promotion has stopped before that step.
            NothingMatchedError: There is no such environment.
        """
        journal = self._journal()
        if journal.head.run is not None:
            self._resume(journal, "promote", id)
            return self._confirm(self._execute(journal))
        environment = self.project.ledger.get(id)
        current = journal.head.current
        if current is not None and current.environment == environment.id:
            return None
        journal.begin(self._run("promote", self._target(environment, journal), environment))
        return self._confirm(self._execute(journal))

    def rollback(self) -> HistoryEntry:
        """Make the name point to the previous environment, or undo an incomplete promotion.

        Returns:
            The entry of the history.

        Raises:
            PromotionError: There is no previous environment, or the rollback failed.
            ProvenanceError: Its image is not signed with the required key.
            NothingMatchedError: The previous environment is gone.
        """
        journal = self._journal()
        run = journal.head.run
        if run is not None and run.kind == "promote":
            journal.take_over(pause=self.times.pause)
            if not run.has_done("record"):
                return self._undo(journal, run.failed or "it was incomplete")
            self._execute(journal)
            run = None
        if run is not None:
            self._resume(journal, "rollback", run.target.environment)
        else:
            journal.begin(self._rollback_run(journal))
        return self._execute(journal)

    def plan(self, id: str) -> list[str]:
        """Describe the steps of ``promote``, after its checks. Changes nothing.

        Returns:
            The steps, for the user; empty if the environment is in production already.

        Raises:
            EphemeralError: A check failed, as it would in ``promote``.
        """
        journal = self._journal()
        if journal.head.run is not None:
            raise journal.busy()
        environment = self.project.ledger.get(id)
        before = journal.head.current
        if before is not None and before.environment == environment.id:
            return []
        self._target(environment, journal)
        old = check_unchanged(self.promotion, self.backend.read(), journal.head, accept=self.accept)
        ttl, host = int(self.promotion.record_ttl), probing.endpoint_of(environment).host
        new = self.backend.records_for(host, ttl, old)
        longest = max((record.ttl for record in old), default=0)
        lower = f"lower the record's TTL from {longest} s to {ttl} s, and wait {longest} s"
        kept = Duration(retention(self.promotion, new).total_seconds())
        ours = before is not None and before.environment
        return [
            f"turn off the expiry of {environment.id}, and verify that it is off",
            *([lower] if longest > ttl else []),
            f"check {environment.id} at {environment.url}",
            f"change {self.promotion.record} from {format_records(old)} to {format_records(new)}",
            "wait until all authoritative servers return the new record",
            f"verify it through {self.promotion.record}, and restore the record if that fails",
            f"destroy {before} after {kept}" if ours else "leave the previous target as it is",
        ]

    # -- before the first step ---------------------------------------------------------------

    def _journal(self) -> Journal:
        return Journal(self.project.store, self.promotion.name)

    def _target(self, environment: Environment, journal: Journal) -> Deployment:
        """Check that an environment can be promoted, and make a target of it.

        Raises:
            PromotionError: It can't be promoted; the message has the reason.
        """
        if environment.production is not None:
            raise PromotionError(f"{environment.id} is already {environment.production}")
        if environment.state != "ready" or not environment.endpoints:
            raise PromotionError(f"{environment.id} is not up: it is {environment.state}")
        self.project.images.signatures.check_environment(environment)
        evidence = requirements.check(self.project.store, self.promotion, environment)
        url = self._url(environment)
        current = journal.head.current
        # DNS has no ports: clients continue to use the previous port.
        if current is not None and current.url not in {"", url}:
            raise PromotionError(
                f"clients know {self.promotion.name} as {current.url}, and {environment.id} would "
                f"be {url}: promote an environment of a template with the same port"
            )
        approval, owner = evidence.approval, machine.this_owner("")
        return Deployment(
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
        return msgspec.structs.replace(endpoint, host=self.promotion.host).url

    def _artifact(self, environment: Environment) -> str:
        """The artifact of its image as ``name@version``, or else its digest."""
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
        target: Deployment,
        environment: Environment | None,
    ) -> PromotionRun:
        id = secrets.token_hex(4)
        return PromotionRun(
            id=id,
            kind=kind,
            owner=machine.this_owner(id),
            started_at=self.times.now(),
            target=target,
            expires_at=environment.expires_at if environment else None,
        )

    def _rollback_run(self, journal: Journal) -> PromotionRun:
        name, previous = self.promotion.name, journal.head.previous
        if previous is None or not previous.records:
            raise PromotionError(
                f"{name} has no rollback target: see `pytest-ephemeral history {name}`"
            )
        if not previous.environment:
            self.project.images.signatures.check_reference(None)
            return self._run("rollback", previous, None)
        try:
            environment = self.project.ledger.get(previous.environment)
        except NothingMatchedError:
            raise NothingMatchedError(
                f"the rollback target {previous} is gone: it was kept for "
                f"{self.promotion.keep_old}. Promote another environment"
            ) from None
        self.project.images.signatures.check_environment(environment)
        return self._run("rollback", previous, environment)

    def _resume(self, journal: Journal, kind: str, id: str) -> None:
        run = journal.run
        if run.kind != kind or not run.target.environment.startswith(id):
            command = "rollback"
            if run.kind == "promote":
                command = f"promote {run.target.environment} --to"
            raise PromotionError(
                f"{journal.busy()}. If its process is dead, complete it: "
                f"pytest-ephemeral {command} {self.promotion.name}"
            )
        if not run.has_done("record"):  # check again: the journal's record may be forged
            self._require_signature(run.target)
        journal.take_over(pause=self.times.pause)

    def _require_signature(self, target: Deployment) -> None:
        """Check that the target's images are signed, if that is required."""
        named = target.environment
        if named:
            self.project.images.signatures.check_environment(self.project.ledger.get(named))
        else:
            self.project.images.signatures.check_reference(None)

    # -- the steps, and what follows a failure -----------------------------------------------

    def _steps(self, journal: Journal) -> Steps:
        return Steps(
            promotion=self.promotion,
            ledger=self.project.ledger,
            backend=self.backend,
            journal=journal,
            publish=self.publish,
            say=self.say,
            times=self.times,
            checkpoint=self.checkpoint,
            accept=self.accept,
        )

    def _execute(self, journal: Journal) -> HistoryEntry:
        if why := journal.run.failed:
            self._undo(journal, why)
            raise PromotionError(self._failure_text(why))
        try:
            self._steps(journal).forward()
        except SupersededError:
            self._withdraw(journal.run)
            raise
        except StoreError as error:
            error.add_note(
                "Nothing more was done. Run the same command again when the store can be reached"
            )
            raise
        except BaseException as error:
            if journal.run.has_done("record"):
                raise
            why = str(error) or type(error).__name__
            self._undo_after(journal, why, error)
            if not isinstance(error, Exception):
                raise
            raise PromotionError(self._failure_text(why)) from error
        return journal.close("done", journal.head.previous)

    def _confirm(self, entry: HistoryEntry) -> HistoryEntry:
        """Check that the new target was not destroyed during the promotion."""
        try:
            self.project.ledger.get(entry.target.environment)
        except NothingMatchedError:
            name = self.promotion.name
            raise PromotionError(
                f"{name} points to {entry.target}, which was destroyed meanwhile: promote another "
                f"environment, or run `pytest-ephemeral rollback {name}`"
            ) from None
        return entry

    def _undo_after(self, journal: Journal, why: str, error: BaseException) -> None:
        """Undo after an error. If that fails, too, add a note: the same command continues it."""
        try:
            self._undo(journal, why)
        except EphemeralError as worse:
            error.add_note(
                f"Undoing it failed, too: {worse}\nBoth environments stay up. Run the same "
                "command again to continue undoing it"
            )
            raise error from None

    def _undo(self, journal: Journal, why: str) -> HistoryEntry:
        self._steps(journal).backward(why)
        return journal.close("undone", journal.head.current)

    def _failure_text(self, why: str) -> str:
        return f"{self.promotion.name} is unchanged: {why}"

    def _withdraw(self, mine: PromotionRun) -> None:
        """After another process has taken over, undo a late change of the records by this one."""
        latest = self._journal().head
        resumed = latest.run is not None and latest.run.id == mine.id
        current = latest.current
        meant = current is not None and current.environment == mine.target.environment
        if resumed or meant or mine.old is None:
            return
        for changed in (mine.target.records, mine.lowered):
            with suppress(NameChangedError):  # the record was not changed to this target
                if changed:
                    self.backend.swap(changed, mine.old)
