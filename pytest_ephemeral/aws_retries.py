"""Which requests to AWS are made again: fewer than boto3's own rules have it, and what is said."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Final
from xml.parsers import expat

from pytest_ephemeral.errors import UnavailableError

#: Error codes of throttling.
THROTTLED: Final = frozenset(
    {
        *("BandwidthLimitExceeded", "EC2ThrottledException", "RequestLimitExceeded"),
        *("RequestThrottled", "RequestThrottledException", "SlowDown", "ThrottledException"),
        *("Throttling", "ThrottlingException", "TooManyRequestsException"),
    }
)

#: How often a request is made that fails by an error of the service's own: some ten seconds.
_SERVER_ERROR_ATTEMPTS: Final = 4
#: How often a request is made that can't connect, or gets no answer.
_CONNECTION_ATTEMPTS: Final = 3

#: The first HTTP status of errors of the service, which may pass.
_SERVER_ERROR: Final = 500
_BAD_GATEWAY: Final = 502

#: Receives messages while a request is retried.
_told: ContextVar[Callable[[str], None] | None] = ContextVar("told", default=None)


def register(client: Any, service: str, *, bounded: bool) -> None:
    """Have a client ask no longer than helps.

    Args:
        client: Of boto3.
        service: As boto3 names it.
        bounded: Whether the user has not chosen how often requests are made.
    """
    events = client.meta.events
    if bounded:
        events.register_first(f"needs-retry.{service}", _bound_server_errors)
        events.register_first(f"needs-retry.{service}", _bound_silence)
    if service == "ec2":
        events.register_first("needs-retry.ec2.RunInstances", _stop_retrying_capacity)
    if service != "s3":  # which has web pages of its own
        events.register_first("before-parse", _check_answer)
        events.register_first(f"needs-retry.{service}", _retry_unreadable)


@contextmanager
def tell_of_retries(tell: Callable[[str], None]) -> Iterator[None]:
    """Have ``tell`` called with a line for each request of this thread that is made again."""
    token = _told.set(tell)
    try:
        yield
    finally:
        _told.reset(token)


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


def _bound_silence(attempts: int, caught_exception: Exception | None = None, **_: Any) -> None:
    """Have no more asked of an endpoint that can't be connected to, or never answers."""
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, ReadTimeoutError

    silence = (EndpointConnectionError, ConnectTimeoutError, ReadTimeoutError)
    if attempts >= _CONNECTION_ATTEMPTS and isinstance(caught_exception, silence):
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
            f"AWS can't be reached: a web page answered instead (HTTP {status}): see "
            "HTTPS_PROXY and AWS_ENDPOINT_URL, and whether this network requires you to sign in"
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
            f"AWS can't be understood: the answer to {operation.name} is truncated, or not "
            "from AWS: see "
            "AWS_ENDPOINT_URL and HTTPS_PROXY"
        )
    return float(2 ** (attempts - 2))
