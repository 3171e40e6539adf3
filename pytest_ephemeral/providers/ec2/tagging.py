"""What our resources in EC2 are tagged with, and reading it off them again."""

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
#: What has become of an image. One that was not verified is nobody's; one that was is good, but
#: nobody's either, until it stands in a catalog.
STATE: Final = labels.PREFIX + "state"
QUARANTINED: Final = "quarantined"
UNRECORDED: Final = "unrecorded"
VERIFIED: Final = "verified"
#: Regions that an image is copied to.
COPIES: Final = labels.PREFIX + "copies"
#: The process that bakes, or whose environments share a group: on the same machine, whether it is
#: gone can be told.
PROCESS: Final = labels.PREFIX + "process"
#: Where in S3 a bake's artifact and log are meanwhile.
TRANSFER: Final = labels.PREFIX + "transfer"

#: What CloudFormation has made carries its stack's tags, and is the stack's to remove.
OF_A_STACK: Final = "aws:cloudformation:stack-id"

LONGEST_VALUE: Final = 256

_OURS: Final = (
    *(labels.ID, labels.TEMPLATE, labels.RUN),
    *(labels.OWNER, labels.EXPIRES, labels.IMAGE),
)


def as_tags(marks: Mapping[str, str]) -> list[dict[str, str]]:
    """A mapping, as EC2 takes tags: it refuses values that are longer than 256 characters."""
    return [{"Key": key, "Value": value[:LONGEST_VALUE]} for key, value in marks.items()]


def tagged(marks: Mapping[str, str], *kinds: str) -> list[dict[str, Any]]:
    """``TagSpecifications`` for resources of several kinds."""
    return [{"ResourceType": kind, "Tags": as_tags(marks)} for kind in kinds]


def tags_of(resource: Mapping[str, Any]) -> dict[str, str]:
    """The tags of anything in EC2 or CloudFormation, as a mapping."""
    return {tag["Key"]: tag["Value"] for tag in resource.get("Tags") or ()}


def labels_of(marks: Mapping[str, str]) -> dict[str, str]:
    """Those of the tags that are every provider's labels."""
    return {name: marks[name] for name in _OURS if name in marks}


def token(id: str, *attempt: str) -> str:
    """A client token, of at most 64 characters: what an instance keeps of the call that made it.

    Args:
        id: Whose: the token begins alike for all that are made under it.
        attempt: What tells one call from another.
    """
    return f"{_digest(id)[:24]}-{_digest('|'.join(attempt))[:32]}"


def launched_by_us(instance: Mapping[str, Any]) -> bool:
    """Whether an instance was launched under the id that it is tagged with.

    Tags are copied: by an auto-scaling group to what it launches, by people from one to another.
    """
    marks = tags_of(instance)
    started = str(instance.get("ClientToken", ""))
    if started.startswith(_digest(marks.get(labels.ID, ""))[:24]):
        return True
    # What fulfils a spot request may keep that request's token. Groups and fleets mark theirs.
    is_spot = instance.get("InstanceLifecycle") == "spot"
    return is_spot and not any(name.startswith("aws:") for name in marks)


def clock(answer: Mapping[str, Any]) -> datetime:
    """When AWS answered: by this machine's clock, unless AWS's own is behind it.

    Its own is in the answer, to the second. So a machine whose clock is ahead takes nothing for
    expired that is not.
    """
    now = datetime.now(UTC)
    try:
        date = parsedate_to_datetime(answer["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        return now
    return min(now, date + timedelta(seconds=1))


def expiry(expires_at: datetime | None) -> str:
    """An expiry as its label has it, in UTC: the guest's timer compares it as text."""
    if expires_at is None:
        return labels.NEVER
    return expires_at.astimezone(UTC).isoformat(timespec="seconds")


def latest(expiries: Iterable[str]) -> str:
    """The last of several expiries: parts of one environment may have been told at other times."""
    known = set(expiries)
    return labels.NEVER if labels.NEVER in known else max(known, default=labels.NEVER)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
