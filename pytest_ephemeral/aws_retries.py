"""Rules for retries of requests to AWS: fewer than boto3's own, with messages about each."""

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

#: The attempts at a request if the service responds with a server error: about ten seconds.
_SERVER_ERROR_ATTEMPTS: Final = 4
#: The attempts at a request without a connection or a response.
_CONNECTION_ATTEMPTS: Final = 3

#: The first HTTP status of server errors, which may be temporary.
_SERVER_ERROR: Final = 500
_BAD_GATEWAY: Final = 502

#: The function that gets a message for each retry.
_listener: ContextVar[Callable[[str], None] | None] = ContextVar("listener", default=None)


def register(client: Any, service: str, *, bounded: bool) -> None:
    """Register these rules with a client.

    Args:
        client: A boto3 client.
        service: boto3's name of the service.
        bounded: Whether to limit attempts; false if the user has set their number.
    """
    events = client.meta.events
    if bounded:
        events.register_first(f"needs-retry.{service}", _bound_server_errors)
        events.register_first(f"needs-retry.{service}", _bound_silence)
    if service == "ec2":
        events.register_first("needs-retry.ec2.RunInstances", _stop_retrying_capacity)
    if service != "s3":  # S3 responds with web pages itself
        events.register_first("before-parse", _check_answer)
        events.register_first(f"needs-retry.{service}", _retry_unreadable)


@contextmanager
def tell_of_retries(tell: Callable[[str], None]) -> Iterator[None]:
    """Within the block, call ``tell`` with a line for each retry in this thread."""
    token = _listener.set(tell)
    try:
        yield
    finally:
        _listener.reset(token)


def _bound_server_errors(
    operation: Any,
    attempts: int,
    response: tuple[Any, dict[str, Any]] | None = None,
    **_: Any,
) -> None:
    """Stop retrying a request to which a service responds with several server errors.

    Throttling is temporary and is retried longer. Repeated 5xx errors are not.
    """
    from botocore.exceptions import ClientError

    if response is None or response[0].status_code < _SERVER_ERROR:
        return
    code = response[1].get("Error", {}).get("Code", response[0].status_code)
    if code not in THROTTLED and attempts >= _SERVER_ERROR_ATTEMPTS:
        raise ClientError(response[1], operation.name)
    if tell := _listener.get():
        tell(f"AWS answers {code} to {operation.name}, asked {attempts} times")


def _bound_silence(attempts: int, caught_exception: Exception | None = None, **_: Any) -> None:
    """Stop retrying a request to an endpoint that can't be reached or does not respond."""
    from botocore.exceptions import ConnectTimeoutError, EndpointConnectionError, ReadTimeoutError

    silence = (EndpointConnectionError, ConnectTimeoutError, ReadTimeoutError)
    if attempts >= _CONNECTION_ATTEMPTS and isinstance(caught_exception, silence):
        raise caught_exception


def _stop_retrying_capacity(response: tuple[Any, dict[str, Any]] | None = None, **_: Any) -> None:
    """Stop retrying a launch without capacity, so that the next instance type is tried.

    EC2 responds with a server error, which boto3 would retry:
    https://github.com/aws/aws-sdk-ruby/issues/2786
    """
    from botocore.exceptions import ClientError

    error = {} if response is None else response[1].get("Error", {})
    if str(error.get("Code", "")).startswith("Insufficient"):
        raise ClientError(response[1], "RunInstances")  # type: ignore[index]


def _check_answer(response_dict: dict[str, Any], operation_model: Any, **_: Any) -> None:
    """Handle a response that is not from AWS, but from a proxy or a network's sign-in page.

    botocore can't parse such a response, and raises an error that is not a botocore error. A
    gateway's error gets an empty body, with which botocore retries the request. A truncated
    response of AWS is treated as a gateway's error, too.

    Raises:
        UnavailableError: A web page without an error status was received instead of a response.
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
    """Retry after a response that could not be parsed; see ``_check_answer``.

    Returns:
        The seconds to wait before the next attempt; None if this rule does not apply.

    Raises:
        UnavailableError: All attempts have failed.
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
