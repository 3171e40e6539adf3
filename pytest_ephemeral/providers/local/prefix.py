"""The trees of local images: their folders, locks and seals.

Installed files have absolute paths, so a tree has the same path on every machine, derived from its
image's key; or it is mounted there for the environments that run from it. Beside the tree are its
lock, which every environment that runs from it shares, and its seal, which exists only if the tree
is complete and verified.
"""

from __future__ import annotations

import fcntl
import os
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from pytest_ephemeral import files, machine
from pytest_ephemeral.errors import (
    ConfigurationError,
    ImageInUseError,
    TamperedRecordError,
    UnavailableError,
)
from pytest_ephemeral.models import Image, Model, decode, encode
from pytest_ephemeral.providers.local import mounts, tree

#: Each user's own root of all trees; its parent is root's, and sticky, on every Unix.
ROOT: Final = "/var/tmp/pytest-ephemeral-{uid}"  # noqa: S108 - its owner and mode are checked
ROOT_VARIABLE: Final = "PYTEST_EPHEMERAL_PREFIX_ROOT"

#: Seconds that a bake waits for environments that are being destroyed.
_GRACE_SECONDS: Final = 2.0
_POLL_SECONDS: Final = 0.1
_SAY_AGAIN_SECONDS: Final = 10.0


class Seal(Model, frozen=True, kw_only=True):
    """The record of a sealed tree.

    Attributes:
        key: The image's key.
        digest: The tree's digest when it was sealed.
        fingerprint: A digest of all ``lstat`` results, from when the tree's digest was last known.
        size: The total size of its files in bytes.
        links: Its links to paths outside of it.
    """

    key: str
    digest: str
    fingerprint: str
    size: int
    links: list[str]


class Prefix(msgspec.Struct, frozen=True):
    """The tree of one image, and the files beside it."""

    tree: Path

    @classmethod
    def of(cls, key: str) -> Prefix:
        """The tree of an image's key."""
        return cls(prefix_root() / key.removeprefix("sha256:")[:24])

    @classmethod
    def at(cls, image: Image) -> Prefix:
        """The tree of an image that was baked here or elsewhere.

        If the image was baked for another root, its tree is still in this user's root, and is
        mounted at its own path for environments; see ``supervisor.tree_mounts``.

        Raises:
            UnavailableError: It was baked for another root, and nothing can be mounted here.
            TamperedRecordError: The record names a folder that is not a tree of its key.
        """
        prefix = cls.of(image.key)
        wanted = Path(image.reference)
        if wanted.name != prefix.tree.name or not wanted.is_absolute() or ".." in wanted.parts:
            raise TamperedRecordError(
                f"the record of the image {image.name!r} names {image.reference}, which is not "
                f"where {image.key[:19]}… is installed: it was damaged or forged. Find out who "
                "wrote it, and remove it"
            )
        if prefix.is_away(image) and (refused := mounts.refusal_at(image.reference)):
            raise UnavailableError(
                f"the image {image.name!r} is installed for {image.reference}, images are kept "
                f"in {prefix_root()} here, and none can be mounted at another path: {refused}. "
                f"Unset {ROOT_VARIABLE}, or set it to {Path(image.reference).parent}"
            )
        return prefix

    def is_away(self, image: Image) -> bool:
        """Whether the image's tree has to be mounted at another path for environments."""
        return str(self.tree) != image.reference

    @property
    def lock(self) -> Path:
        """The lock file: exclusive to bake, unpack or remove the tree; shared to run from it."""
        return self._beside("lock")

    @property
    def unpacking(self) -> Path:
        """The folder that a tree is unpacked into, before its digest is checked."""
        return self._beside("unpacking")

    def work(self, token: str) -> Path:
        """The folder of one command of a bake, which it may write to."""
        return self._beside(f"work-{token}")

    @property
    def manifest(self) -> Path:
        """The sealed tree's manifest, to find out which files were changed."""
        return self._beside("manifest")

    @property
    def _seal(self) -> Path:
        return self._beside("seal.json")

    @property
    def _unverified(self) -> Path:
        return self._beside("unverified.json")

    def _beside(self, ending: str) -> Path:
        return self.tree.with_name(f"{self.tree.name}.{ending}")

    def read_seal(self) -> Seal | None:
        """The seal, if the tree is complete and verified, and exists; or None."""
        seal = _read_seal(self._seal)
        return seal if seal is not None and self.tree.is_dir() else None

    def read_unverified_seal(self) -> Seal | None:
        """The seal of a complete tree that is not verified yet; or None."""
        return _read_seal(self._unverified)

    def write_seal(self, seal: Seal, *, verified: bool) -> None:
        """Write the seal of a verified tree, or of one that is to be verified."""
        files.replace(self._seal if verified else self._unverified, [encode(seal)])
        if verified:
            self._unverified.unlink(missing_ok=True)

    def refresh(self, seal: Seal) -> None:
        """Write the seal with a new fingerprint, unless the tree is being replaced."""
        descriptor = _open_lock(self)
        try:
            known = self.read_seal() if _try(descriptor, fcntl.LOCK_SH) else None
            if known is not None and known.digest == seal.digest:  # if not, it was baked again
                self.write_seal(seal, verified=True)
        finally:
            os.close(descriptor)

    def clear(self) -> None:
        """Remove the tree, and files that killed bakes have left. Its lock must be held."""
        for file in (self._seal, self._unverified, self.manifest):  # the seal goes first
            file.unlink(missing_ok=True)
        works = self.tree.parent.glob(f"{self.tree.name}.work-*")
        for folder in (self.tree, self.unpacking, *works):
            tree.remove(folder)


