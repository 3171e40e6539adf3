"""Errors of AWS in one line, each with advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pytest_ephemeral import aws
from pytest_ephemeral.errors import DestroyError, EphemeralError

#: By an error's code: the advice that follows AWS's own message.
_ADVICE: Final[Mapping[str, str]] = {
    "AddressLimitExceeded": "release unused addresses: `aws ec2 describe-addresses`",
    "InsufficientCapabilitiesException": 'name them in the template\'s capabilities = ["…"]',
    "InvalidAMIID.NotFound": "check the id and the region: `aws ec2 describe-images`",
    "InvalidBlockDeviceMapping": "check volume-size and volumes of the template",
    "InvalidGroup.NotFound": "check ingress and security-groups: "
    "`aws ec2 describe-security-groups`",
    "InvalidGroupId.Malformed": 'set groups by id, such as "sg-0123456789abcdef0"',
    "InvalidKeyPair.NotFound": "check key-name: `aws ec2 describe-key-pairs`, in this region",
    "InvalidSubnetID.NotFound": "check subnet: `aws ec2 describe-subnets`, in this region",
    "MissingInput": "set subnet",
    "VPCIdNotSpecified": "there is no default VPC in this region: set subnet",
}
_PROFILE: Final = (
    "check instance-profile: `aws iam list-instance-profiles`. It is the profile's name, which may "
    "differ from its role's"
)


@contextmanager
def translate_errors(
    what: str, error_type: Callable[[str], EphemeralError] = DestroyError
) -> Iterator[None]:
    """Turn an error of AWS into an error of pytest-ephemeral.

    Args:
        what: What did not work, such as ``staging-7f3k2q could not be launched``.
        error_type: The type of the error to raise.
    """
    from botocore.exceptions import ClientError

    try:
        with aws.translate_errors():
            yield
    except ClientError as error:
        raise error_type(f"{what}: {describe_error(error)}") from error


def describe_error(error: Exception) -> str:
    """The error's code and AWS's message, without boto's own text, and advice."""
    response: Mapping[str, Any] = getattr(error, "response", {}).get("Error", {})
    if not response:
        return " ".join(str(error).split())
    code = str(response.get("Code"))
    message = " ".join(str(response.get("Message", "")).split()).rstrip(".")
    advice = _PROFILE if is_unknown_profile(error) else _ADVICE.get(code, "")
    return f"{code}: {message}: {advice}" if advice else f"{code}: {message}"


def is_unknown_profile(error: Exception) -> bool:
    """Whether EC2 does not know an instance profile: it does not exist, or is very new."""
    response: Mapping[str, Any] = getattr(error, "response", {}).get("Error", {})
    message = str(response.get("Message", "")).lower()
    return response.get("Code") == "InvalidParameterValue" and "iaminstanceprofile" in message
