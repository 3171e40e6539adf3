"""Launch instances so that a crash at any point can be seen from outside, and undone.

The exact request is journaled, with its client token, before it is sent. Whoever finds it sends one
with that token: it is refused if the first had arrived, and otherwise launches what is ended at
once, so that the first can never arrive: ``replay``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Final

import msgspec

from pytest_ephemeral import aws, labels
from pytest_ephemeral.errors import LaunchError
from pytest_ephemeral.models import Environment
from pytest_ephemeral.providers import waiting
from pytest_ephemeral.providers.ec2 import errors
from pytest_ephemeral.providers.ec2.instance_watcher import Instance
from pytest_ephemeral.providers.ec2.tags import client_token, tag_specifications, tags_of

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

#: What RunInstances may answer about a group, or an AMI, that was created a moment ago: "eventual
#: consistency" in the EC2 user guide.
NEW_GROUP: Final = "InvalidGroup.NotFound"
NEW_IMAGE: Final = ("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable")

#: Seconds in which what was just created becomes visible to EC2, and between tries.
PROPAGATING: Final = 30.0
PAUSE: Final = 2.0

#: IMDSv2 only; the second hop is for containers in the instance. The expiry is read from the tags.
METADATA: Final = {
    "HttpEndpoint": "enabled",
    "HttpTokens": "required",
    "HttpPutResponseHopLimit": 2,
    "InstanceMetadataTags": "enabled",
}


#: What every request tags, and all fields that a request may have.
_KINDS: Final = frozenset({"instance", "volume", "network-interface"})
_FIELDS: Final = frozenset(
    {
        *("ImageId", "InstanceType", "MinCount", "MaxCount", "ClientToken", "UserData"),
        *("InstanceInitiatedShutdownBehavior", "MetadataOptions", "TagSpecifications"),
        *("SubnetId", "SecurityGroupIds", "NetworkInterfaces", "IamInstanceProfile", "KeyName"),
        *("InstanceMarketOptions", "BlockDeviceMappings"),
    }
)
#: Those that a request is not sent again with.
_POWERS: Final = frozenset(
    {"UserData", "IamInstanceProfile", "KeyName", "BlockDeviceMappings", "InstanceMarketOptions"}
)
_SERVER_ERROR: Final = 500
#: At most so many pairs of a type and a subnet.
_MOST_ATTEMPTS: Final = 256


class InstanceRequest(msgspec.Struct, frozen=True):
    """What to launch.

    Attributes:
        id: Whose: every client token is derived from it.
        image: The AMI.
        types: Tried in turn.
        subnets: Tried in turn; empty for the default VPC's.
        groups: Security groups.
        tags: Of all that is created.
        user_data: What runs at boot.
        secret: Whether the user data must not be recorded.
        public: Whether they get a public address, whatever the subnet says.
        count: How many.
        not_yet: Error codes that mean "not visible yet", for what was just created.
        more: Further fields of the request.
    """

    id: str
    image: str
    types: list[str]
    subnets: list[str]
    groups: list[str]
    tags: Mapping[str, str]
    user_data: str
    secret: bool = False
    public: bool = False
    count: int = 1
    not_yet: Collection[str] = (NEW_GROUP,)
    more: Mapping[str, Any] = msgspec.field(default_factory=dict)

    def requests(self) -> Iterator[dict[str, Any]]:
        """The requests to try in turn, each with a client token of its own."""
        attempts = [(kind, subnet) for kind in self.types for subnet in self.subnets or [""]]
        for number, (kind, subnet) in enumerate(attempts):
            yield {
                "ImageId": self.image,
                "InstanceType": kind,
                "MinCount": self.count,
                "MaxCount": self.count,
                "ClientToken": client_token(self.id, str(number), kind, subnet, *self.groups),
                "InstanceInitiatedShutdownBehavior": "terminate",
                "MetadataOptions": METADATA,
                "TagSpecifications": tag_specifications(self.tags, *self._kinds()),
                "UserData": self.user_data,
                **self._network(subnet),
                **self.more,
            }

    def _kinds(self) -> Iterator[str]:
        """What the request creates that can be tagged."""
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


def run(client: Any, wanted: InstanceRequest, journal: Callable[[str], None]) -> list[Instance]:
    """Launch, with whichever type and subnet there is capacity for.

    Args:
        client: Of EC2.
        wanted: What.
        journal: Called with each request before it is sent, and with "" once it is refused.

    Raises:
        LaunchError: There is no capacity for any; says why each was refused.
    """
    from botocore.exceptions import ClientError

    refused = []
    for request in wanted.requests():
        recorded = {**request, "UserData": ""} if wanted.secret else request
        journal(json.dumps(recorded, sort_keys=True))
        try:
            return _send(client, request, wanted.not_yet)
        except ClientError as error:
            if _is_definite(error):
                journal("")  # sent again, it might launch
            if aws.code(error) not in LACKING:
                raise
            where = f" in {_subnet(request)}" if _subnet(request) else ""
            refused.append(f"{request['InstanceType']}{where}: {errors.describe_error(error)}")
    raise LaunchError("\n  ".join(["no capacity, or no quota, for any of them:", *refused]))


def _is_definite(error: Any) -> bool:
    """Whether a refusal means that nothing was launched, by this request or an earlier copy of it.

    boto3 sends a request again when no answer comes. What lacks capacity or quota was not launched
    before, or its token would have returned it; of other refusals, only a first answer is certain.
    """
    found = aws.code(error)
    if found.startswith("Idempotent"):
        return False
    answer = error.response.get("ResponseMetadata", {})
    status = int(answer.get("HTTPStatusCode", _SERVER_ERROR))
    return found in LACKING or (status < _SERVER_ERROR and not answer.get("RetryAttempts"))


def could_have_written(environment: Environment, request: Any) -> bool:
    """Whether a request, read from a record, is one that launching an environment journals.

    Its client token is derived from the environment's id and from what is asked for, and its tags
    name the environment: so whatever it launches can be found, and ended, as the environment's.
    """
    try:
        group_ids = request.get("SecurityGroupIds") or request["NetworkInterfaces"][0]["Groups"]
        place = (request["InstanceType"], _subnet(request), *group_ids)
        tokens = {client_token(environment.id, str(n), *place) for n in range(_MOST_ATTEMPTS)}
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
    """The subnet that a request names; empty for the default VPC's."""
    interfaces = request.get("NetworkInterfaces", [{}])
    return str(request.get("SubnetId") or interfaces[0].get("SubnetId", ""))


