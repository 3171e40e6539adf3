"""Jenkins: a properties file, for ``readProperties`` and EnvInject.

https://www.jenkins.io/doc/pipeline/steps/pipeline-utility-steps/#readproperties-read-properties-from-files-in-the-workspace-or-text
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from pytest_ephemeral.publishers.channels import Channel, HandoverChannel, Host, write
from pytest_ephemeral.publishers.text import properties

FILE: Final = "environments.properties"


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """Jenkins' channel: a properties file."""
    file = host.folder / FILE
    yield "properties", HandoverChannel(lambda values: write(file, properties(values)))
