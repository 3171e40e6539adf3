"""The resources of an account, read from moto itself: API calls took most of the tests' time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from aws.stacks import ACCOUNT


def left(base: str, regions: list[str]) -> list[str]:
    """List instances, groups, stacks, and AMIs and snapshots neither verified nor of the base.

    Args:
        base: The AMI that exists from the beginning.
        regions: The regions to read; stacks are read in the first only.
    """
    stacks = _backend("cloudformation", regions[0]).stacks.values()
    found = [one.name for one in stacks if one.status != "DELETE_COMPLETE"]
    return found + [name for region in regions for name in _left(base, region)]


def verified(regions: list[str]) -> dict[str, str]:
    """Return the AMIs whose tags say ``verified``, with their keys."""
    found = (ami for region in regions for ami in _amis(region) if _is_verified(ami))
    return {ami.id: _marks(ami)["pytest-ephemeral.key"] for ami in found}


def _left(base: str, region: str) -> Iterator[str]:
    backend = _backend("ec2", region)
    for reservation in backend.reservations.values():
        for one in reservation.instances:
            if one._state.name != "terminated":
                yield f"{one.id} {one._state.name}"
    for groups in backend.groups.values():
        yield from (one.name for one in groups.values() if one.name != "default")
    used = set()
    for ami in _amis(region):
        if ami.id == base or _is_verified(ami):
            used.add(ami.ebs_snapshot.id)
        else:
            yield ami.id
    for snapshot in backend.snapshots.values():
        if snapshot.owner_id == ACCOUNT and snapshot.id not in used:
            yield snapshot.id


def _amis(region: str) -> Iterator[Any]:
    return (one for one in _backend("ec2", region).amis.values() if one.owner_id == ACCOUNT)


def _is_verified(ami: Any) -> bool:
    return _marks(ami).get("pytest-ephemeral.state") == "verified"


def _marks(ami: Any) -> dict[str, str]:
    return {tag["key"]: tag["value"] for tag in ami.get_tags()}


def _backend(service: str, region: str) -> Any:
    from moto.backends import get_backend

    return get_backend(service)[ACCOUNT][region]
