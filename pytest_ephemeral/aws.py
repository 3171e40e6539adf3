"""AWS, as boto3 users expect it: profiles, regions, endpoints and roles are boto3's own business.

Nothing here is read at import time, and boto3 is imported by whoever asks for a client.
"""

from __future__ import annotations

import json
import os
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Final
from xml.parsers import expat

from pytest_ephemeral.errors import UnavailableError

if TYPE_CHECKING:
    from botocore.exceptions import ClientError

#: Codes with which services say that credentials are no longer, or not at all, good.
_EXPIRED: Final = frozenset({"ExpiredToken", "ExpiredTokenException", "RequestExpired"})
_REFUSED: Final = frozenset(
    {"AuthFailure", "InvalidClientTokenId", "UnrecognizedClientException", "InvalidAccessKeyId"}
)
_UNAUTHORIZED: Final = frozenset({"UnauthorizedOperation", "AccessDenied", "AccessDeniedException"})

#: By words in the names of botocore's exceptions: what can be done when nothing can be asked.
_ADVICE: Final = {
    "Credentials CredentialRetrieval": (
        "AWS: no credentials ({said}): set AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
        "AWS_SECRET_ACCESS_KEY, or give the CI job a role"
    ),
    "NoRegion": "AWS: no region: set AWS_REGION, or region in the profile",
    "InvalidRegion": "AWS: {said} See AWS_REGION, and region in the profile",
    "ProfileNotFound": "AWS: {said}: see `aws configure list-profiles`, and AWS_PROFILE",
    "Config": "AWS: the configuration can't be right: {said}: see ~/.aws/config, and AWS_PROFILE",
    "SSO Token": "AWS: the sign-in is over ({said}): aws sso login",
}

#: A service's way of saying: later.
THROTTLED: Final = frozenset(
    {"RequestLimitExceeded", "Throttling", "ThrottlingException", "TooManyRequestsException"}
)

#: Who asks, to be told apart in CloudTrail from all others with the same credentials.
USER_AGENT: Final = "pytest-ephemeral"

#: How often a request is made that fails for reasons that may pass; by STS, which is asked who
#: asks before anything is done, and whoever waits should hear soon.
_PATIENT: Final = 10
_IMPATIENT: Final = 2
#: Seconds in which a connection is made, and in which STS, which is asked first of all, answers.
_ANSWER: Final = 5
#: And one that fails by an error of the service's own: some ten seconds, with back-off.
_SERVER_ERROR_ATTEMPTS: Final = 4
#: And one that can't even be made.
_CONNECTION_ATTEMPTS: Final = 3

#: The first status of errors that are not the request's, and may pass.
_SERVER_ERROR: Final = 500
_BAD_GATEWAY: Final = 502

#: Told what is going on while a request is made again.
_told: ContextVar[Callable[[str], None] | None] = ContextVar("told", default=None)

_clients: dict[tuple[Any, ...], Any] = {}
_identities: dict[int, dict[str, str]] = {}
_lock = threading.Lock()


def client(service: str, region: str | None = None) -> Any:
    """A client of one service; the same one for all threads of a process.

    Args:
        service: As boto3 names it, such as ``ec2``.
        region: Another than the configured one.

    Raises:
        UnavailableError: boto3 is not installed, or no region, profile or role can be found.
    """
    # A process (a test's, for one) may change who asks, and where, while it runs.
    said = sorted(item for item in os.environ.items() if item[0].startswith("AWS_"))
    key = (service, region, os.getpid(), *said)
    with (
        _lock,
        translate_errors(),
    ):  # a session is not safe to share between threads, its clients are
        if key not in _clients:
            _clients[key] = _create(service, region)
        return _clients[key]


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
                f"AWS does not say whose credentials these are: {said}"
            ) from error
    return _identities[id(asked)]


def code(error: Exception) -> str:
    """What a service answered, in one word, such as ``InsufficientInstanceCapacity``."""
    response: dict[str, Any] = getattr(error, "response", {})
    return str(response.get("Error", {}).get("Code", ""))


@contextmanager
def tell_of_retries(tell: Callable[[str], None]) -> Iterator[None]:
    """Have ``tell`` called with a line for each request of this thread that is made again."""
    token = _told.set(tell)
    try:
        yield
    finally:
        _told.reset(token)


@contextmanager
def translate_errors() -> Iterator[None]:
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


def _is_raised_by_botocore(error: BaseException) -> bool:
    """Whether an error comes from botocore's own work, such as reading a token's file."""
    frames = traceback.walk_tb(error.__traceback__)
    return any(frame.f_globals.get("__name__", "").startswith("botocore.") for frame, _ in frames)


