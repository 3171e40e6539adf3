"""Send messages in the background with time limits: slow receivers never delay a run."""

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

#: Seconds that one message may take with all its attempts.
PATIENCE: Final = 15.0
#: Seconds that one attempt may take.
ATTEMPT: Final = 5.0
#: The first wait before another attempt; each is twice the one before.
BACKOFF: Final = 0.5

#: Statuses after which another attempt may succeed.
_BUSY: Final = frozenset({408, 425, 429, 500, 502, 503, 504})


class DeliveryError(Exception):
    """A message could not be delivered. Its text is only the service's own."""


class LostError(DeliveryError):
    """It is unknown whether a request was executed: the response was lost."""


class Outbox(msgspec.Struct):
    """Messages that are sent one after the other, in a thread of their own.

    Attributes:
        name: The receiver's name.
        warn: Receives one warning if sending fails.
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
        """Send something, later.

        Args:
            message: Sends it; may raise anything.
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
        """Wait for pending messages.

        Args:
            deadline: On the monotonic clock; messages that are unsent by then are dropped.
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
            except Exception as error:  # noqa: BLE001 - a warning, whatever it is
                self._complain(str(error) or type(error).__name__)
            with self._changed:
                self._unsent -= 1
                self._changed.notify_all()

    def hurries(self, attempts: int) -> bool:
        """Whether the run has ended and no more attempts are made."""
        return self._closing.is_set() and (attempts > 1 or self._warned)

    def rest(self, seconds: float) -> None:
        """Wait, but no longer than the run lasts."""
        if self._closing.is_set():
            time.sleep(seconds)
            return
        self._closing.wait(seconds)

    def _complain(self, problem: str) -> None:
        if not self._warned:
            self._warned = True
            self.warn(f"{self.name}: {problem}")


class _FailedAttempt(NamedTuple):
    """Why an attempt failed, and how many seconds to wait, if the service says so."""

    problem: str
    wait: float | None = None


class Attempts(msgspec.Struct):
    """The attempts at one message: as many as fit before its deadline."""

    deadline: float
    outbox: Outbox

    def create(self, session: Session, url: str, body: Any, find: Callable[[], int | None]) -> int:
        """Create something once, even if the answer to it is lost, and return its number.

        Args:
            session: Holds what all requests share.
            url: Where to post it.
            body: As JSON.
            find: Its number, if it is there already.

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
        """Make a request until there is a final response.

        Args:
            session: Holds what all requests share.
            method: Such as ``POST``.
            url: Where to.
            again: Whether it may be repeated when it may have been carried out.
            arguments: As requests takes them.

        Raises:
            LostError: It may have been carried out, and may not be repeated.
            DeliveryError: It was refused, or every attempt failed until the deadline.
        """
        attempts, backoff = 0, BACKOFF
        while True:
            attempts += 1
            answer = self._attempt(session, method, url, arguments)
            if not isinstance(answer, _FailedAttempt):
                return answer
            told_to_wait = answer.wait is not None
            pause = answer.wait if answer.wait is not None else backoff
            is_last = not told_to_wait and self.outbox.hurries(attempts)
            if is_last or time.monotonic() + pause >= self.deadline:
                raise DeliveryError(answer.problem)
            if not (again or told_to_wait):
                raise LostError(answer.problem)
            self.outbox.rest(pause)
            backoff *= 2

    def _attempt(
        self, session: Session, method: str, url: str, arguments: dict[str, Any]
    ) -> Response | _FailedAttempt:
        """Make a request once; raises DeliveryError when another time would be no better."""
        import requests

        try:
            response = session.request(
                method, url, timeout=self._timeout(), allow_redirects=False, **arguments
            )
        except requests.RequestException as error:
            if isinstance(error, ValueError):  # the address itself is wrong
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
    """Seconds that the service asks to wait; None when it does not.

    GitHub says it in one of two ways, with status 403 or 429: ``Retry-After``, or no remaining
    requests and the time of the next ones (docs.github.com, "Rate limits for the REST API").

    Args:
        response: An answer that is no success.
        now: Seconds since the epoch.
    """
    if response.status_code not in {403, 429, 503}:
        return None
    said = response.headers.get("Retry-After", "")
    if said.isdigit():
        return float(said)
    if said:
        try:
            return max(0.0, parsedate_to_datetime(said).timestamp() - now)
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
        said = answer.get("message") or answer.get("error") or ""
    except (ValueError, AttributeError):
        said = ""
    words = " ".join(str(said).split())[:200]
    return f"HTTP {response.status_code} {response.reason or ''}".rstrip() + (
        f": {words}" if words else ""
    )
