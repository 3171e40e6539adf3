"""Key pairs, made by OpenSSL as the documentation says."""

from __future__ import annotations

from pathlib import Path

from support import processes


def make_keys(folder: Path, name: str = "signing") -> tuple[Path, Path]:
    """Make an Ed25519 key pair: the files of the private key and of the public one."""
    private, public = folder / f"{name}.pem", folder / f"{name}.pub"
    processes.run("openssl", "genpkey", "-algorithm", "ed25519", "-out", private)
    processes.run("openssl", "pkey", "-in", private, "-pubout", "-out", public)
    return private, public
