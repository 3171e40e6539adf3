"""Tekton: results of the task, ``ephemeral-url`` and its like, where the task declares them.

https://tekton.dev/docs/pipelines/tasks/#emitting-results
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final

from pytest_ephemeral.publishers import events
from pytest_ephemeral.publishers.channels import Channel, HandoverChannel, Host, write

#: Where Tekton collects them; another folder by this variable.
FOLDER: Final = "/tekton/results"
VARIABLE: Final = "EPHEMERAL_TEKTON_RESULTS"

#: Bytes of all results of one task together; Tekton fails a task that leaves more.
LIMIT: Final = 4096
#: Of which some are Tekton's own, and some the task's.
OURS: Final = LIMIT // 2

_RESULTS: Final = (events.URL, events.URL_EXPIRED, events.ENVIRONMENT, events.IMAGE)


def results(values: Mapping[str, str]) -> dict[str, str]:
    """Each result's content by its name: no line end, and together no more than half of all."""
    found: dict[str, str] = {}
    left = OURS
    for variable in _RESULTS:
        value = values.get(variable, "")
        left -= len(value.encode())
        found[variable.lower().replace("_", "-")] = value if left >= 0 else ""
    return found


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """What there is of Tekton's here."""
    folder = Path(host.environ.get(VARIABLE, FOLDER))

    def put(values: dict[str, str]) -> None:
        for name, value in results(values).items():
            write(folder / name, value)

    yield "results", HandoverChannel(put)
