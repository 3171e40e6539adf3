"""Watch all instances of a process's environments, by one look every two seconds.

Whatever waits for an instance, or asks for its state, reads what the last look saw. So polling
costs the account the same for one environment as for two hundred, and a look that is throttled
fails nothing: the next one sees.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2.console import Consoles
from pytest_ephemeral.providers.ec2.security_groups import SharedGroups
from pytest_ephemeral.providers.ec2.tags import OF_A_STACK, has_our_token, tags_of

#: Seconds between looks, and how much of it is left to chance, so that processes don't march in
#: step through the account's common limit.
INTERVAL: Final = 2.0
JITTER: Final = 0.1
#: Between looks while the account is over its limit.
LONGEST_INTERVAL: Final = 15.0
#: Without anyone who asked for so long, looking ends.
IDLE: Final = 30.0
#: For how long an instance may not be visible yet, after it was launched: "eventual consistency"
#: in the EC2 user guide.
UNSEEN: Final = 60.0
#: How long those who end instances wait for each other, to do it in one call.
GATHER: Final = 0.05
#: At most this many in one call.
PAGE: Final = 1000

#: In a handle: the ids that ``RunInstances`` returned.
INSTANCES: Final = "instances"

Instance = Mapping[str, Any]


class _Batch(msgspec.Struct):
    """Instances that are terminated in one call, and what came of those that could not be."""

    ids: list[str] = msgspec.field(default_factory=list)
    errors: dict[str, Exception] = msgspec.field(default_factory=dict)
    done: threading.Event = msgspec.field(default_factory=threading.Event)


_watchers: dict[tuple[Any, ...], InstanceWatcher] = {}
_watchers_lock = threading.Lock()


def watch_region(region: str | None) -> InstanceWatcher:
    """The watcher of a region, the same for all who ask in this process.

    Raises:
        UnavailableError: AWS can't be asked from here.
    """
    client = aws.client("ec2", region)
    with _watchers_lock:
        key = (id(client), os.getpid())
        if key not in _watchers:
            _watchers[key] = InstanceWatcher(client)
        return _watchers[key]


class InstanceWatcher:
    """The instances of one region that carry the labels of runs someone has asked about.

    Args:
        client: Of EC2.

    Attributes:
        groups: The security groups that they share.
        consoles: What they print.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.groups = SharedGroups(client)
        self.consoles = Consoles(client)
        self._changed = threading.Condition()
        self._seen: dict[str, Instance] = {}
        self._launched: dict[str, float] = {}
        self._adopted: dict[str, Instance] = {}  # by id, with the tags that they were given last
        self._recorded: set[str] = set()  # the instances that records name
        self._asked: dict[str, float] = {}  # a run, and when it was asked about last
        self._looks: dict[str, int] = {}  # a run, and how many looks have covered it
        self._thread: threading.Thread | None = None
        self._batch = _Batch()

    def add(self, instances: Sequence[Instance]) -> None:
        """Know instances by what launching them gave, before any look sees them."""
        with self._changed:
            for instance in instances:
                self._seen.setdefault(instance["InstanceId"], instance)
                self._launched[instance["InstanceId"]] = time.monotonic()

    def adopt(self, instance: Instance) -> None:
        """Know that a stopped instance has new tags, and starts; looks may not show it yet."""
        with self._changed:
            id = instance["InstanceId"]
            self._adopted[id] = self._seen[id] = instance
            self._launched[id] = time.monotonic()

    def instances(self, environment: Environment) -> list[Instance]:
        """The instances of an environment, as they were last seen: no more than a look ago.

        Raises:
            EphemeralError: It was never seen, and now can't be inspected.
        """
        run = environment.labels[labels.RUN]
        with self._changed:
            self._recorded.update(filter(None, environment.handle.get(INSTANCES, "").split(",")))
            self._ask(run)
            if self._looks.get(run) or environment.id in map(_environment, self._seen.values()):
                return self._of(environment)
        self.look([run])
        with self._changed:
            return self._of(environment)

    def others(self, environment: Environment) -> list[Instance]:
        """The instances of the same run's other environments; see ``instances``."""
        run = environment.labels[labels.RUN]
        with self._changed:
            self._ask(run)
            looked = self._looks.get(run)
        if not looked:
            self.look([run])
        with self._changed:
            found = [one for one in self._seen.values() if _run(one) == run]
        return [one for one in found if _environment(one) != environment.id]

    def recall(self, environment: Environment) -> list[Instance]:
        """As ``instances``, but nothing is asked: what is not known is missing."""
        with self._changed:
            return self._of(environment)

    def wait(
        self, environment: Environment, ready: Callable[[list[Instance]], bool], seconds: float
    ) -> bool:
        """Wait until an environment's instances are as they should be.

        Args:
            environment: Whose.
            ready: Whether they are.
            seconds: How long, at most.

        Returns:
            Whether they became so in time.
        """
        deadline = time.monotonic() + seconds
        run = environment.labels[labels.RUN]
        with self._changed:
            looked = self._looks.get(run, 0)
            while True:
                self._ask(run)
                # What launching or ending gave may be older than what is waited for.
                if self._looks.get(run, 0) > looked and ready(self._of(environment)):
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, LONGEST_INTERVAL))

    def look(self, runs: Collection[str], client: Any = None) -> int:
        """Look once at all instances of some runs.

        Args:
            runs: Which.
            client: Another than the one that waits long for an answer.

        Returns:
            How many there are.

        Raises:
            EphemeralError: AWS can't be asked from here.
            ClientError: It refuses, or has too much to do.
        """
        pages = (client or self.client).get_paginator("describe_instances")
        wanted = [{"Name": f"tag:{labels.RUN}", "Values": sorted(runs)}]
        with aws.translate_errors():
            found = {
                instance["InstanceId"]: instance
                for page in pages.paginate(Filters=wanted, PaginationConfig={"PageSize": PAGE})
                for reservation in page["Reservations"]
                for instance in reservation["Instances"]
                if self._is_known(instance) and not self._is_stale(instance)
            }
        with self._changed:
            for id, instance in list(self._seen.items()):
                if id not in found and _run(instance) in runs and not self._is_young(id):
                    del self._seen[id]
            self._seen |= found
            for run in runs:
                self._looks[run] = self._looks.get(run, 0) + 1
            self._changed.notify_all()
        return len(found)

    def end(self, ids: Sequence[str]) -> None:
        """Terminate instances, in one call with all who want the same now.

        Raises:
            EphemeralError: AWS can't be asked from here.
            ClientError: One of them can't be.
        """
        with self._changed:
            batch, leads = self._batch, not self._batch.ids
            batch.ids += ids
        if leads:
            time.sleep(GATHER)
            with self._changed:
                self._batch = _Batch()
            try:
                batch.errors = terminate(self.client, batch.ids)
            finally:
                batch.done.set()
        batch.done.wait()
        errors = [batch.errors[id] for id in ids if id in batch.errors]
        if errors:
            raise errors[0]

    def _of(self, environment: Environment) -> list[Instance]:
        """Its instances: those that its record names, if it names any."""
        recorded = environment.handle.get(INSTANCES, "").split(",")
        found = [
            one
            for id, one in self._seen.items()
            if _environment(one) == environment.id and (recorded == [""] or id in recorded)
        ]
        return sorted(found, key=lambda one: (one.get("AmiLaunchIndex", 0), one["InstanceId"]))

    def _is_known(self, instance: Instance) -> bool:
        """Whether an instance was launched by us: some services don't return the client token."""
        known = instance["InstanceId"] in self._launched or instance["InstanceId"] in self._recorded
        return known or has_our_token(instance) or OF_A_STACK in tags_of(instance)

    def _is_stale(self, instance: Instance) -> bool:
        """Whether a look shows an instance as it was before it was adopted, and started."""
        id = instance["InstanceId"]
        adopted = self._adopted.get(id)
        if adopted is None or not self._is_young(id):
            return False
        return state(instance) == "stopped" or _environment(instance) != _environment(adopted)

    def _is_young(self, id: str) -> bool:
        return time.monotonic() - self._launched.get(id, float("-inf")) < UNSEEN

    def _ask(self, run: str) -> None:
        """Have a run looked at from now on; called with the lock held."""
        self._asked[run] = time.monotonic()
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._watch, name="watches EC2 instances", daemon=True
            )
            self._thread.start()

    def _watch(self) -> None:
        from botocore.exceptions import ClientError

        interval = INTERVAL
        while True:
            # Whoever could not wait so long has looked already.
            time.sleep(interval * random.SystemRandom().uniform(1 - JITTER, 1 + JITTER))
            with self._changed:
                now = time.monotonic()
                self._asked = {r: at for r, at in self._asked.items() if now - at < IDLE}
                runs = list(self._asked)
                if not runs:
                    self._thread = None
                    self._looks.clear()  # what was seen is too old to be told to anyone
                    self._seen.clear()
                    return
            try:
                seen = aws.poll(self.client, partial(self.look, runs))
            except (ClientError, EphemeralError):
                seen = None
            interval = INTERVAL if seen is not None else min(interval * 2, LONGEST_INTERVAL)


def terminate(client: Any, ids: Collection[str]) -> dict[str, Exception]:
    """Terminate instances; where one spoils the call for the others, each by itself.

    Returns:
        Why those can't be that can't.
    """
    errors: dict[str, Exception] = {}
    known = sorted(set(ids))
    for start in range(0, len(known), PAGE):
        page = known[start : start + PAGE]
        try:
            with aws.translate_errors():
                client.terminate_instances(InstanceIds=page)
        except Exception as error:  # noqa: BLE001 - it is given to whoever waits for it
            if len(page) == 1:
                errors[page[0]] = error
            else:
                for id in page:
                    errors |= terminate(client, [id])
    return errors


def state(instance: Instance) -> str:
    """``pending``, ``running``, ``shutting-down``, ``terminated``, ``stopping`` or ``stopped``."""
    return str(instance["State"]["Name"])


def _environment(instance: Instance) -> str:
    return tags_of(instance).get(labels.ID, "")


def _run(instance: Instance) -> str:
    return tags_of(instance).get(labels.RUN, "")
