"""The checks of ``pytest-ephemeral doctor`` for the local provider."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pytest_ephemeral import machine
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.local import mounts, network, prefix
from pytest_ephemeral.providers.protocol import Check


def checks() -> Sequence[Check]:
    """Run all checks; they change nothing, and raise no errors."""
    return [_system(), _processes(), _addresses(), _read_only(), _trees(), _state()]


def _system() -> Check:
    return Check(
        name="system",
        ok=sys.platform == "linux",
        detail=sys.platform,
        hint="" if sys.platform == "linux" else "only Linux ends daemons that detach themselves",
    )


def _processes() -> Check:
    seen = machine.sees_processes()
    return Check(
        name="processes",
        ok=seen,
        detail="seen" if seen else "/proc is missing, or shows another PID namespace",
        hint="" if seen else "mount it with: mount -t proc proc /proc",
    )


def _addresses() -> Check:
    name = "loopback addresses"
    if not network.is_loopback_up():
        return Check(name, ok=False, detail="the interface is down", hint=network.LOOPBACK_CURE)
    own = network.has_own_addresses()
    return Check(
        name=name,
        ok=own,
        detail="one per environment" if own else "only 127.0.0.1",
        hint="" if own else "every environment gets a free port instead of the template's",
    )


def _read_only() -> Check:
    refused = mounts.refusal()
    return Check(
        name="read-only images",
        ok=not refused,
        detail=refused or "mounted read-only for each environment",
        hint=(
            "images are protected by permissions, and changes are detected. A daemon that clears "
            "its variables is not found if its guard is killed with SIGKILL"
            if refused
            else ""
        ),
    )


def _trees() -> Check:
    root = prefix.prefix_root()
    if not root.exists():
        return Check(name="images", ok=True, detail=f"{root} will be created")
    try:
        prefix.require_trusted_root()
    except EphemeralError as error:
        return Check(name="images", ok=False, detail=str(root), hint=str(error))
    return Check(name="images", ok=True, detail=str(root))


def _state() -> Check:
    folder = machine.state_directory()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    ok = os.access(there, os.W_OK | os.X_OK)
    hint = "" if ok else f"{there} can't be written: set {machine.STATE_VARIABLE} to another folder"
    return Check(name="state folder", ok=ok, detail=str(folder), hint=hint)
