"""The steps of a promotion, each written down before it is done, and each safe to be done twice.

Up to ``record`` any failure is answered by going back; from ``record`` on the new environment is
production, and only the old one remains to be seen to.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import timedelta

import msgspec

from pytest_ephemeral.environments import readiness
from pytest_ephemeral.environments.ledger import Ledger
from pytest_ephemeral.errors import NameChangedError, PromotionError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.promotion import probing, protection
from pytest_ephemeral.promotion.dns import Backend, Record, arranged, shown
from pytest_ephemeral.promotion.journal import Deployed, Done, Head, Journal
from pytest_ephemeral.promotion.moving import Mover, Times, check_alive
from pytest_ephemeral.tables import Promotion


class Event(msgspec.Struct, frozen=True):
    """Something that whoever waits would like to know.

    Attributes:
        step: What is being done.
        text: How it came out; empty when it begins.
        seconds: How long it took.
    """

    step: str
    text: str = ""
    seconds: float = 0.0


class Steps(msgspec.Struct):
    """What is done for one run.

    Attributes:
        promotion: The name's table.
        ledger: Where environments are recorded.
        backend: What serves the name.
        journal: Where each step is written down.
        publish: Told the environment, and the URL it has as production.
        say: Told what is going on.
        times: How time passes.
        at: Called at each point between two acts, with its name. Tests stop the process there.
        accept: Whether a name that someone has changed by hand is taken as it is.
    """

    promotion: Promotion
    ledger: Ledger
    backend: Backend
    journal: Journal
    publish: Callable[[Environment, str], None]
    say: Callable[[Event], None]
    times: Times
    at: Callable[[str], None]
    accept: bool

    def forward(self) -> None:
        """Do what has not been done yet."""
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
        """Put back what has been done."""
        self.journal.note(failed=why)
        self.say(Event("undo", why))
        self._do("restore", self._restore)
        self._do("rearm", self._rearm)

    def _do(self, step: str, act: Callable[[], str]) -> None:
        """Do a step, unless it is done: written down as begun before, and as done after."""
        journal = self.journal
        if journal.run.has_done(step):
            return
        journal.note(doing=step)
        self.say(Event(step))
        self.at(f"{step}: begun")
        started = self.times.monotonic()
        detail = act()
        seconds = self.times.monotonic() - started
        self.at(f"{step}: done")
        journal.note(doing="", steps=[*journal.run.steps, self._done(step, detail, seconds)])
        self.say(Event(step, detail, seconds))

    def _done(self, step: str, detail: str, seconds: float) -> Done:
        return Done(step=step, detail=detail, seconds=round(seconds, 3), at=self.times.now())

    # -- forward -----------------------------------------------------------------------------

    def _disarm(self) -> str:
        environment = self._environment()
        if environment is None:
            return "what it pointed to before is not ours"
        return protection.disarm(self.ledger, environment)

    def _note_old(self) -> str:
        run = self.journal.run
        now = self._mover().patiently(self.backend.read)
        old = unchanged(self.promotion, now, self.journal.head, accept=self.accept)
        target = run.target
        if not target.records:
            host = probing.endpoint_of(self.ledger.get(target.environment)).host
            new = self.backend.pointing_to(host, int(self.promotion.record_ttl), old)
            target = msgspec.structs.replace(target, records=arranged(new))
        self.journal.note(old=old, target=target)
        return f"{self.promotion.record} is {shown(old)}"

    def _lower_ttl(self) -> str:
        """Have resolvers ask again soon, before the name moves.

        Killed in between, the whole time is waited out again: no clock has to be trusted.
        """
        run = self.journal.run
        old, ttl = run.old or [], int(self.promotion.record_ttl)
        longest = max((record.ttl for record in old), default=0)
        if longest <= ttl or run.kind == "rollback":
            return f"{longest} s is short enough"
        lowered = [msgspec.structs.replace(each, ttl=min(each.ttl, ttl)) for each in old]
        self.journal.note(lowered=lowered)
        mover = self._mover()
        mover.settle(lowered, mover.move(old, lowered))
        self.say(Event("lower-ttl", f"waiting {longest} s, until nobody remembers the long one"))
        mover.wait(longest)
        return f"from {longest} s to {ttl} s, and waited {longest} s"

    def _check(self) -> str:
        environment = self._environment()
        if environment is None:
            return "what it pointed to before is not ours to check"
        host = probing.endpoint_of(environment).host
        probes = [
            *probing.direct(self.promotion, environment),
            # As it will be asked: what does not know the name is found before a client meets it.
            *probing.through_name(self.promotion, environment, [host]),
        ]
        where = f"{environment.url}, also asked as {self.promotion.record},"
        self._mover().until_all(probes, environment, where, self._verify_timeout())
        return f"{where} is as it should be"

    def _switch(self) -> str:
        if (environment := self._environment()) is not None:
            check_alive(environment)
        run = self.journal.run
        old, new = run.old if run.lowered is None else run.lowered, run.target.records
        change = self._mover().move(old or [], new)
        self.at("switch: moved")
        self.journal.note(change=change)
        return f"{self.promotion.record} is {shown(new)}"

    def _propagate(self) -> str:
        self._mover().settle(self.journal.run.target.records, self.journal.run.change)
        return "all authoritative servers answer with it"

    def _verify(self) -> str:
        environment = self._environment()
        addresses = self._mover().patiently(self.backend.addresses)
        if not addresses:
            raise PromotionError(f"{self.promotion.record} leads to no address")
        where = f"{self.promotion.record} at {', '.join(addresses)}"
        if environment is None:
            return where
        probes = probing.through_name(self.promotion, environment, addresses)
        self._mover().until_all(probes, environment, where, self._verify_timeout())
        return f"{where} is as it should be"

    def _record(self) -> None:
        """From this one write on, the new environment is production and the old one is not."""
        run, head = self.journal.run, self.journal.head
        if run.has_done("record"):
            return
        self.at("record: begun")
        target = msgspec.structs.replace(run.target, at=self.times.now(), until=None)
        before = head.current or Deployed(records=run.old or [], at=run.started_at)
        detail = f"{target} is {self.promotion.name}"
        self.journal.note(
            head={"current": target, "previous": before},
            target=target,
            steps=[*run.steps, self._done("record", detail, 0.0)],
        )
        self.say(Event("record", detail))

    def _retire(self) -> str:
        """Give the old one its end and mark the new one, in this order: never are two marked."""
        current, previous = self.journal.head.current, self.journal.head.previous
        assert current is not None  # ``record`` has put both there
        assert previous is not None
        said = "what the name pointed to before is not ours, and stays as it is"
        if previous.environment and previous.environment != current.environment:
            until = self.times.now() + kept_for(self.promotion, current.records)
            said = protection.let_expire(self.ledger, previous.environment, until)
            previous = msgspec.structs.replace(previous, until=until)
            self.journal.note(head={"previous": previous})
        if current.environment:
            self.ledger.change(current.environment, production=self.promotion.name)
            self.publish(self.ledger.get(current.environment), current.url)
        return said

    # -- backward ----------------------------------------------------------------------------

    def _restore(self) -> str:
        """Make the name say what it said, if it says what this promotion has made it say."""
        run, mover = self.journal.run, self._mover()
        if run.old is None:
            return "the name was not touched"
        now, change = mover.patiently(self.backend.read), ""
        if now not in (run.old, run.lowered, run.target.records):
            return f"someone else has changed {self.promotion.record} to {shown(now)}: left alone"
        if now != run.old:
            change = mover.move(now, run.old)
        elif run.lowered is None and not run.has_done("check"):
            return "the name was not moved"
        mover.settle(run.old, change)
        return f"{self.promotion.record} is {shown(run.old)}"

    def _rearm(self) -> str:
        """Let what did not become production end, but not while clients may still come to it."""
        run = self.journal.run
        if not run.target.environment:
            return "nothing of it is ours"
        drained = self.times.now() + timedelta(seconds=_drain(self.promotion, run.target.records))
        until = max(protection.afterwards(run.expires_at), drained)
        return protection.let_expire(self.ledger, run.target.environment, until)

    # -- what they need ----------------------------------------------------------------------

    def _environment(self) -> Environment | None:
        id = self.journal.run.target.environment
        return self.ledger.get(id) if id else None

    def _mover(self) -> Mover:
        return Mover(self.backend, self.journal, self.times)

    def _verify_timeout(self) -> float:
        verify = self.promotion.verify
        return readiness.DEFAULT_TIMEOUT if verify is None else float(verify.timeout)


def unchanged(promotion: Promotion, now: list[Record], head: Head, *, accept: bool) -> list[Record]:
    """What a name says, which must be what the last promotion has made it say.

    Args:
        promotion: Whose name.
        now: What it says.
        head: What is known of it.
        accept: Take it as it is, whatever it says.

    Raises:
        NameChangedError: Somebody else has changed it; shows both.
    """
    current = head.current
    if current is None or accept or now == arranged(current.records):
        return now
    raise NameChangedError(
        f"{promotion.record} was changed by someone else: it is {shown(now)}, and the last "
        f"promotion left it as {shown(current.records)}. To go on from what it is now: "
        "--accept-record"
    )


def kept_for(promotion: Promotion, records: Sequence[Record]) -> timedelta:
    """How long the old environment stays after the name has moved to these records."""
    return timedelta(seconds=_drain(promotion, records) + float(promotion.keep_old))


def _drain(promotion: Promotion, records: Sequence[Record]) -> float:
    """Seconds in which clients may come to where the name does not point any more."""
    return max([float(promotion.drain), *(float(record.ttl) for record in records)])
