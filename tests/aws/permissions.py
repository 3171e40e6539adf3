"""The permissions that calls need, and those that the reference lists."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "reference" / "providers-aws.md"

#: S3 calls are known by their HTTP methods; the permissions that each may need.
S3 = {
    "GET": {"s3:GetObject", "s3:ListBucket"},
    "HEAD": {"s3:GetObject", "s3:ListBucket"},
    "PUT": {"s3:PutObject"},
    "POST": {"s3:PutObject"},
    "DELETE": {"s3:DeleteObject", "s3:AbortMultipartUpload"},  # boto3 aborts failed uploads
}


def statements() -> list[dict[str, Any]]:
    """Return the statements of the reference's policy, with ``Action`` always a list."""
    _, _, rest = PAGE.read_text().partition("### What it takes in permissions")
    policy = json.loads(rest.partition("```json")[2].partition("```")[0])
    return [
        {**one, "Action": [one["Action"]] if isinstance(one["Action"], str) else one["Action"]}
        for one in policy["Statement"]
    ]


def documented() -> set[str]:
    """Return the actions that the reference's policy allows."""
    return {action for one in statements() for action in one["Action"]}


def needed(calls: Iterable[str]) -> set[str]:
    """Return the permissions, such as ``ec2:RunInstances``, that calls need; STS needs none."""
    found: set[str] = set()
    for call in calls:
        service, _, action = call.partition(":")
        if service != "sts":
            found |= S3[action] if service == "s3" else {call}
    return found
