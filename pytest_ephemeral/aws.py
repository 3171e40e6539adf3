"""AWS, as boto3 users expect it: profiles, regions, endpoints and roles are boto3's own business.

Nothing here is read at import time, and boto3 is imported by whoever asks for a client.
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

#: Advice by words in the names of botocore's exceptions, when no request can be made.
_ADVICE: Final = {
    "Credentials CredentialRetrieval": (
        "AWS: no credentials ({said}): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or give the CI job a role"
    ),
    "NoRegion": "AWS: no region: set AWS_DEFAULT_REGION, or region in the profile",
    "InvalidRegion": "AWS: {said} See AWS_DEFAULT_REGION, and region in the profile",
    "ProfileNotFound": "AWS: {said}: see `aws configure list-profiles`, and AWS_PROFILE",
    "Config": "AWS: the configuration is invalid: {said}: see ~/.aws/config, and AWS_PROFILE",
    "SSO Token": "AWS: the sign-in has expired ({said}): aws sso login",
}

#: The user agent, by which CloudTrail's records show this tool's requests.
USER_AGENT: Final = "pytest-ephemeral"

#: How often a request is made that fails for reasons that may pass; and a poll, which is repeated
#: soon in any case, or one of STS, which is asked first of all: whoever waits should hear soon.
_PATIENT: Final = 10
_IMPATIENT: Final = 2
#: Seconds in which a connection is made, and in which STS, which is asked first of all, answers.
_ANSWER: Final = 5
#: The same for every other service; S3 has boto3's own limits, for large files.
_LATEST_ANSWER: Final = 30

T = TypeVar("T")


class _Session(NamedTuple):
    """One of boto3, and the one of botocore that it is made of."""

    core: Any
    whole: Any


_clients: dict[tuple[Any, ...], Any] = {}
_sessions: dict[tuple[Any, ...], _Session] = {}
_identities: dict[int, dict[str, str]] = {}
_lock = threading.Lock()


def client(service: str, region: str | None = None, *, polls: bool = False) -> Any:
    """A client of one service; the same one for all threads of a process.

    Args:
        service: As boto3 names it, such as ``ec2``.
        region: Another than the configured one.
        polls: Whether it is the one of ``poll``.

    Raises:
        UnavailableError: boto3 is not installed, or no region, profile or role can be found.
    """
    # A process (a test's, for one) may change who asks, and where, while it runs.
    said = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    asking = (os.getpid(), *said)
    with (
        _lock,
        translate_errors(),
    ):  # a session is not safe to share between threads, its clients are
        import boto3
        import botocore.session

        if asking not in _sessions:  # it reads what a service is once, which takes a while
            core = botocore.session.get_session()
            _sessions[asking] = _Session(core, boto3.session.Session(botocore_session=core))
        session = _sessions[asking]
        # AWS's own tools read AWS_REGION, all but boto3.
        region = (
            region or session.core.get_config_variable("region") or os.environ.get("AWS_REGION")
        )
        key = (service, region, polls, *asking)
        if key not in _clients:
            _clients[key] = _create(session, service, region, polls=polls)
        return _clients[key]


def poll(client_: Any, ask: Callable[[Any], T]) -> T | None:
    """Ask, once, what is asked again and again until something has happened.

    Once AWS throttles one call of a client, boto3 slows all of them down, to one in two seconds at
    worst, and repeats that one for up to a minute. So polls have a client of their own, that asks
    again at once or not at all: changes need not wait for them, and the next poll is soon.

    Args:
        client_: Whose service and region are meant.
        ask: Makes the call, with the client that it is given.

    Returns:
        What ``ask`` does; None while AWS throttles it.
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
    """Who asks: ``Account`` and ``Arn``, as STS has it. Asked for once in a process.

    Args:
        region: Another than the configured one.

    Raises:
        UnavailableError: Nobody that AWS knows; says why.
    """
    asked = client("sts", region)
    if id(asked) not in _identities:
        from botocore.exceptions import ClientError

        try:
            with translate_errors():
                _identities[id(asked)] = asked.get_caller_identity()
        except ClientError as error:
            said = " ".join(str(error).split())
            raise UnavailableError(
                f"AWS does not report whose credentials these are: {said}"
            ) from error
    return _identities[id(asked)]


def code(error: Exception) -> str:
    """What a service answered, in one word, such as ``InsufficientInstanceCapacity``."""
    response: dict[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


@contextmanager
def translate_errors() -> Iterator[None]:
    """Say in one line what is missing when AWS can't be asked at all.

    Raises:
        UnavailableError: No credentials, expired ones, no region, no permission, no answer.
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
        if (said := _describe_refusal(error)) is None:
            raise
        raise UnavailableError(said) from error
    except OSError as error:
        if not _is_raised_by_botocore(error):
            raise
        said = " ".join(str(error).split())
        raise UnavailableError(
            f"AWS: the credentials can't be read: {said}: see ~/.aws/config and the variables "
            "AWS_PROFILE and AWS_WEB_IDENTITY_TOKEN_FILE"
        ) from error


def may_pass(error: UnavailableError) -> bool:
    """Whether AWS may be asked again soon: not where credentials or a region are missing."""
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
    """Whether AWS was reached, and these credentials may not do this one thing."""
    cause = error.__cause__
    return isinstance(cause, Exception) and code(cause) in _UNAUTHORIZED


def _is_raised_by_botocore(error: BaseException) -> bool:
    """Whether an error comes from botocore's own work, such as reading a token's file."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("botocore.") for frame, _ in frames)


def _create(session: _Session, service: str, region: str | None, *, polls: bool) -> Any:
    from botocore.config import Config

    # A user's own choice of retries (in the environment or a profile) is not overridden.
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
            # Else presigned URLs of some regions are of version 2, which no bucket made since
            # 2020 accepts.
            signature_version="s3v4" if service == "s3" else None,
        ),
    )
    aws_retries.register(made, service, bounded="total_max_attempts" in retries)
    return made


def _client(session: Any, service: str, **options: Any) -> Any:
    """A client; what is no URL is, for once, no error of botocore's own kind."""
    from botocore.exceptions import BotoCoreError

    try:
        return session.client(service, **options)
    except BotoCoreError:
        raise
    except ValueError as error:
        raise UnavailableError(f"AWS: {error}: see AWS_ENDPOINT_URL") from error


def _unreachable(error: Exception) -> str:
    name = type(error).__name__
    said = " ".join(str(error).split())
    for words, advice in _ADVICE.items():
        if any(word in name for word in words.split()):
            return advice.format(said=said)
    return f"AWS can't be reached: {said}: see AWS_DEFAULT_REGION, AWS_ENDPOINT_URL and HTTPS_PROXY"


def _describe_refusal(error: ClientError) -> str | None:
    said = " ".join(str(error.response.get("Error", {}).get("Message", error)).split())
    found = code(error)
    if found in _EXPIRED:
        return f"AWS: the credentials have expired ({found}): sign in again, such as aws sso login"
    if found in _REFUSED:
        return (
            f"AWS does not know these credentials ({found}), or not in this region: see "
            "`aws sts get-caller-identity`, and that the region is enabled, and of their partition"
        )
    if found in _UNAUTHORIZED:
        # EC2 adds a thousand characters that only STS can read: which policy it was.
        said, _, encoded = said.partition(" Encoded authorization failure message:")
        command = "aws sts decode-authorization-message --encoded-message"
        more = f" To see which policy: {command} {encoded.strip()}" if encoded else ""
        return f"AWS: these credentials may not do this ({error.operation_name}): {said}{more}"
    return None
