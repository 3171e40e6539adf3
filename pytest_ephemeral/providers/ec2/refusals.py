"""What AWS refuses, with what a user may do about it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

#: By the code of an error: where to look. What AWS says itself stands before it.
_ADVICE: Final[Mapping[str, str]] = {
    "AddressLimitExceeded": "release one that is not used: `aws ec2 describe-addresses`",
    "InsufficientCapabilitiesException": 'name them in the template\'s capabilities = ["…"]',
    "InvalidAMIID.NotFound": "see `aws ec2 describe-images`, and that it is of this region",
    "InvalidBlockDeviceMapping": "see volume-size and volumes of the template",
    "InvalidGroup.NotFound": "see ingress, security-groups and `aws ec2 describe-security-groups`",
    "InvalidGroupId.Malformed": 'give groups by id, such as "sg-0123456789abcdef0"',
    "InvalidKeyPair.NotFound": "see key-name, and `aws ec2 describe-key-pairs` in this region",
    "InvalidSubnetID.NotFound": "see subnet, and `aws ec2 describe-subnets` in this region",
    "MissingInput": "name a subnet",
    "VPCIdNotSpecified": "there is no default VPC in this region: name a subnet",
}
_PROFILE: Final = (
    "see instance-profile, and `aws iam list-instance-profiles`: it is the profile's name, which "
    "may be another than its role's"
)


def told(error: Exception) -> str:
    """What AWS answered, in one line, without boto's own words around it, and what to look at."""
    response: Mapping[str, Any] = getattr(error, "response", {}).get("Error", {})
    if not response:
        return " ".join(str(error).split())
    code = str(response.get("Code"))
    said = " ".join(str(response.get("Message", "")).split()).rstrip(".")
    advice = _PROFILE if is_unknown_profile(error) else _ADVICE.get(code, "")
    return f"{code}: {said}: {advice}" if advice else f"{code}: {said}"


def is_unknown_profile(error: Exception) -> bool:
    """Whether there is no such instance profile: none, or none that EC2 knows of yet."""
    response: Mapping[str, Any] = getattr(error, "response", {}).get("Error", {})
    said = str(response.get("Message", "")).lower()
    return response.get("Code") == "InvalidParameterValue" and "iaminstanceprofile" in said
