"""The tags of our resources in EC2: written, and read again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from typing import Any, Final

from pytest_ephemeral import labels

#: The image's key, on all that a bake makes.
KEY: Final = labels.PREFIX + "key"
#: The recipe's name, on an image.
RECIPE: Final = labels.PREFIX + "recipe"
#: An image's state: quarantined until it is verified, unrecorded until it is in a catalog.
STATE: Final = labels.PREFIX + "state"
QUARANTINED: Final = "quarantined"
UNRECORDED: Final = "unrecorded"
VERIFIED: Final = "verified"
#: On an instance of a template with ``standby``: whether it is an environment's.
USED: Final = "used"
STANDBY: Final = "standby"
#: On an instance that has become another environment's: whose token it was launched with.
LAUNCHED_AS: Final = labels.PREFIX + "launched-as"
#: Regions that an image is copied to.
COPIES: Final = labels.PREFIX + "copies"
#: The process that bakes, or whose environments share a group: on its own machine, ``is_gone``
#: knows whether it still runs.
PROCESS: Final = labels.PREFIX + "process"
#: Where in S3 a bake's artifact and log are while it runs.
TRANSFER: Final = labels.PREFIX + "transfer"

#: What CloudFormation created carries its stack's tags, and goes with the stack.
OF_A_STACK: Final = "aws:cloudformation:stack-id"

LONGEST_VALUE: Final = 256

_OURS: Final = (
    *(labels.ID, labels.TEMPLATE, labels.RUN),
    *(labels.OWNER, labels.EXPIRES, labels.IMAGE),
)


def to_tags(tags: Mapping[str, str]) -> list[dict[str, str]]:
    """A mapping, as EC2 takes tags: it refuses values that are longer than 256 characters."""
    return [{"Key": key, "Value": value[:LONGEST_VALUE]} for key, value in tags.items()]


def tag_specifications(tags: Mapping[str, str], *kinds: str) -> list[dict[str, Any]]:
    """``TagSpecifications`` for resources of several kinds."""
    return [{"ResourceType": kind, "Tags": to_tags(tags)} for kind in kinds]


def tags_of(resource: Mapping[str, Any]) -> dict[str, str]:
    """The tags of anything in EC2 or CloudFormation, as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags") or ()}


def labels_of(tags: Mapping[str, str]) -> dict[str, str]:
    """Those of the tags that are every provider's labels."""
    return {name: tags[name] for name in _OURS if name in tags}


def client_token(id: str, *attempt: str) -> str:
    """A client token, of at most 64 characters; an instance keeps that of the call that created it.

    Args:
        id: Whose: all tokens of an id begin alike.
        attempt: What differs from one call to another.
    """
    return f"{_digest(id)[:24]}-{_digest('|'.join(attempt))[:32]}"


def has_our_token(instance: Mapping[str, Any]) -> bool:
    """Whether an instance was launched under an id that it is tagged with.

    Tags are copied: by an auto-scaling group to what it launches, by people from one to another.
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
    """The time when AWS answered: by this machine's clock, unless AWS's own is behind it.

    AWS's is in the answer, to the second. So a machine whose clock is ahead takes nothing for
    expired that is not.
    """
    now = datetime.now(UTC)
    try:
        date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return now
    return min(now, date + timedelta(seconds=1))


def format_expiry(expires_at: datetime | None) -> str:
    """An expiry as its label has it, in UTC: the guest's timer compares it as text."""
    if expires_at is None:
        return labels.NEVER
    return expires_at.astimezone(UTC).isoformat(timespec="seconds")


def latest_expiry(expiries: Iterable[str]) -> str:
    """The last of several expiries: those of an environment's parts may differ for a moment."""
    known = set(expiries)
    return labels.NEVER if labels.NEVER in known else max(known, default=labels.NEVER)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
