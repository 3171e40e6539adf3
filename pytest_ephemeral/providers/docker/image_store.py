"""Which of an engine's images it is that was baked, in whichever store the engine keeps them.

Docker's own store and Podman's know an image by the digest of its configuration, which names every
layer by the digest of its files. Docker's containerd store, which new installations have from
version 29 on, knows it by the digest of a manifest, which is another after every load
(https://github.com/moby/moby/issues/48401). So a baked image is recorded by its configuration's
digest; a manifest's, which stands for one configuration for ever, is looked into once.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from pytest_ephemeral import files, machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.docker import bases, identity, quarantine
from pytest_ephemeral.providers.docker.engine import Engine

#: What baked images are called: ``pytest-ephemeral/NAME:KEY``.
REPOSITORY: Final = "pytest-ephemeral"

#: In an image's handle: where any engine can pull it, by its digest.
PULL: Final = "pull"

#: The most bytes that a manifest or a configuration may have, as registries have it.
_LARGEST_DOCUMENT: Final = 4 << 20

_BLOBS: Final = "blobs/sha256/"

#: The configurations' digests by the digests of manifests.
_known: Final[dict[str, str]] = {}


def name_of(recipe: str, key: str) -> str:
    """The name that a baked image has on every engine."""
    return f"{REPOSITORY}/{recipe}:{quarantine.short_key(key)}"


def tag_of(image: Image) -> str:
    """The name of an image that the catalog knows."""
    return name_of(image.name, image.key)


def find(engine: Engine, image: Image) -> dict[str, Any] | None:
    """A baked image as the engine describes it; None when it has not that very one."""
    if not identity.has_manifests(engine):
        return bases.find_local(engine, image.digest)
    for name in (image.reference, tag_of(image), image.handle.get(PULL)):
        found = name and bases.find_local(engine, name)
        if found and digest_of(engine, found) == image.digest:
            return found
    return None


def id_on(engine: Engine, image: Image) -> str:
    """What an engine calls a baked image; where it does not have it, what it would be called."""
    if not identity.has_manifests(engine):
        return image.digest
    found = find(engine, image)
    return str(found["Id"]) if found else image.digest


def digest_of(engine: Engine, found: Mapping[str, Any]) -> str:
    """The digest of an image's configuration.

    Args:
        engine: Where it is.
        found: The image, as the engine describes it.
    """
    id = str(found["Id"])
    if not identity.has_manifests(engine):
        return id
    if id not in _known:
        _known[id] = _remembered(id) or _read(engine, found)
        _remember(id, _known[id])
    return _known[id]


def _read(engine: Engine, found: Mapping[str, Any]) -> str:
    """The configuration's digest, from the documents that saving the image gives.

    The engine has no call for a manifest. What it saves ends to be read when that is found.
    """
    import tarfile

    documents: dict[str, Any] = {}
    with (
        engine.stream("GET", f"/images/{found['Id']}/get") as answer,
        tarfile.open(fileobj=answer, mode="r|") as tar,
    ):
        for member in tar:
            content = tar.extractfile(member) if member.size <= _LARGEST_DOCUMENT else None
            if content is None or not member.name.startswith(_BLOBS):
                continue
            try:
                document = json.load(content)
            except ValueError:  # a small layer
                continue
            documents[f"sha256:{member.name.removeprefix(_BLOBS)}"] = document
            if config := _config_in(documents, str(found["Id"]), found):
                return config
    raise EphemeralError(
        f"the container engine saves the image {found['Id']} without a configuration"
    )


def _config_in(documents: Mapping[str, Any], digest: str, found: Mapping[str, Any]) -> str:
    """What a manifest names as configuration, or an index as that of the image's platform."""
    document = documents.get(digest)
    if not isinstance(document, dict):
        return ""
    if config := document.get("config"):
        return str(config["digest"])
    wanted = (found["Os"], found["Architecture"])
    for one in document.get("manifests") or ():
        platform = one.get("platform")
        its = wanted if platform is None else (platform.get("os"), platform.get("architecture"))
        if its == wanted and (config := _config_in(documents, str(one["digest"]), found)):
            return config
    return ""


def _remembered(id: str) -> str:
    try:
        return (machine.state_directory() / "manifests" / id[7:]).read_text()
    except FileNotFoundError:
        return ""


def _remember(id: str, digest: str) -> None:
    folder = machine.state_directory() / "manifests"
    folder.mkdir(parents=True, exist_ok=True)
    files.replace(folder / id[7:], [digest.encode()])
