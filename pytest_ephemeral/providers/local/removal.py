"""Remove an environment of this machine: first its processes, then its folder."""

from __future__ import annotations

from pytest_ephemeral import labels
from pytest_ephemeral.errors import DestroyError, ElsewhereError, EphemeralError
from pytest_ephemeral.providers.local import client
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.guard import Guard
from pytest_ephemeral.providers.local.supervisor.processes import end_marked


def destroy(place: Folder, held: Guard | None, *, here: bool) -> None:
    """End everything of an environment, then remove its folder.

    Args:
        place: Its folder, known to be its own if it is there.
        held: Its guard, if this process has started it.
        here: Whether it was launched on this machine, in this PID namespace.

    Raises:
        DestroyError: Something remains.
        ElsewhereError: Whether something does can't be seen from here.
    """
    try:
        _stop(place, held, here=here)
    finally:
        if held is not None:
            held.kill()
    if not place.remove():
        raise DestroyError(
            f"{place.path.name}: not all of {place.path} can be removed. See what is left, and "
            f"whose it is: ls -lR {place.path}"
        )


def _stop(place: Folder, held: Guard | None, *, here: bool) -> None:
    """End it through its guard; where that is gone or stuck, kill all that has its marks."""
    id = place.path.name
    try:
        client.stop(place.control) if held is None else held.stop()
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
        left = end_marked(f"{labels.ENVIRONMENT_VARIABLE}={id}", str(place.mark))
        if left:
            pids = ", ".join(map(str, left))
            raise DestroyError(
                f"of {id}, these processes can't be killed: {pids}. See whose they are: "
                f"ps -fp {pids}"
            ) from None
