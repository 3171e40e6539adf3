"""Create stacks, describe them, wait for them, tag and delete them."""

from __future__ import annotations

import hashlib
import math
import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import (
    DestroyError,
    EphemeralError,
    LaunchError,
    UnavailableError,
    UnverifiedDestroyError,
)
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.cloudformation import events, instances, upload
from pytest_ephemeral.providers.cloudformation.tables import StackTemplate
from pytest_ephemeral.providers.ec2.errors import describe_error
from pytest_ephemeral.providers.ec2.tags import TRANSFER, labels_of, read_clock, tags_of, to_tags
from pytest_ephemeral.providers.protocol import Owned

#: Seconds between polls of a stack.
POLL: Final = 2.0
#: Seconds between polls at most, while requests are throttled.
LONGEST_POLL: Final = 15.0
#: Seconds to wait for the deletion of a stack.
DELETING: Final = 3600.0
#: Seconds after which a stack that is to be deleted is seen to be.
VISIBLE: Final = 30.0
#: Seconds to wait for a stack that is being changed, or while requests are throttled.
BUSY: Final = 300.0

#: The states of a complete stack; CloudFormation may still clean up after an update.
_GOOD: Final = frozenset(
    {"CREATE_COMPLETE", "UPDATE_COMPLETE", "UPDATE_COMPLETE_CLEANUP_IN_PROGRESS"}
)

#: In a handle: set if the template, or one nested in it, may retain resources.
MAY_RETAIN: Final = "may-retain"
_NESTED: Final = frozenset({"AWS::CloudFormation::Stack", "AWS::Serverless::Application"})

_seen: dict[tuple[int, str], tuple[float, Mapping[str, Any] | None]] = {}
#: One lock for each stack: a slow request for one does not delay others.
_looks: dict[tuple[int, str], threading.Lock] = {}


def name_of(id: str) -> str:
    """The name of an environment's stack."""
    return f"pytest-ephemeral-{id}"


def launch_facts(text: str, summary: Mapping[str, Any]) -> dict[str, str]:
    """The entries in a handle that are known before the stack is created.

    Args:
        text: The template's text.
        summary: The template's ``GetTemplateSummary``.
    """
    retains = "Retain" in text or not _NESTED.isdisjoint(summary.get("ResourceTypes", ()))
    return {
        **({MAY_RETAIN: "yes"} if retains or summary.get("DeclaredTransforms") else {}),
        **({} if instances.can_have(summary) else {instances.WITHOUT_INSTANCES: "yes"}),
    }


