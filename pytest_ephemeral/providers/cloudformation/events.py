"""The events of stacks: their history, their failures, and the resources that are retained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pytest_ephemeral import aws

#: The fields of an event in a line. Events of hooks lack some of them.
_SHOWN: Final = ("LogicalResourceId", "ResourceType", "ResourceStatus")


def is_missing(error: Any) -> bool:
    """Whether an error means that there is no such stack."""
    return aws.code(error) == "ValidationError" and "does not exist" in str(error)


def events(client: Any, stack: str) -> Iterator[Mapping[str, Any]]:
    """The events of a stack, the newest first; none if the stack does not exist."""
    from botocore.exceptions import ClientError

    try:
        for page in client.get_paginator("describe_stack_events").paginate(StackName=stack):
            yield from page.get("StackEvents", ())
    except ClientError as error:
        if not is_missing(error):
            raise


def history(client: Any, stack: str) -> str:
    """The events of a stack as text, one on each line, the oldest first."""
    lines = [
        " ".join(
            [
                event["Timestamp"].isoformat(timespec="seconds"),
                *(event.get(key, "-") for key in _SHOWN),
                *event.get("ResourceStatusReason", "").split(),
            ]
        )
        for event in events(client, stack)
    ]
    return "\n".join(reversed(lines))


def failures(client: Any, stack: str) -> list[str]:
    """The failures in the events of a stack and its nested stacks, the oldest first."""
    lines = _failures(client, stack)
    # After the first failure, CloudFormation cancels the other resources: those are no causes.
    causes = [line for line in lines if "cancelled" not in line.lower()]
    return causes or lines or ["  its events give no reason"]


def _failures(client: Any, stack: str) -> list[str]:
    lines = []
    for event in reversed(list(events(client, stack))):
        if not event.get("ResourceStatus", "").endswith("_FAILED"):
            continue
        nested = _nested(event)
        if nested and (below := _failures(client, nested)):
            lines += below
        elif event.get("ResourceStatusReason"):
            name = f"{event.get('LogicalResourceId', '-')} ({event.get('ResourceType', '-')})"
            lines.append(f"  {name}: {event['ResourceStatusReason']}")
    return lines


def list_retained(client: Any, stack: str) -> list[str]:
    """The resources that a deleted stack and its nested stacks have retained, for people."""
    found = set()
    nested = set()
    for event in events(client, stack):
        id = event.get("PhysicalResourceId")
        if event.get("ResourceStatus") == "DELETE_SKIPPED" and id:  # without id: never created
            found.add(f"{event['LogicalResourceId']} ({event['ResourceType']} {id})")
        nested.add(_nested(event))
    below = [one for other in nested if other for one in list_retained(client, other)]
    return sorted({*found, *below})


def _nested(event: Mapping[str, Any]) -> str:
    """The id of the nested stack that an event is about; empty for other resources."""
    id = str(event.get("PhysicalResourceId") or "")
    is_nested = event.get("ResourceType") == "AWS::CloudFormation::Stack" and id != event["StackId"]
    return id if is_nested and id.startswith("arn:") else ""
