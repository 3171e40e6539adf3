"""Find a baked image in an engine, by the digest of its configuration.

Docker's older store and Podman identify an image by the digest of its configuration, which has the
digests of all layers. Docker's containerd store, the default of new installations since version
29, identifies it by the digest of a manifest, which changes with every load
(https://github.com/moby/moby/issues/48401). So a baked image is recorded by the digest of its
configuration. A manifest always has the same configuration, so it is read once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any, Final

from pytest_ephemeral import files, machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.docker import bases, identity, quarantine
from pytest_ephemeral.providers.docker.engine import Engine

#: The start of baked images' names: ``pytest-ephemeral/NAME:KEY``.
REPOSITORY: Final = "pytest-ephemeral"

#: In an image's handle: the name with digest by which any engine can pull it.
PULL: Final = "pull"

#: The largest manifest or configuration in bytes, as in registries.
_LARGEST_DOCUMENT: Final = 4 << 20

_BLOBS: Final = "blobs/sha256/"

#: The digests of configurations, by the digests of manifests.
_known: Final[dict[str, str]] = {}


def name_of(recipe: str, key: str) -> str:
    """The name of a baked image, the same on every engine."""
    return f"{REPOSITORY}/{recipe}:{quarantine.short_key(key)}"


def tag_of(image: Image) -> str:
    """The name of an image from the catalog."""
    return name_of(image.name, image.key)


def find(engine: Engine, image: Image) -> dict[str, Any] | None:
    """The engine's description of a baked image; None if the engine lacks this very image."""
    if not identity.has_manifests(engine):
        return bases.find_local(engine, image.digest)
    for name in (image.reference, tag_of(image), image.handle.get(PULL)):
        found = name and bases.find_local(engine, name)
        if found and digest_of(engine, found) == image.digest:
            return found
    return None


def id_on(engine: Engine, image: Image) -> str:
    """The id of a baked image on an engine; if the engine lacks it, the image's digest."""
    if not identity.has_manifests(engine):
        return image.digest
    found = find(engine, image)
    return str(found["Id"]) if found else image.digest


def find_loaded(engine: Engine, image: Image, output: str) -> str | None:
    """The id of an image that the engine has just loaded; None if it loaded another one."""
    for id in [image.digest, *re.findall("sha256:[0-9a-f]{64}", output)]:
        found = bases.find_local(engine, id)
        if found is not None and digest_of(engine, found) == image.digest:
            return str(found["Id"])
    return None


def name(engine: Engine, id: str, name: str) -> None:
    """Give an image of an engine a name."""
    repository, _, tag = name.rpartition(":")
    engine.call("POST", f"/images/{id}/tag", query={"repo": repository, "tag": tag})


def digest_of(engine: Engine, found: Mapping[str, Any]) -> str:
    """The digest of an image's configuration.

    Args:
        engine: The engine that has the image.
        found: The engine's description of the image.
    """
    id = str(found["Id"])
    if not identity.has_manifests(engine):
        return id
    if id not in _known:
        _known[id] = _load_digest(id) or _read(engine, found)
        _save_digest(id, _known[id])
    return _known[id]


def _read(engine: Engine, found: Mapping[str, Any]) -> str:
    """The digest of an image's configuration, from the archive that saving the image gives.

    The engine has no call for a manifest. The archive is read only until the digest is found.
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
    """The configuration in a manifest, or in an index's manifest for the image's platform."""
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


def _load_digest(id: str) -> str:
    try:
        return (machine.state_directory() / "manifests" / id[7:]).read_text()
    except FileNotFoundError:
        return ""


def _save_digest(id: str, digest: str) -> None:
    folder = machine.state_directory() / "manifests"
    folder.mkdir(parents=True, exist_ok=True)
    files.replace(folder / id[7:], [digest.encode()])