def replay(
    client: Any, recorded: str, find: Callable[[], list[str]], unseen: Callable[[], float]
) -> list[str]:
    """Find what a journaled request launched, whose answer is unknown.

    Anyone who may write to the store can write a request. So it is sent without what would give an
    instance any power, and only for an AMI of this account. Its token tells all the same: if the
    request had arrived, this other one is refused, and the instances can be found by their tags,
    as soon as they are visible; if not, it never will.

    Args:
        client: Of EC2.
        recorded: The request.
        find: Finds their ids by tags.
        unseen: Gives the seconds in which instances become visible.

    Returns:
        Ids of instances, possibly launched by this very call: the caller must end them.
    """
    from botocore.exceptions import ClientError

    request = _without_powers(json.loads(recorded))
    if _is_own_image(client, str(request.get("ImageId"))):
        try:
            answer = client.run_instances(**request)
            return [str(instance["InstanceId"]) for instance in answer["Instances"]]
        except ClientError as error:
            if aws.code(error) == "IdempotentInstanceTerminated":
                return []
            if aws.code(error) in LACKING:
                return find()  # it could not be launched: neither now, nor then
    return waiting.wait_until(find, within=unseen(), every=1.0)


def _without_powers(request: Mapping[str, Any]) -> dict[str, Any]:
    """A request for one plain instance: no user data, role, key, disks, address or spot market."""
    kept = {key: value for key, value in request.items() if key not in _POWERS}
    tags = [one for one in request["TagSpecifications"] if one["ResourceType"] in _KINDS]
    kept |= {"MinCount": 1, "MaxCount": 1, "UserData": "", "TagSpecifications": tags}
    if interfaces := request.get("NetworkInterfaces"):
        kept["NetworkInterfaces"] = [{**interfaces[0], "AssociatePublicIpAddress": False}]
    return kept


def _is_own_image(client: Any, id: str) -> bool:
    """Whether an AMI belongs to this account: what it runs is not a stranger's."""
    wanted = [{"Name": "image-id", "Values": [id]}]
    return bool(client.describe_images(Owners=["self"], Filters=wanted)["Images"])


def _send(client: Any, request: Mapping[str, Any], not_yet: Collection[str]) -> list[Instance]:
    """Send a request, again while something it names (a profile, a group) is not visible yet."""
    answer = waiting.retry(
        lambda: client.run_instances(**request),
        when=lambda error: errors.is_unknown_profile(error) or aws.code(error) in not_yet,
        within=PROPAGATING,
        every=PAUSE,
    )
    return list(answer["Instances"])
