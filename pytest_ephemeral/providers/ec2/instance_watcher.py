"""Watch all instances of a process's environments, by one poll every two seconds.

All who wait for an instance, or ask for its state, read the result of the last poll. So polling
makes as many calls for two hundred environments as for one, and a throttled poll makes nothing
fail: the next one may succeed.
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

#: Seconds between polls, and the random part of it: processes must not poll in step, as they share
#: the account's request limit.
INTERVAL: Final = 2.0
JITTER: Final = 0.1
#: Seconds between polls at most, while EC2 throttles.
LONGEST_INTERVAL: Final = 15.0
#: Polling ends after so many seconds in which nobody has asked.
IDLE: Final = 30.0
#: Seconds for which a new instance may not be visible yet: "eventual consistency" in the EC2 user
#: guide.
UNSEEN: Final = 60.0
#: Seconds for which terminations are collected, to make them in one call.
GATHER: Final = 0.05
#: The largest number of instances in one call.
PAGE: Final = 1000

#: In a handle: the ids that ``RunInstances`` returned.
INSTANCES: Final = "instances"

Instance = Mapping[str, Any]


class _Batch(msgspec.Struct):
    """Instances that are terminated in one call, and the errors of those that could not be."""

    ids: list[str] = msgspec.field(default_factory=list)
    errors: dict[str, Exception] = msgspec.field(default_factory=dict)
    done: threading.Event = msgspec.field(default_factory=threading.Event)


_watchers: dict[tuple[Any, ...], InstanceWatcher] = {}
_watchers_lock = threading.Lock()


def watch_region(region: str | None) -> InstanceWatcher:
    """The watcher of a region: one for each process.

    Raises:
        UnavailableError: AWS can't be reached, or refuses the credentials.
    """
    client = aws.client("ec2", region)
    with _watchers_lock:
        key = (id(client), os.getpid())
        if key not in _watchers:
            _watchers[key] = InstanceWatcher(client)
        return _watchers[key]


class InstanceWatcher:
    """The instances of the runs in one region that someone has asked about lately.

    Args:
        client: An EC2 client.

    Attributes:
        groups: The security groups that the instances share.
        consoles: The instances' consoles.
    """

    def __init__(self, client: Any) -> None:
        self.client = client
        self.groups = SharedGroups(client)
        self.consoles = Consoles(client)
        self._changed = threading.Condition()
        self._seen: dict[str, Instance] = {}
        self._launched: dict[str, float] = {}
        self._adopted: dict[str, Instance] = {}  # by id, with their newest tags
        self._recorded: set[str] = set()  # the ids of instances in records
        self._asked: dict[str, float] = {}  # by run: when someone last asked for it
        self._looks: dict[str, int] = {}  # by run: the number of polls that covered it
        self._thread: threading.Thread | None = None
        self._batch = _Batch()

    def add(self, instances: Sequence[Instance]) -> None:
        """Add new instances as ``RunInstances`` described them, before a poll shows them."""
        with self._changed:
            for instance in instances:
                self._seen.setdefault(instance["InstanceId"], instance)
                self._launched[instance["InstanceId"]] = time.monotonic()

    def adopt(self, instance: Instance) -> None:
        """Add a stopped instance that was tagged anew and started, before a poll shows it so."""
        with self._changed:
            id = instance["InstanceId"]
            self._adopted[id] = self._seen[id] = instance
            self._launched[id] = time.monotonic()

    def instances(self, environment: Environment) -> list[Instance]:
        """The instances of an environment, as of the last poll; the first time, poll now.

        Raises:
            EphemeralError: No poll has covered the run before, and AWS can't be asked now.
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
        """The instances of an environment that are known, without a call to AWS."""
        with self._changed:
            return self._of(environment)

    def wait(
        self, environment: Environment, ready: Callable[[list[Instance]], bool], seconds: float
    ) -> bool:
        """Wait until an environment's instances meet a condition.

        Args:
            environment: The environment.
            ready: The condition.
            seconds: Seconds to wait at most.

        Returns:
            Whether they met it in time.
        """
        deadline = time.monotonic() + seconds
        run = environment.labels[labels.RUN]
        with self._changed:
            looked = self._looks.get(run, 0)
            while True:
                self._ask(run)
                # Wait for a new poll: what is known may be older than the call whose effect
                # is waited for.
                if self._looks.get(run, 0) > looked and ready(self._of(environment)):
                    return True
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, LONGEST_INTERVAL))

    def look(self, runs: Collection[str], client: Any = None) -> int:
        """Poll all instances of some runs, once.

        Args:
            runs: The runs.
            client: The client to use; None for the watcher's own, which retries for long.

        Returns:
            The number of instances.

        Raises:
            EphemeralError: AWS can't be reached, or refuses the credentials.
            ClientError: EC2 refuses the request, or throttles it.
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
        """Terminate instances, in one call with those of other threads.

        Raises:
            EphemeralError: AWS can't be reached, or refuses the credentials.
            ClientError: One of the instances can't be terminated.
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
        """An environment's known instances; if its record names instances, only those."""
        recorded = environment.handle.get(INSTANCES, "").split(",")
        found = [
            one
            for id, one in self._seen.items()
            if _environment(one) == environment.id and (recorded == [""] or id in recorded)
        ]
        return sorted(found, key=lambda one: (one.get("AmiLaunchIndex", 0), one["InstanceId"]))

    def _is_known(self, instance: Instance) -> bool:
        """Whether this tool launched an instance: by its client token, or by the records.

        Some services that are compatible with EC2 do not return the client token.
        """
        known = instance["InstanceId"] in self._launched or instance["InstanceId"] in self._recorded
        return known or has_our_token(instance) or OF_A_STACK in tags_of(instance)

    def _is_stale(self, instance: Instance) -> bool:
        """Whether a poll shows an instance as it was before ``adopt``."""
        id = instance["InstanceId"]
        adopted = self._adopted.get(id)
        if adopted is None or not self._is_young(id):
            return False
        return state(instance) == "stopped" or _environment(instance) != _environment(adopted)

    def _is_young(self, id: str) -> bool:
        return time.monotonic() - self._launched.get(id, float("-inf")) < UNSEEN

    def _ask(self, run: str) -> None:
        """Poll a run from now on; called with the lock held."""
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
            # The pause comes first: callers that can't wait for it poll by themselves.
            time.sleep(interval * random.SystemRandom().uniform(1 - JITTER, 1 + JITTER))
            with self._changed:
                now = time.monotonic()
                self._asked = {r: at for r, at in self._asked.items() if now - at < IDLE}
                runs = list(self._asked)
                if not runs:
                    self._thread = None
                    self._looks.clear()  # the next answer must not come from an old poll
                    self._seen.clear()
                    return
            try:
                seen = aws.poll(self.client, partial(self.look, runs))
            except (ClientError, EphemeralError):
                seen = None
            interval = INTERVAL if seen is not None else min(interval * 2, LONGEST_INTERVAL)


def terminate(client: Any, ids: Collection[str]) -> dict[str, Exception]:
    """Terminate instances in one call; if it fails, each in a call of its own.

    Returns:
        By id: the errors of the instances that can't be terminated.
    """
    errors: dict[str, Exception] = {}
    known = sorted(set(ids))
    for start in range(0, len(known), PAGE):
        page = known[start : start + PAGE]
        try:
            with aws.translate_errors():
                client.terminate_instances(InstanceIds=page)
        except Exception as error:  # noqa: BLE001 - end() raises it in the thread that asked
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
