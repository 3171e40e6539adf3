"""Launching instances so that a crash at any point can be told from outside, and undone.

The exact request is journaled, with its client token, before it is sent. Whoever finds it sends it
once more and gets the same instances, or, if it never arrived, others that it ends: see ``replay``.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers.ec2 import refusals
from pytest_ephemeral.providers.ec2.fleet import Instance
from pytest_ephemeral.providers.ec2.tagging import tagged, tags_of, token

#: In a handle: a request that may be under way.
REQUEST: Final = "request"

#: Lack of capacity or quota: another type or another zone may have it.
LACKING: Final = frozenset(
    {
        "InsufficientInstanceCapacity",
        "InsufficientHostCapacity",
        "InsufficientCapacity",
        "InsufficientFreeAddressesInSubnet",
        "InsufficientVolumeCapacity",
        "InstanceLimitExceeded",
        "MaxSpotInstanceCountExceeded",
        "ReservationCapacityExceeded",
        "SpotMaxPriceTooLow",
        "Unsupported",
        "VcpuLimitExceeded",
    }
)

#: What RunInstances may say of a group, or an AMI, that it has only just given: "eventual
#: consistency" in the EC2 user guide.
NEW_GROUP: Final = "InvalidGroup.NotFound"
NEW_IMAGE: Final = ("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable")

#: Seconds in which EC2 comes to know of what was only just made, and between tries.
PROPAGATING: Final = 30.0
PAUSE: Final = 2.0

#: IMDSv2 only; the hop more is for containers in the instance. Tags are where the expiry is.
METADATA: Final = {
    "HttpEndpoint": "enabled",
    "HttpTokens": "required",
    "HttpPutResponseHopLimit": 2,
    "InstanceMetadataTags": "enabled",
}


#: What every request tags; and all fields that one may have.
_KINDS: Final = frozenset({"instance", "volume", "network-interface"})
_FIELDS: Final = frozenset(
    {
        *("ImageId", "InstanceType", "MinCount", "MaxCount", "ClientToken", "UserData"),
        *("InstanceInitiatedShutdownBehavior", "MetadataOptions", "TagSpecifications"),
        *("SubnetId", "SecurityGroupIds", "NetworkInterfaces", "IamInstanceProfile", "KeyName"),
        *("InstanceMarketOptions", "BlockDeviceMappings"),
    }
)
_SERVER_ERROR: Final = 500
#: At most so many pairs of a type and a subnet.
_MOST_ATTEMPTS: Final = 256


class Wanted(msgspec.Struct, frozen=True):
    """Instances that are wanted.

    Attributes:
        id: Whose: every client token is made from it.
        image: The AMI.
        types: Tried in turn.
        subnets: Tried in turn; empty for the default VPC's.
        groups: Security groups.
        marks: Tags of all that is made.
        user_data: What runs at boot.
        secret: Whether that must not be recorded.
        public: Whether they get a public address, whatever the subnet says.
        count: How many.
        young: Codes of refusals that mean "not yet": of what was only just made.
        more: What else the request has.
    """

    id: str
    image: str
    types: list[str]
    subnets: list[str]
    groups: list[str]
    marks: Mapping[str, str]
    user_data: str
    secret: bool = False
    public: bool = False
    count: int = 1
    young: Collection[str] = (NEW_GROUP,)
    more: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def requests(self) -> Iterator[dict[str, Any]]:
        """What is asked in turn, each under a token of its own."""
        attempts = [(kind, subnet) for kind in self.types for subnet in self.subnets or [""]]
        for number, (kind, subnet) in enumerate(attempts):
            yield {
                "ImageId": self.image,
                "InstanceType": kind,
                "MinCount": self.count,
                "MaxCount": self.count,
                "ClientToken": token(self.id, str(number), kind, subnet, *self.groups),
                "InstanceInitiatedShutdownBehavior": "terminate",
                "MetadataOptions": METADATA,
                "TagSpecifications": tagged(self.marks, *self._kinds()),
                "UserData": self.user_data,
                **self._network(subnet),
                **self.more,
            }

    def _kinds(self) -> Iterator[str]:
        """What the request makes that can be tagged."""
        yield from ("instance", "volume", "network-interface")
        if "InstanceMarketOptions" in self.more:
            yield "spot-instances-request"

    def _network(self, subnet: str) -> dict[str, Any]:
        if not self.public:
            place = {"SubnetId": subnet} if subnet else {}
            return {**place, "SecurityGroupIds": self.groups}
        interface: dict[str, Any] = {
            "DeviceIndex": 0,
            "AssociatePublicIpAddress": True,
            "DeleteOnTermination": True,
            "Groups": self.groups,
        }
        return {"NetworkInterfaces": [{**interface, "SubnetId": subnet} if subnet else interface]}


def run(client: Any, wanted: Wanted, journal: Callable[[str], None]) -> list[Instance]:
    """Launch, with whichever type and subnet there is capacity for.

    Args:
        client: Of EC2.
        wanted: What.
        journal: Given each request before it is sent, and nothing once it is refused for good.

    Raises:
        LaunchError: There is none of any; says what each was refused for.
    """
    from botocore.exceptions import ClientError

    refused = []
    for request in wanted.requests():
        recorded = {**request, "UserData": ""} if wanted.secret else request
        journal(json.dumps(recorded, sort_keys=True))
        try:
            return _sent(client, request, wanted.young)
        except ClientError as error:
            if _is_definite(error):
                journal("")  # sent once more, it might launch
            if aws.code(error) not in LACKING:
                raise
            where = f" in {_subnet(request)}" if _subnet(request) else ""
            refused.append(f"{request['InstanceType']}{where}: {refusals.told(error)}")
    raise LaunchError("\n  ".join(["no capacity, or no quota, for any of them:", *refused]))


def _is_definite(error: Any) -> bool:
    """Whether a refusal says that nothing was launched, by this request or an earlier copy of it.

    boto3 sends a request again when no answer comes. What lacks capacity or quota was not launched
    before, or its token would have given it; of other refusals, only the first answer is certain.
    """
    found = aws.code(error)
    if found.startswith("Idempotent"):
        return False
    answer = error.response.get("ResponseMetadata", {})
    status = int(answer.get("HTTPStatusCode", _SERVER_ERROR))
    return found in LACKING or (status < _SERVER_ERROR and not answer.get("RetryAttempts"))


def could_have_written(environment: Environment, request: Any) -> bool:
    """Whether a request, read from a record, is one that launching an environment journals.

    Its client token is made from the environment's id and from what is asked for, and its tags
    name the environment: so whatever it launches can be found, and ended, as the environment's.
    """
    try:
        group_ids = request.get("SecurityGroupIds") or request["NetworkInterfaces"][0]["Groups"]
        place = (request["InstanceType"], _subnet(request), *group_ids)
        tokens = {token(environment.id, str(n), *place) for n in range(_MOST_ATTEMPTS)}
        kinds = {one["ResourceType"]: tags_of(one) for one in request["TagSpecifications"]}
        return (
            request["ClientToken"] in tokens
            and request["MinCount"] == request["MaxCount"]
            and request["InstanceInitiatedShutdownBehavior"] == "terminate"
            and request["MetadataOptions"] == METADATA
            and kinds.keys() >= _KINDS
            and all(tags.get(labels.ID) == environment.id for tags in kinds.values())
            and request.keys() <= _FIELDS
        )
    except (AttributeError, KeyError, IndexError, TypeError):
        return False


def _subnet(request: Mapping[str, Any]) -> str:
    """Where a request would launch; empty for wherever the default VPC is."""
    interfaces = request.get("NetworkInterfaces", [{}])
    return str(request.get("SubnetId") or interfaces[0].get("SubnetId", ""))


def replay(client: Any, recorded: str, find: Callable[[], list[str]], unseen: float) -> list[str]:
    """What became of a request that was journaled, and whose answer nobody heard.

    The same request under the same token gives the same instances. One that was recorded without
    its secret user data differs, and is refused if the first had arrived: then they can be found
    by their tags, as soon as they are visible.

    Args:
        client: Of EC2.
        recorded: The request.
        find: Finds their ids by tags.
        unseen: Seconds in which instances become visible.

    Returns:
        Ids of instances, possibly launched by this very call: they are to be ended.
    """
    from botocore.exceptions import ClientError

    try:
        made = client.run_instances(**json.loads(recorded))
        return [str(instance["InstanceId"]) for instance in made["Instances"]]
    except ClientError as error:
        if aws.code(error) == "IdempotentInstanceTerminated":
            return []
        if aws.code(error) != "IdempotentParameterMismatch":
            return find()  # it could not be launched: neither now, nor then
    deadline = time.monotonic() + unseen
    while not (found := find()) and time.monotonic() < deadline:
        time.sleep(1)
    return found


def _sent(client: Any, request: Mapping[str, Any], young: Collection[str]) -> list[Instance]:
    """Ask; of what was only just made, a profile among it, EC2 knows after a while."""
    from botocore.exceptions import ClientError

    deadline = time.monotonic() + PROPAGATING
    while True:
        try:
            return list(client.run_instances(**request)["Instances"])
        except ClientError as error:
            not_yet = refusals.is_unknown_profile(error) or aws.code(error) in young
            if not not_yet or time.monotonic() > deadline:
                raise
        time.sleep(PAUSE)
