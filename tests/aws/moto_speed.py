"""What moto does with many resources, and AWS otherwise.

It finds the tags of one resource by reading those of all: with a few hundred, a single describe
takes it seconds. And it gives all in one answer, where AWS gives them by the page.
"""

from __future__ import annotations

from functools import cache
from typing import Any
from xml.etree import ElementTree as ET

from aws.wire import Answer, Request

#: What an answer lists, by action.
_LISTS = {
    "DescribeSecurityGroups": "securityGroupInfo",
    "DescribeImages": "imagesSet",
    "DescribeSnapshots": "snapshotSet",
    "DescribeVolumes": "volumeSet",
    "DescribeNetworkInterfaces": "networkInterfaceSet",
}


def quicken() -> None:
    """Have moto look a resource's tags up instead."""
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
    # Which services there are, and what each can do, does not change; moto finds it out each time.
    services = list(backends.list_of_moto_modules())
    backends.list_of_moto_modules = lambda: services
    responses.method_names_from_class = cache(responses.method_names_from_class)


def paged(answer: Answer, request: Request, size: int) -> Answer:
    """A page of an answer, and the token for the next."""
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
