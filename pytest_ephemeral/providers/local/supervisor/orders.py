"""The orders of a guard; see ``guard.Spec``, which sends them."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any


class Orders:
    """A guard's orders.

    Attributes:
        owner: The id of the owner's process; the guard ends with it, unless it is kept.
        listener: The descriptor of the control socket.
    """

    id: str
    argvs: Mapping[str, Sequence[str]]
    directory: str
    variables: Mapping[str, str]
    logs: str
    readonly: Sequence[str]
    places: Mapping[str, str]
    mark: str
    remove: Sequence[str]
    remove_orphaned: Sequence[str]
    secrets: Sequence[str]
    expires_at: float | None
    settle: Sequence[str]
    accounts: Mapping[str, Mapping[str, Any]]
    descriptors: Sequence[int]
    keep_after_exit: bool
    owner: int
    listener: int

    def __init__(self, **orders: Any) -> None:
        self.__dict__.update(orders)
