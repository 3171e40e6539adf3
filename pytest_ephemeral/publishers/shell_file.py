"""Woodpecker, Drone and Travis: a file of variables in the workspace, for later steps to source.

These CI servers have no other way to hand variables over.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pytest_ephemeral.publishers.channels import Channel, HandoverChannel, Host, write
from pytest_ephemeral.publishers.text import exports

FILE: Final = "environments.sh"


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """A file that a later step sources: ``. .ephemeral/environments.sh``."""
    file = host.folder / FILE
    yield "file", HandoverChannel(lambda values: write(file, exports(values)))
