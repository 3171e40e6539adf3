"""Stacks: made, waited for, explained when they fail, and deleted, naming what is retained."""

from __future__ import annotations

import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import DestroyError, EphemeralError, LaunchError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.cloudformation.tables import StackTemplate
from pytest_ephemeral.providers.ec2.tagging import as_tags, clock, labels_of, tags_of
from pytest_ephemeral.providers.protocol import Owned

#: Seconds between looks at a stack, and in which one is deleted.
POLL: Final = 2.0
DELETING: Final = 3600.0
#: Seconds in which a stack can be changed that is being changed, or that nothing can be asked of.
BUSY: Final = 300.0

#: What was updated is good, though CloudFormation may still clean up behind it.
_GOOD: Final = frozenset(
    {"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS"}
)

_seen: dict[tuple[int, str], tuple[float, Mapping[str, Any] | None]] = {}
_seen_lock = threading.Lock()


def name_of(id: str) -> str:
    """What an environment's stack is called."""
    return f"pytest-ephemeral-{id}"


def create(
    client: Any,
    environment: Environment,
    template: StackTemplate,
    body: str,
    parameters: Mapping[str, str],
) -> str:
    """Ask for a stack; asked for before, it is found. Its id."""
    from botocore.exceptions import ClientError

    name = name_of(environment.id)
    role = {} if template.role_arn is None else {"RoleARN": template.role_arn}
    try:
        made = client.create_stack(
            StackName=name,
            TemplateBody=body,
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
            ],
            Capabilities=list(template.capabilities),
            Tags=as_tags({key: value for key, value in environment.labels.items() if value}),
            # What failed stays until it has been told of; then all of it is deleted.
            OnFailure="DO_NOTHING",
            # What waits for its signals for ever would outlive its expiry.
            TimeoutInMinutes=max(1, int(template.ttl // 60)),
            ClientRequestToken=hashlib.sha256(name.encode()).hexdigest(),
            **role,
        )
        return str(made["StackId"])
    except ClientError as error:
        if aws.code(error) != "AlreadyExistsException":
            raise
    return str(client.describe_stacks(StackName=name)["Stacks"][0]["StackId"])


def wait_until_made(client: Any, stack: str) -> Mapping[str, Any]:
    """Wait until a stack is there, at most as long as CloudFormation itself does.

    Raises:
        LaunchError: It failed; says which resources, and why.
    """
    while True:
        found = seen(client, stack)
        status = "" if found is None else str(found["StackStatus"])
        if found is not None and status in _GOOD:
            return found
        if found is None or not status.endswith("_IN_PROGRESS") or "ROLLBACK" in status:
            raise LaunchError(
                "\n".join([f"its stack is {status or 'gone'}:", *failures(client, stack)])
            )
        time.sleep(POLL * random.SystemRandom().uniform(0.9, 1.1))


def seen(client: Any, stack: str, *, older: float | None = None) -> Mapping[str, Any] | None:
    """A stack as it was last seen, no more than a look ago; None when there is none.

    Args:
        client: Of CloudFormation.
        stack: Its name or id.
        older: Seconds that what was seen may be old; by default as long as between looks.
    """
    from botocore.exceptions import ClientError

    limit = POLL if older is None else older
    with _seen_lock:
        at, found = _seen.get((id(client), stack), (float("-inf"), None))
        if time.monotonic() - at < limit:
            return found
        try:
            found = _described(client, stack)
        except ClientError as error:
            if aws.code(error) in aws.THROTTLED and at != float("-inf"):
                return found
            if not is_missing(error):
                raise
            found = None
        if found is not None and found["StackStatus"] == "DELETE_COMPLETE":
            found = None
        _seen[id(client), stack] = (time.monotonic(), found)
        return found


def _described(client: Any, stack: str) -> Mapping[str, Any]:
    """A stack as CloudFormation has it, which may have too much to do for a while."""
    from botocore.exceptions import ClientError

    deadline = time.monotonic() + BUSY
    while True:
        try:
            found: Mapping[str, Any] = client.describe_stacks(StackName=stack)["Stacks"][0]
        except ClientError as error:
            if aws.code(error) not in aws.THROTTLED or time.monotonic() > deadline:
                raise
        else:
            return found
        time.sleep(POLL * random.SystemRandom().uniform(0.9, 1.1))


def forget(client: Any, stack: str) -> None:
    """Look anew the next time."""
    with _seen_lock:
        _seen.pop((id(client), stack), None)


def is_missing(error: Any) -> bool:
    """Whether CloudFormation says that there is no such stack."""
    return aws.code(error) == "ValidationError" and "does not exist" in str(error)


def owned(client: Any, name: str | None = None) -> list[Owned]:
    """The stacks that are tagged as ours and called by their ids, or one of them."""
    from botocore.exceptions import ClientError

    only = {} if name is None else {"StackName": name}
    try:
        pages = list(client.get_paginator("describe_stacks").paginate(**only))
    except ClientError as error:
        if name is not None and is_missing(error):
            return []
        raise
    found = [(stack, tags_of(stack)) for page in pages for stack in page["Stacks"]]
    return [
        Owned(
            id=marks[labels.ID],
            labels=labels_of(marks),
            detail=f"stack {stack['StackName']}, {stack['StackStatus']}",
            region=str(client.meta.region_name),
            seen_at=clock(pages[0]),
        )
        for stack, marks in found
        if stack["StackStatus"] != "DELETE_COMPLETE"
        and stack["StackName"] == name_of(marks.get(labels.ID, ""))
    ]


def sweep(client: Any, wanted: Owned, still: Callable[[Owned], bool]) -> bool:
    """Delete a stack if that is still to be done; whether it is gone."""
    found = owned(client, name_of(wanted.id))
    if not all(map(still, found)):
        return False
    for _ in found:
        stack = seen(client, name_of(wanted.id), older=0.0)
        if stack is not None:
            delete(client, str(stack["StackId"]), wanted.id)
    return True


def failures(client: Any, stack: str) -> list[str]:
    """What failed in a stack, first things first: not only that it rolled back."""
    lines = [
        f"  {event['LogicalResourceId']} ({event['ResourceType']}): {event['ResourceStatusReason']}"
        for event in reversed(list(events(client, stack)))
        if event["ResourceStatus"].endswith("_FAILED") and event.get("ResourceStatusReason")
    ]
    # The others were only cancelled because of the first.
    told = [line for line in lines if "cancelled" not in line.lower()]
    return told or lines or ["  its events give no reason"]


def retag(client: Any, found: Mapping[str, Any], marks: Mapping[str, str]) -> None:
    """Change a stack's tags; CloudFormation changes its resources' with them.

    Raises:
        EphemeralError: It took too long, or was taken back.
    """
    from botocore.exceptions import ClientError

    stack = str(found["StackId"])
    deadline = time.monotonic() + BUSY
    while True:
        try:
            client.update_stack(
                StackName=stack,
                UsePreviousTemplate=True,
                Parameters=[
                    {"ParameterKey": one["ParameterKey"], "UsePreviousValue": True}
                    for one in found.get("Parameters", ())
                ],
                Capabilities=list(found.get("Capabilities", ())),
                Tags=as_tags({**tags_of(found), **marks}),
            )
            break
        except ClientError as error:
            if "No updates are to be performed" in str(error):
                return
            if "_IN_PROGRESS" not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(POLL * random.SystemRandom().uniform(0.9, 1.1))
    _wait_until_changed(client, stack, deadline)


def _wait_until_changed(client: Any, stack: str, deadline: float) -> None:
    while (found := seen(client, stack, older=0.0)) is not None:
        status = str(found["StackStatus"])
        if status in _GOOD:
            return
        if not status.endswith("_IN_PROGRESS") or time.monotonic() > deadline:
            lines = "\n".join(failures(client, stack))
            raise EphemeralError(
                f"the tags of its stack were not changed, it is {status}:\n{lines}"
            )
        time.sleep(POLL * random.SystemRandom().uniform(0.9, 1.1))


def events(client: Any, stack: str) -> Iterator[Mapping[str, Any]]:
    """The events of a stack, the newest first."""
    from botocore.exceptions import ClientError

    try:
        for page in client.get_paginator("describe_stack_events").paginate(StackName=stack):
            yield from page["StackEvents"]
    except ClientError as error:
        if not is_missing(error):
            raise


def history(client: Any, stack: str) -> str:
    """The events of a stack as text, a line each, the oldest first."""
    lines = [
        " ".join(
            [
                event["Timestamp"].isoformat(timespec="seconds"),
                *(event["LogicalResourceId"], event["ResourceType"], event["ResourceStatus"]),
                *event.get("ResourceStatusReason", "").split(),
            ]
        )
        for event in events(client, stack)
    ]
    return "\n".join(reversed(lines))


def delete(client: Any, stack: str, id: str) -> None:
    """Delete a stack, and wait until it is gone.

    Args:
        client: Of CloudFormation.
        stack: Its id, under which it can be seen when it is gone; or its name.
        id: The environment's, for messages.

    Raises:
        DestroyError: Something of it remains: it can't be deleted, or its template retains it.
    """
    client.delete_stack(StackName=stack)
    deadline = time.monotonic() + DELETING
    while (found := seen(client, stack, older=0.0)) is not None:
        status = str(found["StackStatus"])
        if status == "DELETE_FAILED":
            lines = "\n".join(failures(client, stack))
            raise DestroyError(
                f"{id}: its stack can't be deleted, because of\n{lines}\n"
                "Empty or delete these (a bucket must be empty), then: pytest-ephemeral reap"
            )
        if time.monotonic() > deadline:
            raise DestroyError(f"{id}: its stack is still {status}. See it: pytest-ephemeral reap")
        time.sleep(POLL * random.SystemRandom().uniform(0.9, 1.1))
    if kept := retained(client, stack):
        raise DestroyError(
            f"{id}: its template says DeletionPolicy: Retain, so these are still there: "
            f"{', '.join(kept)}. Delete them by hand, and take that out of the template"
        )


def retained(client: Any, stack: str) -> list[str]:
    """What a deleted stack has left because its template says so."""
    return sorted(
        {
            f"{event['LogicalResourceId']} ({event['ResourceType']} {event['PhysicalResourceId']})"
            for event in events(client, stack)
            if event["ResourceStatus"] == "DELETE_SKIPPED"
        }
    )