def create(
    client: Any,
    environment: Environment,
    template: StackTemplate,
    source: upload.Source,
    parameters: Mapping[str, str],
) -> str:
    """Create a stack, or find the one that an earlier request created; return its id."""
    from botocore.exceptions import ClientError

    name = name_of(environment.id)
    tags = {key: value for key, value in environment.labels.items() if value}
    if source.bucket:
        tags[TRANSFER] = upload.folder(source.bucket, environment.id)
    role = {} if template.role_arn is None else {"RoleARN": template.role_arn}
    try:
        created = client.create_stack(
            StackName=name,
            Parameters=[
                {"ParameterKey": key, "ParameterValue": value} for key, value in parameters.items()
            ],
            Capabilities=list(template.capabilities),
            Tags=to_tags(tags),
            # Keep a failed stack until its events are read; then it is deleted.
            OnFailure="DO_NOTHING",
            # A stack that waits for a signal must not outlive its expiry.
            TimeoutInMinutes=max(1, int(template.ttl // 60)),
            ClientRequestToken=hashlib.sha256(name.encode()).hexdigest(),
            **source.arguments,
            **role,
        )
        return str(created["StackId"])
    except ClientError as error:
        if aws.code(error) not in {"AlreadyExistsException", "TokenAlreadyExistsException"}:
            raise
    return str(client.describe_stacks(StackName=name)["Stacks"][0]["StackId"])


def wait_until_complete(client: Any, stack: str) -> Mapping[str, Any]:
    """Wait until a stack is complete; CloudFormation itself has the time-out.

    Raises:
        LaunchError: The stack failed; the message has the resources and the reasons.
    """

    def check() -> Mapping[str, Any] | None:
        found = look(client, stack)
        status = "" if found is None else str(found["StackStatus"])
        if status in _GOOD:
            return found
        if found is None or not status.endswith("_IN_PROGRESS") or "ROLLBACK" in status:
            raise LaunchError(
                "\n".join([f"its stack is {status or 'gone'}:", *events.failures(client, stack)])
            )
        return None

    found = waiting.wait_until(check, within=math.inf, every=POLL)
    assert found is not None
    return found


def look(client: Any, stack: str, *, older: float | None = None) -> Mapping[str, Any] | None:
    """The description of a stack, which may be cached; None if there is no such stack.

    Args:
        client: A CloudFormation client.
        stack: The stack's name or id.
        older: Seconds that a cached description may be old; by default ``POLL``, and longer
            while requests are throttled.
    """
    limit = POLL if older is None else older
    key = (id(client), stack)
    with _looks.setdefault(key, threading.Lock()):
        at, found = _seen.get(key, (float("-inf"), None))
        if time.monotonic() - at < limit:
            return found
        ask = partial(_describe, stack=stack)
        within = 0.0 if found is not None and older is None else BUSY
        seen = waiting.wait_until(
            lambda: aws.poll(client, ask), within=within, every=POLL, longest=LONGEST_POLL
        )
        if seen is None and not within:
            return found
        (found,) = seen or ask(client)
        _seen[key] = (time.monotonic(), found)
        return found


def _describe(client: Any, stack: str) -> list[Mapping[str, Any] | None]:
    """A list of one: CloudFormation's description of a stack, or None if it is gone."""
    from botocore.exceptions import ClientError

    try:
        found = client.describe_stacks(StackName=stack)["Stacks"][0]
    except ClientError as error:
        if not events.is_missing(error):
            raise
        return [None]
    return [None if found["StackStatus"] == "DELETE_COMPLETE" else found]


def forget(client: Any, stack: str) -> None:
    """Clear the cached description of a stack."""
    key = (id(client), stack)
    with _looks.setdefault(key, threading.Lock()):
        _seen.pop(key, None)


def list_owned(client: Any, name: str | None = None) -> list[Owned]:
    """The stacks that have our tags and names.

    Args:
        client: A CloudFormation client.
        name: The name of one stack; None for all.
    """
    from botocore.exceptions import ClientError

    only = {} if name is None else {"StackName": name}
    try:
        pages = list(client.get_paginator("describe_stacks").paginate(**only))
    except ClientError as error:
        if name is not None and events.is_missing(error):
            return []
        raise
    found = [(stack, tags_of(stack)) for page in pages for stack in page["Stacks"]]
    return [
        Owned(
            id=tags[labels.ID],
            labels=labels_of(tags),
            detail=f"stack {stack['StackName']}, {stack['StackStatus']}",
            region=str(client.meta.region_name),
            seen_at=read_clock(pages[0]),
        )
        for stack, tags in found
        if stack["StackStatus"] != "DELETE_COMPLETE"
        and stack["StackName"] == name_of(tags.get(labels.ID, ""))
    ]


def sweep(client: Any, wanted: Owned, still: Callable[[Owned], bool]) -> bool:
    """Delete a stack if it is still due; return whether it is gone."""
    found = list_owned(client, name_of(wanted.id))
    if not all(map(still, found)):
        return False
    for _ in found:
        stack = look(client, name_of(wanted.id), older=0.0)
        if stack is not None:
            files = tags_of(stack).get(TRANSFER, "")
            remove_files = partial(upload.remove_tagged, files, wanted.id)
            delete(client, str(stack["StackId"]), wanted.id, remove_files)
    return True


def retag(client: Any, found: Mapping[str, Any], tags: Mapping[str, str]) -> None:
    """Change a stack's tags; CloudFormation changes those of its resources, too.

    Raises:
        EphemeralError: The update took too long, or was rolled back.
    """
    from botocore.exceptions import ClientError

    stack = str(found["StackId"])

    def update() -> None:
        client.update_stack(
            StackName=stack,
            UsePreviousTemplate=True,
            Parameters=[
                {"ParameterKey": one["ParameterKey"], "UsePreviousValue": True}
                for one in found.get("Parameters", ())
            ],
            Capabilities=list(found.get("Capabilities", ())),
            Tags=to_tags({**tags_of(found), **tags}),
        )

    try:
        waiting.retry(update, when=_is_busy, within=BUSY, every=POLL)
    except ClientError as error:
        if "No updates are to be performed" in str(error):
            return
        raise
    status = _wait_for_status(
        client, stack, lambda status: not status.endswith("_IN_PROGRESS") or status in _GOOD, BUSY
    )
    if status and status not in _GOOD:
        lines = "\n".join(events.failures(client, stack))
        raise EphemeralError(f"the tags of its stack were not changed, it is {status}:\n{lines}")


def _is_busy(error: Exception) -> bool:
    """Whether CloudFormation refuses a change of a stack because of one that has not ended."""
    return "_IN_PROGRESS" in str(error)


def _wait_for_status(
    client: Any, stack: str, is_final: Callable[[str], bool], within: float
) -> str:
    """Wait for a final status, at most some seconds; the status, empty if the stack is gone."""
    status = ""

    def check() -> bool:
        nonlocal status
        found = look(client, stack, older=0.0)
        status = "" if found is None else str(found["StackStatus"])
        return not status or is_final(status)

    waiting.wait_until(check, within=within, every=POLL)
    return status


def delete(client: Any, stack: str, id: str, accepted: Callable[[], None] = lambda: None) -> None:
    """Delete a stack, and wait until it is gone.

    Args:
        client: A CloudFormation client.
        stack: The stack's id; by its name, a deleted stack can't be described.
        id: The environment's id, for messages.
        accepted: Called once CloudFormation has accepted the request.

    Raises:
        DestroyError: One of its resources can't be deleted, or another stack uses its exports.
        UnverifiedDestroyError: It has retained resources, or its events can't be read.
    """
    waiting.retry(
        lambda: client.delete_stack(StackName=stack), when=_is_busy, within=BUSY, every=POLL
    )
    accepted()
    begun = time.monotonic() + VISIBLE

    def is_final(status: str) -> bool:
        # A stack whose exports are in use becomes what it was before.
        is_kept = status != "DELETE_IN_PROGRESS" and time.monotonic() > begun
        return status == "DELETE_FAILED" or is_kept

    status = _wait_for_status(client, stack, is_final, DELETING)
    if status == "DELETE_FAILED":
        lines = "\n".join(events.failures(client, stack))
        raise DestroyError(
            f"{id}: its stack can't be deleted, because of\n{lines}\n"
            "Empty or delete these (a bucket must be empty), then: pytest-ephemeral reap"
        )
    if status:
        reason = (look(client, stack) or {}).get("StackStatusReason", "no reason given")
        raise DestroyError(
            f"{id}: its stack is still {status}: {reason}. Then: pytest-ephemeral reap"
        )
    _check_retained(client, stack, id)


def _check_retained(client: Any, stack: str, id: str) -> None:
    """Check by its events that a deleted stack has retained nothing.

    Raises:
        UnverifiedDestroyError: It has retained resources, or its events can't be read.
    """
    from botocore.exceptions import ClientError

    try:
        with aws.translate_errors():
            kept = events.list_retained(client, stack)
    except (ClientError, UnavailableError) as error:
        raise UnverifiedDestroyError(
            f"{id}: its stack is gone. Whether its template retains something can't be seen: "
            f"{describe_error(error)}. See: aws cloudformation describe-stack-events "
            f"--stack-name {stack}"
        ) from error
    if kept:
        raise UnverifiedDestroyError(
            f"{id}: its template has DeletionPolicy: Retain, so these still exist: "
            f"{', '.join(kept)}. Delete them by hand, and take that out of the template"
        )
