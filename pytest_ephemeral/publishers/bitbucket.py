"""Bitbucket Pipelines: variables for later steps, if ``output-variables`` declares them.

https://support.atlassian.com/bitbucket-cloud/docs/variables-and-secrets/
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_ephemeral.publishers.channels import Channel, HandoverChannel, Host, append
from pytest_ephemeral.publishers.text import assignments


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """Bitbucket's channels, if the step has a file for variables."""
    if file := host.environ.get("BITBUCKET_PIPELINES_VARIABLES_PATH"):
        yield "variables", HandoverChannel(lambda values: append(Path(file), assignments(values)))
