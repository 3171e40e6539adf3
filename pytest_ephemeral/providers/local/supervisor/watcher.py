"""Watch descriptors, signals and the owner's process."""

from __future__ import annotations

import _signal as signal  # see loop
import os
import select

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Watcher:
    """Calls handlers when descriptors have data.

    Args:
        owner: The id of the process that this one must not outlive.
    """

    def __init__(self, owner: int) -> None:
        self._owner: int | None = owner  # None if the guard is kept
        self._ending = ""  # the reason for the end: stop, owner, expired, finished
        self._poll = select.poll()
        self._handlers: dict[int, Callable[[], object]] = {}

    def _reap(self) -> None:
        """Reap children that have ended."""
        raise NotImplementedError

    def _watch(self, descriptor: int, handler: Callable[[], object]) -> None:
        self._handlers[descriptor] = handler
        self._poll.register(descriptor, select.POLLIN)

    def _unwatch(self, descriptor: int) -> None:
        del self._handlers[descriptor]
        self._poll.unregister(descriptor)

    def _watch_signals(self) -> None:
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        reading, writing = os.pipe()
        os.set_blocking(reading, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        for number in (*_STOPPING, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)

        def handle() -> None:
            caught = os.read(reading, 4096)
            if any(number in caught for number in _STOPPING):
                self._ending = "stop" if self._owner else "owner"
            self._reap()

        self._watch(reading, handle)

    def _watch_owner(self) -> None:
        """Watch the owner by its pipe, which a child of it may keep open, and by a pidfd."""
        self._watch(0, self._on_pipe_data)
        if self._owner and hasattr(os, "pidfd_open"):
            try:
                handle = os.pidfd_open(self._owner)
            except ProcessLookupError:
                self._ending = "owner"
                return
            self._watch(handle, lambda: self._on_owner_death(handle))

    def _on_pipe_data(self) -> None:
        if not os.read(0, 4096):
            self._on_owner_death(0)

    def _on_owner_death(self, descriptor: int) -> None:
        self._unwatch(descriptor)
        if self._owner:
            self._ending = "owner"
