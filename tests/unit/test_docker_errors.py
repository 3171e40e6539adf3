"""What is said to help against what engines complain of."""

from __future__ import annotations

import pytest

from pytest_ephemeral.providers.docker.errors import find_remedy

#: Podman 5.8, asked for ``init = true``.
PODMAN = 'lookup init binary: exec: "catatonit": executable file not found in $PATH'


@pytest.mark.parametrize(
    ("said", "remedy"),
    [
        (PODMAN, "install catatonit"),
        ('exec: "none": executable file not found in $PATH', "see `command`"),
        ("something else", ""),
    ],
)
def test_the_remedy_is_for_what_is_missing(said: str, remedy: str) -> None:
    """The engine's machine lacks one program, the image another."""
    found = find_remedy(said)
    assert remedy in found
    assert bool(found) == bool(remedy)
