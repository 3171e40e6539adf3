"""Bitbucket Pipelines: variables of later steps, those that ``output-variables`` declares.

https://support.atlassian.com/bitbucket-cloud/docs/variables-and-secrets/
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_ephemeral.publishers.channels import Channel, HandoverChannel, Host, append
from pytest_ephemeral.publishers.text import assignments


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """What there is of Bitbucket's here."""
    if file := host.environ.get("BITBUCKET_PIPELINES_VARIABLES_PATH"):
        yield "variables", HandoverChannel(lambda values: append(Path(file), assignments(values)))
