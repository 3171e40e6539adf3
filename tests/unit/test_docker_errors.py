"""Remedies for the errors of container engines."""

from __future__ import annotations

import pytest

from pytest_ephemeral.providers.docker.errors import find_remedy, shorten

#: The error of Podman 5.8 for ``init = true``.
PODMAN = 'lookup init binary: exec: "catatonit": executable file not found in $PATH'


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (PODMAN, "install catatonit"),
        ('exec: "none": executable file not found in $PATH', "see `command`"),
        ('exec: "/none": stat /none: no such file or directory: unknown', "lacks what its command"),
        ("exec /app: no such file or directory", "lacks what its command"),
        ("crun: executable file `/none` not found: No such file or directory: OCI", "lacks what"),
        ("env file /x/.env not found: stat /x/.env: no such file or directory", ""),
        ("open /x/common.yaml: no such file or directory", ""),
        ('adding custom device "/dev/x": no such file or directory', ""),
        ('chdir to cwd ("/x") set in config.json failed: no such file or directory', ""),
        ("something else", ""),
    ],
)
def test_find_remedy_matches_the_missing_program(said: str, remedy: str) -> None:
    """One program is missing on the engine's machine, others in the image."""
    found = find_remedy(said)
    assert remedy in found
    assert bool(found) == bool(remedy)


SHIM = (
    "failed to create shim task: OCI runtime create failed: runc create failed: "
    "unable to start container process: "
)
OLD = "OCI runtime create failed: container_linux.go:380: starting container process caused: "


@pytest.mark.parametrize("before", [SHIM, OLD])
def test_shorten_removes_runtime_prefixes(before: str) -> None:
    """The prefixes of the runtime hide the actual error."""
    said = 'exec: "/none": stat /none: no such file or directory'
    assert shorten(f"Cannot start: {before}{said}: unknown") == f"Cannot start: {said}"