def _create(service: str, region: str | None) -> Any:
    import boto3
    import botocore.session
    from botocore.config import Config

    core = botocore.session.get_session()
    session = boto3.session.Session(botocore_session=core)
    # A user's own choice of retries (in the environment or a profile) is not overridden.
    chosen = core.get_scoped_config()
    retries: dict[str, Any] = {}
    if "AWS_RETRY_MODE" not in os.environ and "retry_mode" not in chosen:
        retries["mode"] = "adaptive"
    if "AWS_MAX_ATTEMPTS" not in os.environ and "max_attempts" not in chosen:
        retries["total_max_attempts"] = _IMPATIENT if service == "sts" else _PATIENT
    made = _client(
        session,
        service,
        region_name=region,
        config=Config(
            retries=retries,
            connect_timeout=_ANSWER,
            **({"read_timeout": _ANSWER} if service == "sts" else {}),
            max_pool_connections=32,
            user_agent_extra=USER_AGENT,
            # Else presigned URLs of some regions are of version 2, which no bucket made since
            # 2020 accepts.
            signature_version="s3v4" if service == "s3" else None,
        ),
    )
    if "total_max_attempts" in retries:
        made.meta.events.register_first(f"needs-retry.{service}", _bound_server_errors)
        made.meta.events.register_first(f"needs-retry.{service}", _bound_refused_connections)
    if service == "ec2":
        made.meta.events.register_first("needs-retry.ec2.RunInstances", _stop_retrying_capacity)
    if service != "s3":  # which has web pages of its own
        made.meta.events.register_first("before-parse", _check_answer)
        made.meta.events.register_first(f"needs-retry.{service}", _retry_unreadable)
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


def _bound_server_errors(
    operation: Any,
    attempts: int,
    response: tuple[Any, dict[str, Any]] | None = None,
    **_: Any,
) -> None:
    """Have no more asked of a service that answers with one server error after another.

    Throttling passes, and is waited for longer: a service's 5xx, after so many, does not.
    """
    from botocore.exceptions import ClientError

    if response is None or response[0].status_code < _SERVER_ERROR:
        return
    code = response[1].get("Error", {}).get("Code", response[0].status_code)
    if code not in THROTTLED and attempts >= _SERVER_ERROR_ATTEMPTS:
        raise ClientError(response[1], operation.name)
    if tell := _told.get():
        tell(f"AWS answers {code} to {operation.name}, asked {attempts} times")


def _bound_refused_connections(
    attempts: int, caught_exception: Exception | None = None, **_: Any
) -> None:
    """Have no more asked of an endpoint that can't be connected to: it is another, or none."""
    from botocore.exceptions import EndpointConnectionError

    if attempts >= _CONNECTION_ATTEMPTS and isinstance(caught_exception, EndpointConnectionError):
        raise caught_exception


def _stop_retrying_capacity(response: tuple[Any, dict[str, Any]] | None = None, **_: Any) -> None:
    """Have no more of the same asked for where there is none of it: another type may be had.

    EC2 says so as a server's error, which boto3 would ask again and again.
    https://github.com/aws/aws-sdk-ruby/issues/2786
    """
    from botocore.exceptions import ClientError

    error = {} if response is None else response[1].get("Error", {})
    if str(error.get("Code", "")).startswith("Insufficient"):
        raise ClientError(response[1], "RunInstances")  # type: ignore[index]


def _check_answer(response_dict: dict[str, Any], operation_model: Any, **_: Any) -> None:
    """Refuse what a proxy, or a network that wants people to sign in, says in AWS's place.

    botocore would find it no XML, or no JSON, and raise what is none of its own errors. A gateway's
    error it asks again about, if it is not told more than its status. An answer of AWS's own that
    can't be parsed, as it was cut, becomes such an error.
    """
    is_readable = _is_readable(response_dict["body"], operation_model.metadata)
    is_page = str(response_dict["headers"].get("Content-Type", "")).startswith("text/html")
    is_json = operation_model.metadata.get("protocol") == "json"
    if not is_page or (is_json and is_readable and response_dict["body"]):
        if response_dict["status_code"] < _SERVER_ERROR and not is_readable:
            response_dict.update(status_code=_BAD_GATEWAY, body=b"")
        return
    status = int(response_dict["status_code"])
    if status < _SERVER_ERROR:
        raise UnavailableError(
            f"AWS can't be reached: a web page answered in its place (HTTP {status}): see "
            "HTTPS_PROXY and AWS_ENDPOINT_URL, and whether this network wants you to sign in"
        )
    response_dict["body"] = b""


def _is_readable(body: bytes, metadata: Mapping[str, Any]) -> bool:
    try:
        if metadata.get("protocol") in {"ec2", "query"}:
            expat.ParserCreate().Parse(body, True)
        elif metadata.get("protocol") == "json" and body:
            json.loads(body)
    except (expat.ExpatError, ValueError):
        return False
    return True


def _retry_unreadable(
    operation: Any,
    attempts: int,
    response: tuple[Any, dict[str, Any]] | None = None,
    **_: Any,
) -> float | None:
    """Ask again, in so many seconds, when an answer could not be parsed; see ``_check_answer``.

    Raises:
        UnavailableError: It was asked often enough.
    """
    if response is None or response[0].status_code >= _SERVER_ERROR:
        return None
    if response[1].get("ResponseMetadata", {}).get("HTTPStatusCode") != _BAD_GATEWAY:
        return None
    if attempts >= _SERVER_ERROR_ATTEMPTS:
        raise UnavailableError(
            f"AWS can't be understood: the answer to {operation.name} is cut, or not AWS's: see "
            "AWS_ENDPOINT_URL and HTTPS_PROXY"
        )
    return float(2 ** (attempts - 2))


def _unreachable(error: Exception) -> str:
    name = type(error).__name__
    said = " ".join(str(error).split())
    for words, advice in _ADVICE.items():
        if any(word in name for word in words.split()):
            return advice.format(said=said)
    return f"AWS can't be reached: {said}: see AWS_REGION, AWS_ENDPOINT_URL and HTTPS_PROXY"


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
