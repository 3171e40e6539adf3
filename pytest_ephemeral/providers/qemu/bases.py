"""The base files of an image: local files or a download, identified by their digests."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Final

from pytest_ephemeral import files, machine
from pytest_ephemeral.errors import ConfigurationError, EphemeralError, UnavailableError
from pytest_ephemeral.providers.qemu import programs
from pytest_ephemeral.providers.qemu.content import Content
from pytest_ephemeral.providers.qemu.tables import Download, QemuRecipe

#: Seconds to wait for data from a server.
_SILENCE: Final = 60.0

#: The supported disk formats.
_FORMATS: Final = ("qcow2", "raw")


def content_of(recipe: QemuRecipe, root: Path) -> Content:
    """The files of a recipe's base or reference; a download is fetched.

    Raises:
        ConfigurationError: A file is missing, or is not a usable disk.
        UnavailableError: The download failed.
    """
    return Content(
        disk=(disk := _disk_of(recipe, root)),
        kernel=_file(recipe, root, "kernel", recipe.kernel),
        initrd=_file(recipe, root, "initrd", recipe.initrd),
        append=recipe.append if recipe.kernel else "",
        format=_format_of(recipe, disk),
    )


def inputs_of(recipe: QemuRecipe, root: Path) -> dict[str, str]:
    """The digests of these files, by the recipe's keys; nothing is downloaded."""
    named = {"kernel": recipe.kernel, "initrd": recipe.initrd, "reference": recipe.reference}
    if isinstance(recipe.base, str):
        named["base"] = recipe.base
    found = {
        key: digest_of(file)
        for key, name in named.items()
        if (file := _file(recipe, root, key, name)) is not None
    }
    if isinstance(recipe.base, Download):
        found["base"] = f"sha256:{recipe.base.sha256}"
    return found


def digest_of(file: Path) -> str:
    """The digest of a file; it is cached, as disks are large, until the file changes."""
    status = file.stat()
    key = f"{file} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns} {status.st_ino}"
    memory = machine.state_directory() / "disk-digests.json"
    try:
        known = json.loads(files.read_regular(memory))
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict) or not isinstance(known.get(key), str):
        digest = files.digest_of(files.chunks(file))
        known = {k: v for k, v in dict(known).items() if not k.startswith(f"{file} ")}
        known[key] = digest
        files.replace(memory, [json.dumps(known).encode()])
    return str(known[key])


def _disk_of(recipe: QemuRecipe, root: Path) -> Path:
    if isinstance(recipe.base, Download):
        return _fetch(recipe.base)
    key = "reference" if recipe.base is None else "base"
    found = _file(recipe, root, key, recipe.base or recipe.reference)
    assert found is not None
    return found


def _file(recipe: QemuRecipe, root: Path, key: str, name: str | None) -> Path | None:
    if name is None:
        return None
    path = (root / name).absolute()
    if not path.is_file():
        raise ConfigurationError(
            f"images.{recipe.name}.{key}: {path} does not exist, or is not a file"
        )
    return path


def _format_of(recipe: QemuRecipe, disk: Path) -> str:
    """The format of a disk, which must not depend on another file.

    A disk image may name any file of this machine as its backing file, and so show that file to
    the guest.
    """
    try:
        found = programs.describe_disk(disk)
    except EphemeralError as error:
        raise ConfigurationError(f"images.{recipe.name}: {disk} can't be read: {error}") from error
    if found["format"] not in _FORMATS:
        raise ConfigurationError(
            f"images.{recipe.name}: {disk} is {found['format']}: convert it with "
            f"`qemu-img convert -O qcow2 {disk} {disk.with_suffix('.qcow2')}`"
        )
    data = found.get("format-specific", {}).get("data", {})
    if other := found.get("backing-filename") or data.get("data-file"):
        raise ConfigurationError(
            f"images.{recipe.name}: {disk} depends on another file, {other}: combine them with "
            f"`qemu-img convert -O qcow2 {disk} whole.qcow2`"
        )
    return str(found["format"])


def _fetch(download: Download) -> Path:
    """The checked file of a download; it is fetched once for all images."""
    file = machine.state_directory() / "downloads" / download.sha256
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with files.hold_lock(file.with_suffix(".lock")):
        if not file.exists():
            _download(download, file)
    return file


def _download(download: Download, file: Path) -> None:
    import requests

    part = file.with_suffix(".part")
    digest = hashlib.sha256()
    try:
        with (
            requests.get(download.url, stream=True, timeout=_SILENCE) as answer,
            part.open("wb") as writing,
        ):
            answer.raise_for_status()
            for chunk in answer.iter_content(1 << 20):
                digest.update(chunk)
                writing.write(chunk)
        if digest.hexdigest() != download.sha256:
            raise ConfigurationError(
                f"{download.url} is sha256 {digest.hexdigest()}, and not {download.sha256}: it "
                "was replaced on the server, or the recipe names another digest. Compare with "
                "the digest that its publisher signs, and correct sha256"
            )
        part.rename(file)
    except requests.RequestException as error:
        raise UnavailableError(f"{download.url} can't be fetched: {error}") from error
    finally:
        part.unlink(missing_ok=True)
