"""Which machines frozen memory fits: QEMU itself does not check the processor or the board."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import msgspec

from pytest_ephemeral import files
from pytest_ephemeral.models import Image, to_builtins
from pytest_ephemeral.providers.qemu import memory, programs
from pytest_ephemeral.providers.qemu.machines import Start
from pytest_ephemeral.providers.qemu.tables import QemuTemplate

#: The keys of a template that do not affect a machine's memory.
_ELSEWHERE: Final = frozenset({"ttl", "health", "warm", "rollback"})

#: The version of the format of frozen memory; another version does not fit.
FORMAT: Final = "2"


def describe_fit(
    start: Start, image: Image, *, template: QemuTemplate | None, variables: Mapping[str, str]
) -> dict[str, str]:
    """All conditions that must be the same to resume frozen memory, by name.

    Args:
        start: How the machine is started.
        image: The image that it boots from.
        template: The template; None for memory from before the application's start.
        variables: The application's variables with secrets; the result has only their digest.
    """
    argv = msgspec.structs.replace(start, forwards={}, memory=None, fresh_disk=None).argv()
    found = {
        "format": FORMAT,
        "image": f"{image.name} {image.digest}",
        "qemu": programs.version(argv[0]),
        "machine": start.hardware.machine,
        "processor": _describe_processor(start.hardware.cpu),
        "arguments": json.dumps(argv),
        "disk": start.disk or "",
        "template": "",
    }
    if template is not None:
        known = {k: v for k, v in to_builtins(template).items() if k not in _ELSEWHERE}
        found["template"] = json.dumps(known, sort_keys=True)
        given = json.dumps(dict(variables), sort_keys=True).encode()
        found["variables"] = files.digest_of([given])
    return found


def describe_difference(fits: Mapping[str, str]) -> str:
    """Why no frozen memory fits, for people."""
    same_image = fits["image"].partition(" ")[0]
    nearest: list[str] | None = None
    for one in memory.every():
        record = one.read()
        if record is None or record.fits.get("image", "").partition(" ")[0] != same_image:
            continue
        if bool(record.fits.get("template")) != bool(fits["template"]):
            continue
        differing = [
            name
            for name in sorted(fits.keys() | record.fits.keys())
            if fits.get(name) != record.fits.get(name)
        ]
        if nearest is None or len(differing) < len(nearest):
            nearest = differing
    if nearest is None:
        return "no memory of it is frozen yet"
    return f"the memory that is frozen was made with another {' and '.join(nearest)}"


def _describe_processor(model: str) -> str:
    """The processor's model; for the host's own, its name and features."""
    if model.partition(",")[0] not in {"host", "max"}:
        return model
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return model
    known = {line.partition(":")[0].strip(): line.partition(":")[2].strip() for line in lines}
    flags = files.digest_of([known.get("flags", "").encode()])
    return f"{model} {known.get('model name', '')} {flags}"
