"""Clients of AWS. boto3 alone selects the profile, region, endpoint and role.

Nothing is read at import time, and boto3 is imported when the first client is made.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from pytest_ephemeral import aws_retries
from pytest_ephemeral.errors import UnavailableError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

#: Error codes of expired or invalid credentials.
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_REFUSED: Final = frozenset(
    {"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId"}
)
_UNAUTHORIZED: Final = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})

#: Messages for requests that can't be made, by words in the names of botocore's exceptions.
_ADVICE: Final = {
    "Credentials CredentialRetrieval": (
        "AWS: no credentials ({reason}): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or give the CI job a role"
    ),
    "NoRegion": "AWS: no region: set AWS_DEFAULT_REGION, or region in the profile",
    "InvalidRegion": "AWS: {reason} See AWS_DEFAULT_REGION, and region in the profile",
    "ProfileNotFound": "AWS: {reason}: see `aws configure list-profiles`, and AWS_PROFILE",
    "Config": "AWS: the configuration is invalid: {reason}: see ~/.aws/config, and AWS_PROFILE",
    "SSO Token": "AWS: the sign-in has expired ({reason}): aws sso login",
}

#: Part of the user agent, by which CloudTrail shows the requests of this program.
USER_AGENT: Final = "pytest-ephemeral"

#: The attempts at a request after temporary errors; and at a poll, which is repeated soon anyway,
#: or a request to STS, which comes first: without a connection, it should fail soon.
_PATIENT: Final = 10
_IMPATIENT: Final = 2
#: Seconds until a connection is made, and until STS responds: see above.
_ANSWER: Final = 5
#: Seconds until every other service responds; S3 has boto3's own limits, for large files.
_LATEST_ANSWER: Final = 30

T = TypeVar("T")


class _Session(NamedTuple):
    """A boto3 session (``whole``) and the botocore session that it is made from (``core``)."""

    core: Any
    whole: Any


_clients: dict[tuple[Any, ...], Any] = {}
_sessions: dict[tuple[Any, ...], _Session] = {}
_identities: dict[int, dict[str, str]] = {}
_lock = threading.Lock()


def client(service: str, region: str | None = None, *, polls: bool = False) -> Any:
    """The client of a service. All threads of a process share it.

    Args:
        service: boto3's name of the service, such as ``ec2``.
        region: The region; by default the configured one.
        polls: Whether to return the client for ``poll``.

    Raises:
        UnavailableError: boto3 is not installed, or no region, profile or role is found.
    """
    # Tests and others change the AWS_… variables while the process runs.
    variables = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    caller = (os.getpid(), *variables)
    with (
        _lock,
        translate_errors(),
    ):  # clients are thread-safe, sessions are not
        import boto3
        import botocore.session

        if caller not in _sessions:  # kept, because loading a service's description takes long
            core = botocore.session.get_session()
            _sessions[caller] = _Session(core, boto3.session.Session(botocore_session=core))
        session = _sessions[caller]
        # All tools of AWS except boto3 read AWS_REGION.
        region = (
            region or session.core.get_config_variable("region") or os.environ.get("AWS_REGION")
        )
        key = (service, region, polls, *caller)
        if key not in _clients:
            _clients[key] = _create(session, service, region, polls=polls)
        return _clients[key]


def poll(client_: Any, ask: Callable[[Any], T]) -> T | None:
    """Make a request that is repeated until something has happened, such as a launch.

    If AWS throttles one request of a client, boto3 delays all its requests, by up to two seconds
    each, and repeats that one for up to a minute. Polls therefore use a client of their own, so
    that they don't delay other requests. It retries at once or not at all, as the next poll
    follows soon.

    Args:
        client_: A client of the service and region.
        ask: Makes the request, with the client that it gets as its argument.

    Returns:
        The result of ``ask``; None if AWS throttled the request.
    """
    from botocore.exceptions import ClientError

    service, region = client_.meta.service_model.service_name, client_.meta.region_name
    try:
        return ask(client(service, region, polls=True))
    except ClientError as error:
        if code(error) in aws_retries.THROTTLED:
            return None
        raise


def identity(region: str | None = None) -> dict[str, str]:
    """The caller's identity from STS: ``Account`` and ``Arn``. Requested once in a process.

    Args:
        region: The region; by default the configured one.

    Raises:
        UnavailableError: STS can't be reached, or refuses the credentials.
    """
    asked = client("sts", region)
    if id(asked) not in _identities:
        from botocore.exceptions import ClientError

        try:
            with translate_errors():
                _identities[id(asked)] = asked.get_caller_identity()
        except ClientError as error:
            reason = " ".join(str(error).split())
            raise UnavailableError(
                f"AWS does not report whose credentials these are: {reason}"
            ) from error
    return _identities[id(asked)]


def code(error: Exception) -> str:
    """The error code of a service, such as ``InsufficientInstanceCapacity``; or empty."""
    response: dict[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


@contextmanager
def translate_errors() -> Iterator[None]:
    """Within the block, raise ``UnavailableError`` with a hint if AWS can't be used at all.

    Raises:
        UnavailableError: No or expired credentials, no region, no permission, or no response.
    """
    try:
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError as error:
        raise UnavailableError(
            "AWS needs boto3, which is not installed: pip install 'pytest-ephemeral[aws]'"
        ) from error
    try:
        yield
    except BotoCoreError as error:
        raise UnavailableError(_unreachable(error)) from error
    except ClientError as error:
        if (refusal := _describe_refusal(error)) is None:
            raise
        raise UnavailableError(refusal) from error
    except OSError as error:
        if not _is_raised_by_botocore(error):
            raise
        reason = " ".join(str(error).split())
        raise UnavailableError(
            f"AWS: the credentials can't be read: {reason}: see ~/.aws/config and the variables "
            "AWS_PROFILE and AWS_WEB_IDENTITY_TOKEN_FILE"
        ) from error


def may_pass(error: UnavailableError) -> bool:
    """Whether an error may be temporary; missing credentials or a missing region are not."""
    from botocore import exceptions

    cause = error.__cause__
    if isinstance(cause, exceptions.BotoCoreError):
        passing = (
            exceptions.ConnectionError,
            exceptions.HTTPClientError,
            exceptions.CredentialRetrievalError,
        )
        return isinstance(cause, passing)
    return cause is None


def is_unauthorized(error: UnavailableError) -> bool:
    """Whether AWS responded that the credentials lack the permission for this request."""
    cause = error.__cause__
    return isinstance(cause, Exception) and code(cause) in _UNAUTHORIZED


def _is_raised_by_botocore(error: BaseException) -> bool:
    """Whether botocore raised an error, for example while it read a token's file."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("botocore.") for frame, _ in frames)


