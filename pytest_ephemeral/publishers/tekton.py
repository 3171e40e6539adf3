"""Tekton: results of the task, such as ``ephemeral-url``, if the task declares them.

https://tekton.dev/docs/pipelines/tasks/#emitting-results
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pytest_ephemeral.publishers import events
from pytest_ephemeral.publishers.channels import Channel, HandoverChannel, Host, write

#: The folder from which Tekton collects results, and the variable that sets another one.
FOLDER: Final = "/tekton/results"
VARIABLE: Final = "EPHEMERAL_TEKTON_RESULTS"

#: Bytes of all results of one task together; with more, the task fails.
LIMIT: Final = 4096
#: Our part of them: Tekton's own results and the task's need room, too.
OURS: Final = LIMIT // 2

_RESULTS: Final = (events.URL, events.URL_EXPIRED, events.ENVIRONMENT, events.IMAGE)


def results(values: Mapping[str, str]) -> dict[str, str]:
    """The content of each result, by its name.

    Contents have no line end, and at most ``OURS`` bytes together; further ones are empty.
    """
    found: dict[str, str] = {}
    left = OURS
    for variable in _RESULTS:
        value = values.get(variable, "")
        left -= len(value.encode())
        found[variable.lower().replace("_", "-")] = value if left >= 0 else ""
    return found


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """Tekton's channel: a file for each result."""
    folder = Path(host.environ.get(VARIABLE, FOLDER))

    def put(values: dict[str, str]) -> None:
        for name, value in results(values).items():
            write(folder / name, value)

    yield "results", HandoverChannel(put)
