"""Seal an installed tree, and find changes in it later."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from pytest_ephemeral.errors import BakeError, UnavailableError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.local import reference, tree
from pytest_ephemeral.providers.local.prefix import Prefix, Seal
from pytest_ephemeral.providers.protocol import BakeJob

#: The number of changes that an error names.
_NAMED_CHANGES: Final = 5


def seal_prefix(job: BakeJob, prefix: Prefix) -> Seal:
    """Seal the tree of a bake; the seal is not verified yet.

    Raises:
        BakeError: The tree can't be sealed, or is empty.
    """
    try:
        tree.seal(prefix.tree)
        manifest = tree.manifest(prefix.tree)
    except (tree.BadTreeError, OSError) as error:
        raise BakeError(
            f"what was installed for the image {job.recipe.name!r} can't be sealed: {error}. "
            f"The log: {job.log}"
        ) from error
    if not manifest:
        raise BakeError(
            f"the install script of the image {job.recipe.name!r} put nothing into $PREFIX: "
            f"let it copy or install there what the application needs. The log: {job.log}"
        )
    return write_seal(prefix, job.key, manifest, tree.outside_links(prefix.tree), verified=False)


def write_seal(
    prefix: Prefix, key: str, manifest: bytes, links: list[str], *, verified: bool
) -> Seal:
    """Write the seal of a finished tree.

    Args:
        prefix: The tree.
        key: The image's key.
        manifest: The tree's manifest.
        links: The tree's links to paths outside of it.
        verified: Whether the recipe's ``verify`` commands have succeeded.
    """
    prefix.manifest.write_bytes(manifest)
    seal = Seal(
        key=key,
        digest=tree.digest(manifest),
        fingerprint=tree.fingerprint(prefix.tree),
        size=tree.size(prefix.tree),
        links=links,
    )
    prefix.write_seal(seal, verified=verified)
    return seal


def describe_image(job: BakeJob, prefix: Prefix, seal: Seal) -> Image:
    """Describe a sealed tree as an image."""
    return Image(
        name=job.recipe.name,
        key=job.key,
        provider="local",
        reference=str(prefix.tree),
        digest=seal.digest,
        size=seal.size,
        baked_at=datetime.now(UTC),
        handle={"links": "\n".join(seal.links)} if seal.links else {},
    )


def find_differences(prefix: Prefix, seal: Seal) -> list[str]:
    """The changes since a tree was sealed; contents are read only if the fingerprint differs."""
    fingerprint = tree.fingerprint(prefix.tree)
    if fingerprint == seal.fingerprint:
        return []
    now = reference.read_manifest(prefix.tree)
    if tree.digest(now) == seal.digest:
        # The tree was restored, or moved to another disk: record its new fingerprint.
        prefix.refresh(msgspec.structs.replace(seal, fingerprint=fingerprint))
        return []
    try:
        return tree.changes(prefix.manifest.read_bytes(), now)
    except FileNotFoundError:
        return [f"its digest is {tree.digest(now)}, and was {seal.digest}"]


def name_some(changed: Sequence[str]) -> str:
    """The first few changes, and the number of the others."""
    more = len(changed) - _NAMED_CHANGES
    return ", ".join(changed[:_NAMED_CHANGES]) + (f" and {more} more" if more > 0 else "")


def require_links(name: str, links: Sequence[str]) -> None:
    """Check that the interpreters and libraries that a tree links to exist on this machine.

    Raises:
        UnavailableError: One does not.
    """
    for link in links:
        target = link.partition(" -> ")[2]
        if not Path(target).exists():
            raise UnavailableError(
                f"the image {name!r} needs {target}, which this machine does not have "
                f"({link}). Install it here, or bake the image on a machine like this one"
            )
