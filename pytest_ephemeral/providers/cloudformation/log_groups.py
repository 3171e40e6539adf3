"""A stack's logs in CloudWatch: its log groups, and those of its functions and projects."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from pytest_ephemeral import aws
from pytest_ephemeral.errors import UnavailableError
from pytest_ephemeral.providers.ec2.console import FRESH

#: By the type of a resource: the name of its log group, from its physical id.
_GROUPS: Final = {
    "AWS::Logs::LogGroup": "{}",
    "AWS::Lambda::Function": "/aws/lambda/{}",
    "AWS::CodeBuild::Project": "/aws/codebuild/{}",
}
#: The largest number of events that are read from a group.
MOST: Final = 10_000

_read: dict[str, tuple[float, dict[str, str]]] = {}
_reads: dict[str, threading.Lock] = {}


def read(
    client: Any, stack: str, since: datetime, region: str | None, *, now: bool = False
) -> dict[str, str]:
    """The texts of a stack's log groups, by name, without those that are empty or unreadable.

    Args:
        client: A CloudFormation client.
        stack: The stack's id.
        since: When the environment was created: a group may have older events.
        region: The stack's region.
        now: Read the groups again, even if they were read a few seconds ago.
    """
    with _reads.setdefault(stack, threading.Lock()):
        at, found = _read.get(stack, (float("-inf"), {}))
        if now or time.monotonic() - at > FRESH:
            found = dict(_texts(client, stack, since, region, patient=now))
            _read[stack] = (time.monotonic(), found)
        return found


def _texts(
    client: Any, stack: str, since: datetime, region: str | None, *, patient: bool
) -> Iterator[tuple[str, str]]:
    from botocore.exceptions import ClientError

    try:
        with aws.translate_errors():
            names = sorted(set(_names(client, stack)))
    except (ClientError, UnavailableError):
        return  # the log then has only the stack's events
    for name in names:
        try:
            with aws.translate_errors():
                text = _text(aws.client("logs", region, polls=not patient), name, since)
        except (ClientError, UnavailableError):
            continue  # it does not exist yet, or reading it is not permitted
        if text:
            yield name.strip("/").replace("/", "-"), text


def _names(client: Any, stack: str) -> Iterator[str]:
    """The names of the log groups of a stack and its nested stacks."""
    for page in client.get_paginator("list_stack_resources").paginate(StackName=stack):
        for one in page.get("StackResourceSummaries", ()):
            kind, id = str(one["ResourceType"]), str(one.get("PhysicalResourceId") or "")
            if id and kind in _GROUPS:
                yield _GROUPS[kind].format(id)
            elif id and kind == "AWS::CloudFormation::Stack":
                yield from _names(client, id)


def _text(client: Any, group: str, since: datetime) -> str:
    """A group's events in the order of their ingestion, so that late events come last."""
    pages = client.get_paginator("filter_log_events").paginate(
        logGroupName=group,
        startTime=int(since.timestamp() * 1000),
        PaginationConfig={"MaxItems": MOST},
    )
    found: list[Mapping[str, Any]] = [event for page in pages for event in page.get("events", ())]
    found.sort(key=lambda event: (event.get("ingestionTime", 0), event.get("timestamp", 0)))
    return "\n".join(str(event.get("message", "")).rstrip("\n") for event in found)