def _read_seal(file: Path) -> Seal | None:
    try:
        return decode(files.read_regular(file), Seal)
    except (OSError, msgspec.MsgspecError):
        return None  # a tree with an unreadable seal counts as not sealed


def prefix_root() -> Path:
    """The folder of all trees; its path depends only on the user's numeric id.

    ``$PYTEST_EPHEMERAL_PREFIX_ROOT`` sets another, such as one that several users' machines share.
    """
    return Path(os.environ.get(ROOT_VARIABLE) or ROOT.format(uid=os.geteuid())).absolute()


def require_trusted_root() -> Path:
    """The folder of all trees, created if it does not exist.

    Raises:
        ConfigurationError: It is not this user's, or other users can write to it.
    """
    folder = prefix_root()
    try:
        folder.mkdir(mode=0o755, parents=True, exist_ok=True)
        status = folder.lstat()
    except OSError as error:
        raise ConfigurationError(
            f"the folder of installed images, {folder}, can't be created: {error.strerror}. "
            f"Set {ROOT_VARIABLE} to another folder"
        ) from error
    sticky = status.st_uid == 0 and bool(status.st_mode & stat.S_ISVTX)
    own = status.st_uid == os.geteuid() and not status.st_mode & 0o022
    if not stat.S_ISDIR(status.st_mode) or not (own or sticky):
        raise ConfigurationError(
            f"the folder of installed images, {folder}, is not safe: it belongs to user "
            f"{status.st_uid} with mode {stat.filemode(status.st_mode)}, and must be yours and "
            "writable by nobody else (or root's, and sticky). Look at it with "
            f"`ls -ld {folder}`, and repair it, or set {ROOT_VARIABLE} to another"
        )
    return folder


def require_trusted(prefix: Prefix) -> None:
    """Check that a tree, if it exists, belongs to this user.

    Raises:
        ConfigurationError: It, or the root, belongs to another user.
    """
    require_trusted_root()
    try:
        status = prefix.tree.lstat()
    except FileNotFoundError:
        return
    if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
        raise ConfigurationError(
            f"{prefix.tree} was put there by user {status.st_uid}, not by you: it is not used. "
            f"Remove it, or set {ROOT_VARIABLE} to a folder of your own"
        )


def share(prefix: Prefix) -> int:
    """Take the shared lock of a tree, so that it is neither replaced nor removed.

    Returns:
        A descriptor; the lock is held until it and all its copies are closed.
    """
    require_trusted_root()
    descriptor = _open_lock(prefix)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


@contextmanager
def exclusive(
    prefix: Prefix, what: str, say: Callable[[str], None] = lambda _: None, *, wait: bool = True
) -> Iterator[Sequence[int]]:
    """Hold the exclusive lock of a tree on this machine.

    Args:
        prefix: The tree.
        what: What this process does meanwhile, for those who wait: ``baking shop``.
        say: Called with the process that holds the lock, while this one waits.
        wait: Whether to wait for another bake.

    Yields:
        The descriptors that hold the lock, for a process that continues this one's work.

    Raises:
        ImageInUseError: An environment runs from it (or, without ``wait``, it is being baked).
    """
    require_trusted(prefix)
    descriptor = _open_lock(prefix)
    try:
        _wait_alone(prefix, descriptor, say, wait=wait)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{machine.this_owner('')} ({what})".encode(), 0)
        yield [descriptor]
    finally:
        os.close(descriptor)


def _open_lock(prefix: Prefix) -> int:
    return os.open(prefix.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o644)


def _wait_alone(prefix: Prefix, descriptor: int, say: Callable[[str], None], *, wait: bool) -> None:
    started = reported = time.monotonic()
    shared_since: float | None = None
    while not _try(descriptor, fcntl.LOCK_EX):
        now = time.monotonic()
        if not _try(descriptor, fcntl.LOCK_SH):
            shared_since = None
        elif shared_since is None:
            shared_since = now
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        grace = _GRACE_SECONDS if wait else 0.0
        if shared_since is not None and now - shared_since >= grace:
            raise ImageInUseError(
                f"an environment runs from {prefix.tree}, so it can be neither replaced nor "
                "removed: see which with `pytest-ephemeral list`, and destroy it with "
                "`pytest-ephemeral down ENV`"
            )
        if shared_since is None:
            holder = prefix.lock.read_text(errors="replace")
            if not wait:
                raise ImageInUseError(f"{prefix.tree} is held by {holder}: try again later")
            if reported == started or now - reported > _SAY_AGAIN_SECONDS:
                say(f"waiting for {holder}, {now - started:.0f} s")
                reported = now
        time.sleep(_POLL_SECONDS)


def _try(descriptor: int, how: int) -> bool:
    try:
        fcntl.flock(descriptor, how | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
