"""Pack a sealed tree into a file, to bring it to another machine."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import tarfile
import zlib
from pathlib import Path

from pytest_ephemeral.providers.local import tree


def pack(top: Path, file: Path) -> None:
    """Write a tree to a compressed tar; the same image gives the same bytes.

    Owners are left out, and the times of folders and links, too. The times of files are kept, in
    whole seconds: compiled Python files record the time of their source.
    """
    with (
        file.open("wb") as raw,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=raw, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for path, status in tree.walk(top):
            member = _member(top, path, status)
            if member.isreg():
                with (top / path).open("rb") as content:
                    tar.addfile(member, content)
            else:
                tar.addfile(member)


def _member(top: Path, path: str, status: os.stat_result) -> tarfile.TarInfo:
    member = tarfile.TarInfo(path)
    member.mode = stat.S_IMODE(status.st_mode) & tree.SEALED
    if stat.S_ISLNK(status.st_mode):
        member.type, member.linkname, member.mode = tarfile.SYMTYPE, tree.target(top, path), 0o777
    elif stat.S_ISDIR(status.st_mode):
        member.type = tarfile.DIRTYPE
    else:
        member.size, member.mtime = status.st_size, int(status.st_mtime)
    return member


def unpack(file: Path, top: Path, *, size: int) -> None:
    """Unpack an archive of ``pack`` into a new folder, and seal the tree.

    Every entry must be in a folder that came before it, as ``pack`` writes them. So nothing is
    written through a link, or outside of ``top``.

    Args:
        file: The archive.
        top: The folder to create.
        size: The total size of its files in bytes; no more is written.

    Raises:
        BadTreeError: It is not a valid archive of ``pack``.
    """
    left = size
    top.mkdir(mode=0o755)
    folders = {""}
    try:
        # tarfile's own gzip mode would accept a truncated file.
        with gzip.open(file) as packed, tarfile.open(fileobj=packed, mode="r|") as tar:
            for member in tar:
                parent, slash, name = member.name.rpartition("/")
                if parent not in folders or name in {"", ".", ".."} or (slash and not parent):
                    raise tree.BadTreeError(f"{member.name!r} is in no folder of the archive")
                if member.isdir():
                    folders.add(member.name)
                left -= member.size
                # A small archive may expand to gigabytes, by compression or by sparse files.
                if left < 0 or member.issparse():
                    raise tree.BadTreeError(f"it holds more than the {size} bytes of the image")
                _extract(tar, member, top / member.name)
    except (tarfile.TarError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise tree.BadTreeError(f"it can't be read: {error}") from error
    tree.seal(top)


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    if member.issym():
        target.symlink_to(member.linkname)
        return
    if member.isdir():
        target.mkdir()
        target.chmod(member.mode | stat.S_IRWXU)
        return
    content = tar.extractfile(member) if member.isreg() else None
    if content is None:
        raise tree.BadTreeError(
            f"{member.name!r} is neither a file nor a folder nor a symbolic link"
        )
    with content, target.open("xb") as file:
        shutil.copyfileobj(content, file)
    target.chmod(member.mode)
    os.utime(target, (member.mtime, member.mtime))
