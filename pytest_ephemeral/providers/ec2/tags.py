"""The tags of this tool's resources in EC2, and their client tokens."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from pytest_ephemeral import labels

#: The image's key, on all resources of a bake.
KEY: Final = labels.PREFIX + "key"
#: The recipe's name, on an image.
RECIPE: Final = labels.PREFIX + "recipe"
#: An image's state: quarantined until it is verified, unrecorded until it is in a catalog.
STATE: Final = labels.PREFIX + "state"
QUARANTINED: Final = "quarantined"
UNRECORDED: Final = "unrecorded"
VERIFIED: Final = "verified"
#: The state of an instance whose template has ``standby``: used by an environment, or not.
USED: Final = "used"
STANDBY: Final = "standby"
#: On an instance that was on standby: the id that its client token was derived from.
LAUNCHED_AS: Final = labels.PREFIX + "launched-as"
#: The regions that an AMI is copied to.
COPIES: Final = labels.PREFIX + "copies"
#: The process that bakes, or whose environments share a group: on the same machine, ``is_gone``
#: says whether it still runs.
PROCESS: Final = labels.PREFIX + "process"
#: The folder in S3 for a bake's artifact and log.
TRANSFER: Final = labels.PREFIX + "transfer"

#: CloudFormation's own tag on a stack's resources, which are deleted with the stack.
OF_A_STACK: Final = "aws:cloudformation:stack-id"

LONGEST_VALUE: Final = 256

_OURS: Final = (
    *(labels.ID, labels.TEMPLATE, labels.RUN),
    *(labels.OWNER, labels.EXPIRES, labels.IMAGE),
)


def to_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """Tags in EC2's form; values are cut to the 256 characters that EC2 accepts."""
    return [{"Key": key, "Value": value[:LONGEST_VALUE]} for key, value in tags.items()]


def tag_specifications(tags: Mapping[str, str], *kinds: str) -> list[dict[str, Any]]:
    """``TagSpecifications`` for resources of several kinds."""
    return [{"ResourceType": kind, "Tags": to_tags(tags)} for kind in kinds]


def tags_of(resource: Mapping[str, Any]) -> dict[str, str]:
    """The tags of a resource of EC2 or CloudFormation, as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags") or ()}


def labels_of(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags that are labels of an environment, as all providers write them."""
    return {name: tags[name] for name in _OURS if name in tags}


def client_token(id: str, *attempt: str) -> str:
    """A client token, of at most 64 characters; EC2 returns it with the instance.

    Args:
        id: The id of an environment or bake: all its tokens have the same start.
        attempt: The values that make one call different from another.
    """
    return f"{_digest(id)[:24]}-{_digest('|'.join(attempt))[:32]}"


def has_our_token(instance: Mapping[str, Any]) -> bool:
    """Whether the id in an instance's tags is the one that its client token was derived from.

    Tags alone prove nothing: auto-scaling groups and people copy them to other instances.
    """
    tags = tags_of(instance)
    token = str(instance.get("ClientToken", ""))
    if token.startswith(_digest(tags.get(LAUNCHED_AS) or tags.get(labels.ID, ""))[:24]):
        return True
    # An instance that fulfils a spot request may keep that request's token. Auto-scaling groups
    # and fleets tag theirs.
    is_spot = instance.get("InstanceLifecycle") == "spot"
    return is_spot and not any(name.startswith("aws:") for name in tags)


def read_clock(answer: Mapping[str, Any]) -> datetime:
    """The time of an answer of AWS: the earlier of this machine's clock and the answer's date.

    So a machine whose clock is ahead does not take resources for expired too early.
    """
    now = datetime.now(UTC)
    try:
        date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return now
    return min(now, date + timedelta(seconds=1))


def format_expiry(expires_at: datetime | None) -> str:
    """The text of an expiry label, in UTC: the guest's timer compares it as text."""
    if expires_at is None:
        return labels.NEVER
    return expires_at.astimezone(UTC).isoformat(timespec="seconds")


def latest_expiry(expiries: Iterable[str]) -> str:
    """The latest of several expiries: they differ for a moment while an expiry is changed."""
    known = set(expiries)
    return labels.NEVER if labels.NEVER in known else max(known, default=labels.NEVER)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
