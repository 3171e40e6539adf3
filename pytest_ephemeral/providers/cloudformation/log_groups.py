"""What a stack has in CloudWatch: the groups that are its resources, and its functions' own."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any, Final

from pytest_ephemeral import aws
from pytest_ephemeral.errors import UnavailableError
from pytest_ephemeral.providers.ec2.console import FRESH

#: By the type of a resource: what its group is called.
_GROUPS: Final = {
    "AWS::Logs::LogGroup": "{}",
    "AWS::Lambda::Function": "/aws/lambda/{}",
    "AWS::CodeBuild::Project": "/aws/codebuild/{}",
}
#: So many events of a group are read at most.
MOST: Final = 10_000

_read: dict[str, tuple[float, dict[str, str]]] = {}
_reads: dict[str, threading.Lock] = {}


def read(
    client: Any, stack: str, since: datetime, region: str | None, *, now: bool = False
) -> dict[str, str]:
    """What its groups say, by their names; those that are empty, or can't be read, are left out.

    Args:
        client: Of CloudFormation.
        stack: Its id.
        since: When it was made: a group may be older.
        region: Where.
        now: Whether what was read a few seconds ago is not enough.
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
        return  # its events are its log then
    for name in names:
        try:
            with aws.translate_errors():
                text = _text(aws.client("logs", region, polls=not patient), name, since)
        except (ClientError, UnavailableError):
            continue  # none was written yet, or it may not be read
        if text:
            yield name.strip("/").replace("/", "-"), text


def _names(client: Any, stack: str) -> Iterator[str]:
    """The groups of a stack, and of those nested in it."""
    for page in client.get_paginator("list_stack_resources").paginate(StackName=stack):
        for one in page.get("StackResourceSummaries", ()):
            kind, id = str(one["ResourceType"]), str(one.get("PhysicalResourceId") or "")
            if id and kind in _GROUPS:
                yield _GROUPS[kind].format(id)
            elif id and kind == "AWS::CloudFormation::Stack":
                yield from _names(client, id)


def _text(client: Any, group: str, since: datetime) -> str:
    """A group's events, in the order in which CloudWatch got them: late ones stand last."""
    pages = client.get_paginator("filter_log_events").paginate(
        logGroupName=group,
        startTime=int(since.timestamp() * 1000),
        PaginationConfig={"MaxItems": MOST},
    )
    found: list[Mapping[str, Any]] = [event for page in pages for event in page.get("events", ())]
    found.sort(key=lambda event: (event.get("ingestionTime", 0), event.get("timestamp", 0)))
    return "\n".join(str(event.get("message", "")).rstrip("\n") for event in found)
