"""The steps of a promotion. Each one is recorded before it is done, and can be repeated.

After a failure before the step ``record``, all steps are undone. From ``record`` on, the new
environment is in production; the only step left is to let the previous one expire.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timedelta

import msgspec

from pytest_ephemeral.environments import expiry, readiness
from pytest_ephemeral.errors import NameChangedError, NothingMatchedError, PromotionError
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Environment
from pytest_ephemeral.promotion import probing
from pytest_ephemeral.promotion.dns import DnsBackend, DnsRecord, format_records, sort_records
from pytest_ephemeral.promotion.dns_polling import DnsPoller, Times, check_alive
from pytest_ephemeral.promotion.journal import CompletedStep, Deployment, Head, Journal
from pytest_ephemeral.tables import Promotion


class StepEvent(msgspec.Struct, frozen=True):
    """Progress of a promotion.

    Attributes:
        step: The step's name.
        text: Its result; empty at its begin.
        seconds: How long it took.
    """

    step: str
    text: str = ""
    seconds: float = 0.0


class Steps(msgspec.Struct):
    """The steps of one run.

    Attributes:
        promotion: The promotion's table.
        ledger: The ledger with the environments.
        backend: The DNS backend of the name.
        journal: The journal, which records each step.
        publish: Publishes the production URL of an environment.
        say: Receives progress.
        times: The clock and the time limits.
        checkpoint: Called with a name at each point where tests kill the process.
        accept: Whether to continue if the DNS records were changed by somebody else.
    """

    promotion: Promotion
    ledger: Ledger
    backend: DnsBackend
    journal: Journal
    publish: Callable[[Environment, str], None]
    say: Callable[[StepEvent], None]
    times: Times
    checkpoint: Callable[[str], None]
    accept: bool

    def forward(self) -> None:
        """Do all steps that are not completed yet."""
        self._do("disarm", self._disarm)
        self._do("journal", self._note_old)
        self._do("lower-ttl", self._lower_ttl)
        self._do("check", self._check)
        self._do("switch", self._switch)
        self._do("propagate", self._propagate)
        self._do("verify", self._verify)
        self._record()
        self._do("retire", self._retire)

    def backward(self, why: str) -> None:
        """Undo all steps: restore the records, and the environment's expiry."""
        self.journal.note(failed=why)
        self.say(StepEvent("undo", why))
        self._do("restore", self._restore)
        self._do("rearm", self._rearm)

    def _do(self, step: str, act: Callable[[], str]) -> None:
        """Do a step unless it is completed. Its begin and its end are recorded."""
        journal = self.journal
        if journal.run.has_done(step):
            return
        journal.note(doing=step)
        self.say(StepEvent(step))
        self.checkpoint(f"{step}: begun")
        started = self.times.monotonic()
        detail = act()
        seconds = self.times.monotonic() - started
        self.checkpoint(f"{step}: done")
        journal.note(
            doing="", steps=[*journal.run.steps, self._completed_step(step, detail, seconds)]
        )
        self.say(StepEvent(step, detail, seconds))

    def _completed_step(self, step: str, detail: str, seconds: float) -> CompletedStep:
        return CompletedStep(
            step=step, detail=detail, seconds=round(seconds, 3), at=self.times.now()
        )

    # -- forward -----------------------------------------------------------------------------

    def _disarm(self) -> str:
        environment = self._environment()
        if environment is None:
            return "the previous target is not one of our environments"
        return expiry.disarm(self.ledger, environment)

    def _note_old(self) -> str:
        run = self.journal.run
        now = self._poller().retry(self.backend.read)
        old = check_unchanged(self.promotion, now, self.journal.head, accept=self.accept)
        target = run.target
        if not target.records:
            host = probing.endpoint_of(self.ledger.get(target.environment)).host
            new = self.backend.records_for(host, int(self.promotion.record_ttl), old)
            target = msgspec.structs.replace(target, records=sort_records(new))
        self.journal.note(old=old, target=target)
        return f"{self.promotion.record} is {format_records(old)}"

    def _lower_ttl(self) -> str:
        """Lower a long TTL, and wait until caches with the old TTL have expired.

        After a kill in between, it waits for the whole time again, and does not trust a clock.
        """
        run = self.journal.run
        old, ttl = run.old or [], int(self.promotion.record_ttl)
        longest = max((record.ttl for record in old), default=0)
        if longest <= ttl or run.kind == "rollback":
            return f"the TTL of {longest} s is short enough"
        lowered = [msgspec.structs.replace(each, ttl=min(each.ttl, ttl)) for each in old]
        self.journal.note(lowered=lowered)
        poller = self._poller()
        poller.wait_for_propagation(lowered, poller.move(old, lowered))
        self.say(StepEvent("lower-ttl", f"waiting {longest} s, until the old TTL has run out"))
        poller.wait(longest)
        return f"lowered from {longest} s to {ttl} s, then waited {longest} s"

    def _check(self) -> str:
        environment = self._environment()
        if environment is None:
            return "the previous target is not one of our environments: not checked"
        host = probing.endpoint_of(environment).host
        probes = [
            *probing.direct(self.promotion, environment),
            # With the production name, too: the application may reject an unknown host name.
            *probing.through_name(self.promotion, environment, [host]),
        ]
        where = f"{environment.url} (also as {self.promotion.host})"
        self._poller().wait_for_probes(probes, environment, where, self._verify_timeout())
        return f"{where} passes its checks"

    def _switch(self) -> str:
        if (environment := self._environment()) is not None:
            check_alive(environment)
        run = self.journal.run
        old, new = run.old if run.lowered is None else run.lowered, run.target.records
        change = self._poller().move(old or [], new)
        self.checkpoint("switch: moved")
        self.journal.note(change=change)
        return f"{self.promotion.record} is {format_records(new)}"

    def _propagate(self) -> str:
        self._poller().wait_for_propagation(
            self.journal.run.target.records, self.journal.run.change
        )
        return "all authoritative servers return the new record"

    def _verify(self) -> str:
        environment = self._environment()
        addresses = self._poller().retry(self.backend.addresses)
        if not addresses:
            raise PromotionError(f"{self.promotion.record} resolves to no address")
        where = f"{self.promotion.record} at {', '.join(addresses)}"
        if environment is None:
            return where
        probes = probing.through_name(self.promotion, environment, addresses)
        self._poller().wait_for_probes(probes, environment, where, self._verify_timeout())
        return f"{where} passes its checks"

    def _record(self) -> None:
        """Put the new environment into production. That is a single write to the journal."""
        run, head = self.journal.run, self.journal.head
        if run.has_done("record"):
            return
        self.checkpoint("record: begun")
        target = msgspec.structs.replace(run.target, at=self.times.now(), until=None)
        before = head.current or Deployment(records=run.old or [], at=run.started_at)
        detail = f"{target} is {self.promotion.name}"
        self.journal.note(
            head={"current": target, "previous": before},
            target=target,
            steps=[*run.steps, self._completed_step("record", detail, 0.0)],
        )
        self.say(StepEvent("record", detail))

    def _retire(self) -> str:
        """Let the old environment expire, and then mark the new one as production.

        In this order, there are never two environments with the mark.
        """
        current, previous = self.journal.head.current, self.journal.head.previous
        assert current is not None  # the step ``record`` has set both
        assert previous is not None
        result = "the previous target is not one of our environments: left as it is"
        if previous.environment and previous.environment != current.environment:
            until = self.times.now() + retention(self.promotion, current.records)
            result = self._expire(previous.environment, until)
            previous = msgspec.structs.replace(previous, until=until)
            self.journal.note(head={"previous": previous})
        if not current.environment:
            return result
        production = self.ledger.change(current.environment, production=self.promotion.name)
        if production is not None:  # None if it was destroyed meanwhile; see ``Promoter.promote``
            self.publish(production, current.url)
        return result

    # -- backward ----------------------------------------------------------------------------

    def _restore(self) -> str:
        """Restore the DNS records, unless somebody else has changed them."""
        run, poller = self.journal.run, self._poller()
        if run.old is None:
            return "the record was not changed"
        now, change = poller.retry(self.backend.read), ""
        if now not in (run.old, run.lowered, run.target.records):
            return f"left alone: someone else set {self.promotion.record} to {format_records(now)}"
        if now != run.old:
            change = poller.move(now, run.old)
        elif run.lowered is None and not run.has_done("check"):
            return "the record was not changed"
        poller.wait_for_propagation(run.old, change)
        return f"{self.promotion.record} is {format_records(run.old)}"

    def _rearm(self) -> str:
        """Let the environment expire, but not while DNS caches may still have its records."""
        run = self.journal.run
        if not run.target.environment:
            return "it is not one of our environments"
        drained = self.times.now() + timedelta(seconds=_drain(self.promotion, run.target.records))
        until = max(expiry.earliest_end(run.expires_at), drained)
        return self._expire(run.target.environment, until)

    def _expire(self, id: str, when: datetime) -> str:
        """Let an environment expire, unless it is the target of another production name."""
        with suppress(NothingMatchedError):
            production = self.ledger.get(id).production
            if production not in (None, self.promotion.name):
                return f"{id} is {production}, and not {self.promotion.name}: left as it is"
        return expiry.rearm(self.ledger, id, when)

    # -- shared by the steps -----------------------------------------------------------------

    def _environment(self) -> Environment | None:
        id = self.journal.run.target.environment
        return self.ledger.get(id) if id else None

    def _poller(self) -> DnsPoller:
        return DnsPoller(
            self.backend, self.journal, lambda text: self.say(StepEvent("retry", text)), self.times
        )

    def _verify_timeout(self) -> float:
        verify = self.promotion.verify
        return readiness.DEFAULT_TIMEOUT if verify is None else float(verify.timeout)


def check_unchanged(
    promotion: Promotion, now: list[DnsRecord], head: Head, *, accept: bool
) -> list[DnsRecord]:
    """Check that the current records are those of the last promotion.

    Args:
        promotion: The promotion's table.
        now: The current records.
        head: The state in the journal.
        accept: Whether to accept other records.

    Returns:
        The current records.

    Raises:
        NameChangedError: Somebody else has changed them; the message shows both.
    """
    current = head.current
    if current is None or accept or now == sort_records(current.records):
        return now
    raise NameChangedError(
        f"someone else changed {promotion.record}: it is {format_records(now)}, the last promotion "
        f"left {format_records(current.records)}. To continue from the current record: "
        "--accept-record"
    )


def retention(promotion: Promotion, records: Sequence[DnsRecord]) -> timedelta:
    """How long the previous environment stays up after the record has changed."""
    return timedelta(seconds=_drain(promotion, records) + float(promotion.keep_old))


def _drain(promotion: Promotion, records: Sequence[DnsRecord]) -> float:
    """Seconds in which clients may still use the previous records."""
    return max([float(promotion.drain), *(float(record.ttl) for record in records)])
