"""Faster lookups in moto, and answers in pages as AWS gives them.

moto finds the tags of one resource by reading those of all: with a few hundred resources, one
describe call takes seconds. It also lists everything in one answer, where AWS sends pages.
"""

from __future__ import annotations

from functools import cache
from typing import Any
from xml.etree import ElementTree as ET

from aws.wire import Answer, Request

#: The element with an answer's list, by action.
_LISTS = {
    "DescribeSecurityGroups": "securityGroupInfo",
    "DescribeImages": "imagesSet",
    "DescribeSnapshots": "snapshotSet",
    "DescribeVolumes": "volumeSet",
    "DescribeNetworkInterfaces": "networkInterfaceSet",
}


def quicken() -> None:
    """Make moto look up a resource's tags directly."""
    from moto import backends
    from moto.core import responses
    from moto.ec2.models.core import TaggedEC2Resource
    from moto.ec2.utils import EC2_PREFIX_TO_RESOURCE, get_prefix

    def get_tags(self: Any) -> list[dict[str, str]]:
        kind = EC2_PREFIX_TO_RESOURCE.get(get_prefix(self.id), "") if self.id else ""
        return [
            {"resource_id": self.id, "key": key, "value": value, "resource_type": kind}
            for key, value in self.ec2_backend.tags.get(self.id, {}).items()
        ]

    TaggedEC2Resource.get_tags = get_tags
    # The services and their methods never change, but moto determines them on each call.
    services = list(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: services
    responses.method_names_from_class = cache(responses.method_names_from_class)


def paged(answer: Answer, request: Request, size: int) -> Answer:
    """Return a page of an answer, with the token for the next."""
    if request.action not in _LISTS or not answer.ok:
        return answer
    root = ET.fromstring(answer.body)
    space = root.tag.partition("}")[0] + "}" if root.tag.startswith("{") else ""
    found = root.find(f"{space}{_LISTS[request.action]}")
    if found is None:
        return answer
    start = int(request.form.get("NextToken") or 0)
    items = list(found)
    for item in [*items[:start], *items[start + size :]]:
        found.remove(item)
    for token in root.findall(f"{space}nextToken"):
        root.remove(token)
    if start + size < len(items):
        ET.SubElement(root, f"{space}nextToken").text = str(start + size)
    return Answer(body=ET.tostring(root))
