"""Launch instances so that a crash at any point leaves no unknown instance.

The exact request is journaled, with its client token, before it is sent. After a crash, ``replay``
sends a request with the same token. If the first request had arrived, AWS refuses this one. If not,
this one launches an instance, which is ended at once, and the first can't launch any more.
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

#: In a handle: the request that was or will be sent, as JSON.
REQUEST: Final = "request"

#: Error codes of lacking capacity or quota: another type or zone may have it.
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

#: Error codes of RunInstances for a group, or an AMI, that is too new: "eventual consistency" in
#: the EC2 user guide.
NEW_GROUP: Final = "InvalidGroup.NotFound"
NEW_IMAGE: Final = ("InvalidAMIID.NotFound", "InvalidAMIID.Unavailable")

#: Seconds after which a new resource is visible at the latest, and between attempts.
PROPAGATING: Final = 30.0
PAUSE: Final = 2.0

#: IMDSv2 only; the second hop is for containers in the instance. The expiry is read from the tags.
METADATA: Final = {
    "HttpEndpoint": "enabled",
    "HttpTokens": "required",
    "HttpPutResponseHopLimit": 2,
    "InstanceMetadataTags": "enabled",
}


#: The kinds of resources that every request tags, and all fields that a request may have.
_KINDS: Final = frozenset({"instance", "volume", "network-interface"})
_FIELDS: Final = frozenset(
    {
        *("ImageId", "InstanceType", "MinCount", "MaxCount", "ClientToken", "UserData"),
        *("InstanceInitiatedShutdownBehavior", "MetadataOptions", "TagSpecifications"),
        *("SubnetId", "SecurityGroupIds", "NetworkInterfaces", "IamInstanceProfile", "KeyName"),
        *("InstanceMarketOptions", "BlockDeviceMappings"),
    }
)
#: The fields that ``replay`` removes.
_POWERS: Final = frozenset(
    {"UserData", "IamInstanceProfile", "KeyName", "BlockDeviceMappings", "InstanceMarketOptions"}
)
_SERVER_ERROR: Final = 500
#: The largest number of pairs of a type and a subnet.
_MOST_ATTEMPTS: Final = 256


class InstanceRequest(msgspec.Struct, frozen=True):
    """What to launch.

    Attributes:
        id: The id of the environment or bake: client tokens are derived from it.
        image: The AMI's id.
        types: The instance types to try in turn.
        subnets: The subnets to try in turn; empty for the default VPC.
        groups: The ids of the security groups.
        tags: The tags of all resources that are created.
        user_data: The script that runs at boot.
        secret: Whether the user data has secrets, and must not be journaled.
        public: Whether the instances get a public address, whatever the subnet's setting.
        count: How many instances to launch.
        not_yet: Error codes that mean that a new resource is not visible yet.
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
        """The kinds of resources that the request creates and that can be tagged."""
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
    """Launch instances, with the first type and subnet for which there is capacity.

    Args:
        client: An EC2 client.
        wanted: What to launch.
        journal: Called with each request before it is sent, and with "" once it is refused.

    Returns:
        EC2's descriptions of the instances.

    Raises:
        LaunchError: There is no capacity for any; the message has the reason for each.
        ClientError: EC2 refuses for another reason.
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
    """Whether a refusal proves that nothing was launched, even if boto3 sent the request twice.

    boto3 repeats a request that gets no answer. After a lack of capacity or quota nothing was
    launched before, or its token would have returned it. Any other refusal proves it only if the
    request was sent once.
    """
    found = aws.code(error)
    if found.startswith("Idempotent"):
        return False
    answer = error.response.get("ResponseMetadata", {})
    status = int(answer.get("HTTPStatusCode", _SERVER_ERROR))
    return found in LACKING or (status < _SERVER_ERROR and not answer.get("RetryAttempts"))


def could_have_written(environment: Environment, request: Any) -> bool:
    """Whether launching an environment could have journaled a request.

    Its client token must be derived from the environment's id and the request's own fields, and
    its tags must name the environment. So all that it launches is found by the environment's id.
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
    """The subnet that a request names; empty for the default VPC."""
    interfaces = request.get("NetworkInterfaces", [{}])
    return str(request.get("SubnetId") or interfaces[0].get("SubnetId", ""))


def replay(
    client: Any, recorded: str, find: Callable[[], list[str]], unseen: Callable[[], float]
) -> list[str]:
    """Find the instances that a journaled request launched, if its answer was lost.

    A request with the same client token is sent. If the journaled request had arrived, AWS refuses
    this one, and the instances are found by their tags once they are visible. If not, it can't
    launch any more. Anyone who may write to the store can write a request. So it is sent without
    the fields that give an instance permissions, and only for an AMI of this account.

    Args:
        client: An EC2 client.
        recorded: The request, as JSON.
        find: Returns the ids of the instances with the environment's tags.
        unseen: Returns the seconds after which instances are visible at the latest.

    Returns:
        The ids of instances; this call may have launched them. The caller must end them.
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
                return find()  # the journaled request can't have launched it, either
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
    """Whether an AMI belongs to this account, and so has no code of a stranger."""
    wanted = [{"Name": "image-id", "Values": [id]}]
    return bool(client.describe_images(Owners=["self"], Filters=wanted)["Images"])


def _send(client: Any, request: Mapping[str, Any], not_yet: Collection[str]) -> list[Instance]:
    """Send a request; retry while a profile, group or AMI in it is not visible yet."""
    answer = waiting.retry(
        lambda: client.run_instances(**request),
        when=lambda error: errors.is_unknown_profile(error) or aws.code(error) in not_yet,
        within=PROPAGATING,
        every=PAUSE,
    )
    return list(answer["Instances"])
