"""AWS, as boto3 users expect it: profiles, regions, endpoints and roles are boto3's own business.

Nothing here is read at import time, and boto3 is imported by whoever asks for a client.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from pytest_ephemeral.errors import UnavailableError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

#: What decides who asks, where: a process (a test's, for one) may change it while it runs.
_DECIDING: Final = (
    *("AWS_PROFILE", "AWS_DEFAULT_PROFILE", "AWS_ENDPOINT_URL", "AWS_REGION"),
    *("AWS_DEFAULT_REGION", "AWS_ACCESS_KEY_ID", "AWS_CONFIG_FILE"),
    "AWS_SHARED_CREDENTIALS_FILE",
)

#: Codes with which services say that credentials are no longer, or not at all, good.
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_REFUSED: Final = frozenset(
    {"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId"}
)
_UNAUTHORIZED: Final = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})

#: A service's way of saying: later.
THROTTLED: Final = frozenset(
    {"RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequestsException"}
)

_clients: dict[tuple[str | None, ...], Any] = {}
_lock = threading.Lock()


def client(service: str, region: str | None = None) -> Any:
    """A client of one service; the same one for all threads of a process.

    Args:
        service: As boto3 names it, such as ``ec2``.
        region: Another than the configured one.

    Raises:
        UnavailableError: boto3 is not installed, or no region, profile or role can be found.
    """
    key = (service, region, str(os.getpid()), *(os.environ.get(name) for name in _DECIDING))
    with _lock, explained():  # a session is not safe to share between threads, its clients are
        if key not in _clients:
            _clients[key] = _made(service, region)
        return _clients[key]


def code(error: Exception) -> str:
    """What a service answered, in one word, such as ``InsufficientInstanceCapacity``."""
    response: dict[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


@contextmanager
def explained() -> Iterator[None]:
    """Say in one line what is missing when AWS can't be asked at all.

    Raises:
        UnavailableError: No credentials, expired ones, no region, no permission, no answer.
    """
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except BotoCoreError as error:
        raise UnavailableError(_unreachable(error)) from error
    except ClientError as error:
        if (said := _refused(error)) is None:
            raise
        raise UnavailableError(said) from error


def _made(service: str, region: str | None) -> Any:
    import boto3
    from botocore.config import Config

    # A user's own choice of retries (AWS_RETRY_MODE, AWS_MAX_ATTEMPTS) is not overridden.
    retries: dict[str, Any] = {}
    if "AWS_RETRY_MODE" not in os.environ:
        retries["mode"] = "adaptive"
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = 10
    return boto3.session.Session().client(
        service,
        region_name=region,
        config=Config(retries=retries, connect_timeout=10, max_pool_connections=32),
    )


def _unreachable(error: Exception) -> str:
    name = type(error).__name__
    said = " ".join(str(error).split())
    match name:
        case "NoCredentialsError" | "PartialCredentialsError" | "CredentialRetrievalError":
            return (
                f"AWS: no credentials ({said}): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY, or give the CI job a role"
            )
        case "NoRegionError":
            return "AWS: no region: set AWS_REGION, or region in the profile"
        case "ProfileNotFound":
            return f"AWS: {said}: see `aws configure list-profiles`, and AWS_PROFILE"
        case _ if "SSO" in name or "Token" in name:
            return f"AWS: the sign-in is over ({said}): aws sso login"
    return f"AWS can't be reached: {said}"


def _refused(error: ClientError) -> str | None:
    said = " ".join(str(error.response.get("Error", {}).get("Message", error)).split())
    found = code(error)
    if found in _EXPIRED:
        return f"AWS: the credentials have expired ({found}): sign in again, such as aws sso login"
    if found in _REFUSED:
        return f"AWS does not know these credentials ({found}): see `aws sts get-caller-identity`"
    if found in _UNAUTHORIZED:
        return f"AWS: these credentials may not do this ({error.operation_name}): {said}"
    return None
