"""Destroy an environment of this machine: end its processes, then remove its folder."""

from __future__ import annotations

from collections.abc import Mapping

from pytest_ephemeral import labels
from pytest_ephemeral.errors import (
    DestroyError,
    ElsewhereError,
    EphemeralError,
    UnverifiedDestroyError,
)
from pytest_ephemeral.providers import grace
from pytest_ephemeral.providers.local import client, signals
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.guard import Guard
from pytest_ephemeral.providers.local.supervisor.processes import (
    end_marked,
    find_marked,
    find_users,
)
from pytest_ephemeral.providers.local.supervisor.shared_memory import SharedMemory


def destroy(
    place: Folder, held: Guard | None, *, here: bool, handle: Mapping[str, str] = {}
) -> None:
    """End all processes of an environment, and remove its folder.

    Args:
        place: The environment's folder, already checked with ``require_ours``.
        held: The environment's guard, if this process has started it.
        here: Whether it was launched on this machine, in this PID namespace.
        handle: The environment's handle, with the grace and the stop signal, if it has any.

    Raises:
        DestroyError: A process or a file remains.
        ElsewhereError: It was launched elsewhere, so its processes can't be seen from here.
        UnverifiedDestroyError: A process may remain that can't be found; the folder is removed.
    """
    unverified = ""
    try:
        end = grace.read(handle), signals.read(handle)
        if not _stop(place, held, here, end) and place.unmarked.exists():
            unverified = _describe_unverified(place)
    finally:
        if held is not None:
            held.kill()
    if not place.remove():
        raise DestroyError(
            f"{place.path.name}: not all of {place.path} can be removed. See what is left, and "
            f"whose it is: ls -lR {place.path}"
        )
    if unverified:
        raise UnverifiedDestroyError(unverified)


def _stop(place: Folder, held: Guard | None, here: bool, end: tuple[float, int]) -> bool:
    """End processes by their guard; if it is gone or hangs, kill all with the environment's marks.

    Returns:
        Whether the guard ended them; it misses none.
    """
    id = place.path.name
    try:
        if held is None:
            client.stop(place.control, *end)
            return True
        held.stop(*end)
        if held.has_reported:
            return True
    except DestroyError:
        raise
    except EphemeralError:
        if not here:
            raise ElsewhereError(
                f"{id} was launched on another machine, or in another container or PID namespace, "
                "and its guard does not answer here: nothing was removed, and its record stays. "
                f"Run `pytest-ephemeral down {id}` there. If that place is gone for good, so is "
                "the environment: then remove the record from the store's folder environments/"
            ) from None
    marks = f"{labels.ENVIRONMENT_VARIABLE}={id}", str(place.mark)
    shared = SharedMemory(lambda: find_marked(*marks), place.made_at)
    left = end_marked(*marks)
    shared.remove()
    if left:
        pids = ", ".join(map(str, left))
        raise DestroyError(
            f"these processes of {id} can't be killed: {pids}. See who owns them: ps -fp {pids}"
        )
    return False


def _describe_unverified(place: Folder) -> str:
    """The message on processes that may be left, after all marked processes were killed."""
    id = place.path.name
    pids = find_users(str(place.path))
    listed = ",".join(map(str, pids))
    look = (
        f"These run in its folder, and may belong to it: ps -fp {listed}"
        if pids
        else "Look at what you run: ps -fu $USER"
    )
    return (
        f"{id}: its guard was killed with SIGKILL, and nothing could be mounted for it here, so "
        "processes of it that have cleared their variables, as daemons do, can't be found and may "
        f"still run. Everything else of it is gone. {look}. Once none is left, "
        f"`pytest-ephemeral down {id}` removes the record"
    )
