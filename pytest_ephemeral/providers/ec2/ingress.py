"""The security groups of a run: one for all its environments that let in the same, in one network.

What is in a group is not opened to it: rules name addresses, ports and groups of the user's, never
the group itself. So an environment lets in what its ``ingress`` says, as if the group were its own,
and two hundred at once don't make two hundred groups, which AWS would give at five a second.

Who takes it down is whoever leaves last. Nobody has to be right about that: AWS refuses to delete a
group that an instance is in, so none is ever taken from under an environment that goes on, such as
one that was kept or is production.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from pytest_ephemeral import labels, machine
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2 import groups
from pytest_ephemeral.providers.ec2.tagging import PROCESS, as_tags

#: What a group is tagged with as its id begins so: it is no environment's.
PREFIX: Final = "ingress-"

Permissions = Sequence[Mapping[str, Any]]


class Ingress:
    """The groups that this process's environments of one region are in.

    Args:
        client: Of EC2.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self._lock = threading.RLock()
        self._made: dict[str, str] = {}  # an id, and its group
        self._coming: dict[str, set[str]] = defaultdict(set)  # a group, and who launches into it
        self._deleting: set[str] = set()
        self._deleted: set[str] = set()

    def join(self, environment: Environment, vpc: str | None, permissions: Permissions) -> str:
        """Have a group that lets in what it is told, and nothing else.

        Args:
            environment: Whose instances are to be in it.
            vpc: Where; None for the default VPC.
            permissions: As ``AuthorizeSecurityGroupIngress`` takes them.

        Returns:
            The group's id.
        """
        id = _id_of(environment.labels[labels.RUN], vpc, permissions)
        with self._lock:
            if id not in self._made:
                marks = as_tags(_marks(environment, id))
                self._made[id] = groups.ensure(self._client, id, marks, vpc, permissions)
            self._coming[self._made[id]].add(environment.id)
            return self._made[id]

    def arrived(self, environment: Environment, group: str) -> None:
        """Its instances are in the group: from now on, that can be seen."""
        with self._lock:
            self._coming[group].discard(environment.id)

    def lost(self, environment: Environment, group: str) -> None:
        """Look for a group anew: it is not there, or can't be seen yet."""
        with self._lock:
            self._made = {id: made for id, made in self._made.items() if made != group}
            self._coming[group].discard(environment.id)

    def knows(self, group: str) -> bool:
        """Whether this process made, found or deleted the group itself."""
        with self._lock:
            return group in self._deleted or group in self._made.values()

    def leave(self, environment: Environment, group: str, others: Callable[[], bool]) -> None:
        """Delete a group, unless it is for others to delete.

        Args:
            environment: Which has ended.
            group: What its instances were in.
            others: Whether instances of other environments are in it.

        Raises:
            DestroyError: Something else uses it; says what.
        """
        with self._lock:
            self._coming[group].discard(environment.id)
            if group in self._deleting:
                return
            self._deleting.add(group)
        try:
            self._delete(group, others)
        finally:
            with self._lock:
                self._deleting.discard(group)

    def _delete(self, group: str, others: Callable[[], bool]) -> None:
        deadline = time.monotonic() + groups.LINGER
        while True:
            with self._lock:  # who joins or leaves meanwhile does so before it, or after it
                if group in self._deleted or self._coming[group] or others():
                    self._deleting.discard(group)
                    return
                if groups.try_delete(self._client, group):
                    self._deleted.add(group)
                    self._made = {id: made for id, made in self._made.items() if made != group}
                    return
            if time.monotonic() >= deadline:
                raise groups.still_used(self._client, group)
            time.sleep(groups.PAUSE)


def of_run(client: Any, run: str) -> list[str]:
    """The groups that a run's environments share."""
    found = groups.described(client, f"tag:{labels.RUN}", [run])
    return [str(one["GroupId"]) for one in found if is_shared(one)]


def is_shared(group: Mapping[str, Any]) -> bool:
    """Whether a group is one that a run's environments share."""
    return str(group["GroupName"]).startswith(groups.name_of(PREFIX))


def _id_of(run: str, vpc: str | None, permissions: Permissions) -> str:
    text = json.dumps([run, vpc, list(permissions)], sort_keys=True)
    return PREFIX + hashlib.sha256(text.encode()).hexdigest()[:12]


def _marks(environment: Environment, id: str) -> dict[str, str]:
    """It outlives the environment that it was made for, if another is in it; but not their run."""
    process = machine.process_of(environment.owner)
    return {**environment.labels, labels.ID: id, PROCESS: process, "Name": id}
