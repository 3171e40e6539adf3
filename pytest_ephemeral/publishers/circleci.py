"""CircleCI: variables for later steps of the job.

https://circleci.com/docs/guides/security/set-environment-variable/#using-bash_env-to-set-environment-variables
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pytest_ephemeral.publishers.channels import Channel, HandoverChannel, Host, append
from pytest_ephemeral.publishers.text import exports


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """CircleCI's channels, if the job has the file ``$BASH_ENV``."""
    if file := host.environ.get("BASH_ENV"):
        yield "BASH_ENV", HandoverChannel(lambda values: append(Path(file), exports(values)))
