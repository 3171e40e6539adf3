"""Send messages in the background, with time limits: a slow receiver does not delay a run."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import msgspec

if TYPE_CHECKING:
    from requests import Response, Session

#: Seconds for all attempts at one message together.
PATIENCE: Final = 15.0
#: Seconds for one attempt.
ATTEMPT: Final = 5.0
#: Seconds before the second attempt; each later pause is twice the one before.
BACKOFF: Final = 0.5

#: HTTP statuses after which another attempt may succeed.
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class DeliveryError(Exception):
    """A message could not be delivered. The text has no secrets, only the service's message."""


class LostError(DeliveryError):
    """The response was lost, so it is unknown whether the request was executed."""


class Outbox(msgspec.Struct):
    """Sends messages to one receiver, one after the other, in a background thread.

    Attributes:
        name: The receiver's name, for the warning.
        warn: Called with the first error, from the background thread or from ``close``.
    """

    name: str
    warn: Callable[[str], None]
    _messages: queue.SimpleQueue[Callable[[Attempts], None] | None] = msgspec.field(
        default_factory=queue.SimpleQueue
    )
    _unsent: int = 0
    _changed: threading.Condition = msgspec.field(default_factory=threading.Condition)
    _closing: threading.Event = msgspec.field(default_factory=threading.Event)
    _deadline: float = float("inf")
    _thread: threading.Thread | None = None
    _warned: bool = False

    def put(self, message: Callable[[Attempts], None]) -> None:
        """Add a message to the queue.

        Args:
            message: The function that sends it. Every exception of it becomes a warning.
        """
        with self._changed:
            self._unsent += 1
            if self._thread is None:
                self._thread = threading.Thread(
                    target=self._work, name=f"ephemeral {self.name}", daemon=True
                )
                self._thread.start()
        self._messages.put(message)

    def close(self, deadline: float) -> None:
        """Wait for pending messages, and stop the thread.

        Args:
            deadline: Seconds on the monotonic clock; messages not sent by then are dropped.
        """
        self._deadline = deadline
        self._closing.set()
        with self._changed:
            left = max(0.0, deadline - time.monotonic())
            done = self._changed.wait_for(lambda: self._unsent == 0, left)
        self._messages.put(None)
        if not done:
            self._complain(f"gave up on {self._unsent} messages at the end of the run")

    def _work(self) -> None:
        while (message := self._messages.get()) and time.monotonic() < self._deadline:
            try:
                message(Attempts(min(time.monotonic() + PATIENCE, self._deadline), self))
            except Exception as error:  # noqa: BLE001 - a publisher's error must not fail the run
                self._complain(str(error) or type(error).__name__)
            with self._changed:
                self._unsent -= 1
                self._changed.notify_all()

    def hurries(self, attempts: int) -> bool:
        """Whether the run has ended, and no further attempt is made at this message."""
        return self._closing.is_set() and (attempts > 1 or self._warned)

    def rest(self, seconds: float) -> None:
        """Wait between two attempts; the end of the run ends the wait."""
        if self._closing.is_set():
            time.sleep(seconds)
            return
        self._closing.wait(seconds)

    def _complain(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            self.warn(f"{self.name}: {problem}")


class _FailedAttempt(NamedTuple):
    """Why an attempt failed, and the seconds to wait if the service requests a pause."""

    problem: str
    wait: float | None = None


class Attempts(msgspec.Struct):
    """The attempts at one message, until its deadline in seconds on the monotonic clock."""

    deadline: float
    outbox: Outbox

    def create(self, session: Session, url: str, body: Any, find: Callable[[], int | None]) -> int:
        """Create a resource of the service once, even if a response is lost.

        Args:
            session: The session with the credentials.
            url: The URL of the POST request.
            body: The request's body, as JSON values.
            find: Returns the number of the resource, or None if it does not exist.

        Returns:
            The number of the resource.

        Raises:
            DeliveryError: It could not be created.
        """
        while (number := find()) is None:
            try:
                answer = self.request(session, "POST", url, again=False, json=body)
                return int(answer.json()["id"])
            except LostError:
                self.outbox.rest(BACKOFF)
        return number

    def request(
        self, session: Session, method: str, url: str, *, again: bool = True, **arguments: Any
    ) -> Response:
        """Send a request until there is a final response.

        Args:
            session: The session with the credentials.
            method: The HTTP method.
            url: The URL.
            again: Whether to repeat a request that the service may have executed.
            arguments: Further arguments of ``Session.request``.

        Raises:
            LostError: The service may have executed it, and ``again`` is false.
            DeliveryError: The service refused it, or all attempts until the deadline failed.
        """
        attempts, backoff = 0, BACKOFF
        while True:
            attempts += 1
            answer = self._attempt(session, method, url, arguments)
            if not isinstance(answer, _FailedAttempt):
                return answer
            must_wait = answer.wait is not None
            pause = answer.wait if answer.wait is not None else backoff
            is_last = not must_wait and self.outbox.hurries(attempts)
            if is_last or time.monotonic() + pause >= self.deadline:
                raise DeliveryError(answer.problem)
            if not (again or must_wait):
                raise LostError(answer.problem)
            self.outbox.rest(pause)
            backoff *= 2

    def _attempt(
        self, session: Session, method: str, url: str, arguments: dict[str, Any]
    ) -> Response | _FailedAttempt:
        """Send a request once; raise DeliveryError if another attempt can't succeed either."""
        import requests

        try:
            response = session.request(
                method, url, timeout=self._timeout(), allow_redirects=False, **arguments
            )
        except requests.RequestException as error:
            if isinstance(error, ValueError):  # the URL is not valid
                raise DeliveryError(type(error).__name__) from None
            return _FailedAttempt(type(error).__name__)
        if response.status_code < 300:
            return response
        failure = _FailedAttempt(_refusal(response), retry_after(response, time.time()))
        if failure.wait is None and response.status_code not in _BUSY:
            raise DeliveryError(failure.problem)
        return failure

    def _timeout(self) -> float:
        return max(0.1, min(ATTEMPT, self.deadline - time.monotonic()))


def retry_after(response: Response, now: float) -> float | None:
    """The seconds to wait before another attempt, if the service requests a pause.

    GitHub does so with status 403 or 429, in one of two ways: by ``Retry-After``, or by the
    number of remaining requests (0) and the time at which it is reset (docs.github.com, "Rate
    limits for the REST API").

    Args:
        response: A response with an error status.
        now: The current time in seconds since the epoch.

    Returns:
        Seconds; None if the service requests no pause.
    """
    if response.status_code not in {403, 429, 503}:
        return None
    after = response.headers.get("Retry-After", "")
    if after.isdigit():
        return float(after)
    if after:
        try:
            return max(0.0, parsedate_to_datetime(after).timestamp() - now)
        except ValueError:
            return None
    reset = response.headers.get("X-RateLimit-Reset", "")
    if response.headers.get("X-RateLimit-Remaining") == "0" and reset.isdigit():
        return max(0.0, float(reset) - now)
    return None


def _refusal(response: Response) -> str:
    """The service's error message, in one short line."""
    try:
        answer = response.json()
        message = answer.get("message") or answer.get("error") or ""
    except (ValueError, AttributeError):
        message = ""
    words = " ".join(str(message).split())[:200]
    return f"HTTP {response.status_code} {response.reason or ''}".rstrip() + (
        f": {words}" if words else ""
    )