def _create(session: _Session, service: str, region: str | None, *, polls: bool) -> Any:
    from botocore.config import Config

    # A user's own settings of retries, in variables or the profile, are not overridden.
    chosen = session.core.get_scoped_config()
    retries: dict[str, Any] = {}
    if "AWS_RETRY_MODE" not in os.environ and "retry_mode" not in chosen:
        retries["mode"] = "standard" if polls else "adaptive"
    if "AWS_MAX_ATTEMPTS" not in os.environ and "max_attempts" not in chosen:
        retries["total_max_attempts"] = _IMPATIENT if polls or service == "sts" else _PATIENT
    reading = {"s3": {}, "sts": {"read_timeout": _ANSWER}}
    made = _client(
        session.whole,
        service,
        region_name=region,
        config=Config(
            retries=retries,
            connect_timeout=_ANSWER,
            **reading.get(service, {"read_timeout": _LATEST_ANSWER}),
            max_pool_connections=32,
            user_agent_extra=USER_AGENT,
            # Otherwise, presigned URLs of some regions have signatures of version 2, which
            # buckets created since 2020 refuse.
            signature_version="s3v4" if service == "s3" else None,
        ),
    )
    aws_retries.register(made, service, bounded="total_max_attempts" in retries)
    return made


def _client(session: Any, service: str, **options: Any) -> Any:
    """Make a client. For an invalid URL, botocore raises a plain ValueError."""
    from botocore.exceptions import BotoCoreError

    try:
        return session.client(service, **options)
    except BotoCoreError:
        raise
    except ValueError as error:
        raise UnavailableError(f"AWS: {error}: see AWS_ENDPOINT_URL") from error


def _unreachable(error: Exception) -> str:
    name = type(error).__name__
    reason = " ".join(str(error).split())
    for words, advice in _ADVICE.items():
        if any(word in name for word in words.split()):
            return advice.format(reason=reason)
    return (
        f"AWS can't be reached: {reason}: see AWS_DEFAULT_REGION, AWS_ENDPOINT_URL and HTTPS_PROXY"
    )


def _describe_refusal(error: ClientError) -> str | None:
    message = " ".join(str(error.response.get("Error", {}).get("Message", error)).split())
    found = code(error)
    if found in _EXPIRED:
        return f"AWS: the credentials have expired ({found}): sign in again, such as aws sso login"
    if found in _REFUSED:
        return (
            f"AWS does not know these credentials ({found}), or not in this region: see "
            "`aws sts get-caller-identity`, and that the region is enabled, and of their partition"
        )
    if found in _UNAUTHORIZED:
        # EC2 adds an encoded text with the policy's name, which only STS can decode.
        message, _, encoded = message.partition(" Encoded authorization failure message:")
        command = "aws sts decode-authorization-message --encoded-message"
        more = f" To see which policy: {command} {encoded.strip()}" if encoded else ""
        return f"AWS: these credentials may not do this ({error.operation_name}): {message}{more}"
    return None
