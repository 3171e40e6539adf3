"""Errors of AWS in one line, each with advice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from pytest_ephemeral import aws
from pytest_ephemeral.errors import DestroyError, EphemeralError

#: By an error's code: the advice that follows AWS's own message.
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
