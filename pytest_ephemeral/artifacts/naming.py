"""Names and versions of built files, and the files that match a glob."""

from __future__ import annotations

import glob
import re
from pathlib import Path

from pytest_ephemeral.errors import ArtifactError

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]*")


def name_and_version(file: Path, digest: str) -> tuple[str, str]:
    """Derive a file's artifact name and version.

    Args:
        file: A wheel (``shop-1.4.2-py3-none-any.whl``), an sdist (``shop-1.4.2.tar.gz``), or
            any other file: its name is the stem, its version the first digits of its digest.
        digest: The digest of the file's content, ``sha256:…``.

    Returns:
        The name, normalised, and the version.
    """
    wheel = re.fullmatch(r"([^-]+)-([^-]+)(-[^-]+){3,4}\.whl", file.name)
    sdist = re.fullmatch(r"(.+?)-(\d[^-]*)\.(tar\.(gz|bz2|xz|zst)|tgz|zip)", file.name)
    if match := wheel or sdist:
        return normalize_name(match[1]), match[2]
    stem = re.sub(r"(\.tar)?\.[^.]+$", "", file.name)
    return normalize_name(stem), digest.removeprefix("sha256:")[:12]


def normalize_name(name: str) -> str:
    """Normalise a project's name (PEP 503)."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "artifact"


def check_label(text: str) -> str:
    """Check a name or version given by the user, and return it.

    Raises:
        ArtifactError: It is not valid.
    """
    if not _LABEL.fullmatch(text):
        raise ArtifactError(
            f"{text!r} is not a valid artifact name or version: use letters, digits and . _ + "
            "! -, and begin with a letter or a digit"
        )
    return text


def find_files(pattern: str, root: Path) -> list[Path]:
    """The files that match a glob, sorted; ``**`` matches any number of folders.

    Args:
        pattern: The glob; if relative, it is relative to ``root``.
        root: A folder.
    """
    found = (root / match for match in glob.glob(pattern, root_dir=root, recursive=True))  # noqa: PTH207 - Path.glob takes no absolute pattern
    return sorted(match for match in found if match.is_file())
