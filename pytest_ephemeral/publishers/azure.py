"""Azure Pipelines: variables by logging commands, and a summary of the run.

https://learn.microsoft.com/azure/devops/pipelines/scripts/logging-commands
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import msgspec

from pytest_ephemeral.publishers.channels import Channel, HandoverChannel, Host, write
from pytest_ephemeral.publishers.events import EnvironmentEvent
from pytest_ephemeral.publishers.text import markdown_line


def set_variables(values: Mapping[str, str]) -> str:
    """The commands that set each variable, for this job's steps and as an output for other jobs."""
    return "\n".join(
        f"##vso[task.setvariable variable={name}{more}]{_data(value)}"
        for name, value in values.items()
        for more in ("", ";isOutput=true")
    )


def upload_summary(file: Path) -> str:
    """The command that adds a Markdown file to the run's summary."""
    return f"##vso[task.uploadsummary]{_data(str(file))}"


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """Azure's channels."""
    console = host.console
    yield "variables", HandoverChannel(lambda values: console(set_variables(values)))
    yield "summary", _SummaryPages(host.folder, console)


class _SummaryPages(msgspec.Struct, frozen=True):
    """Uploads a page about each environment, once it has ended or is kept."""

    folder: Path
    console: Callable[[str], None]

    def tell(self, event: EnvironmentEvent) -> None:
        if event.outcome != "up":
            file = self.folder / f"{event.environment.id}.md"
            write(file, f"{markdown_line(event)}\n")
            self.console(upload_summary(file))


def _data(text: str) -> str:
    """Escape the text after a command's ``]``."""
    return text.replace("%", "%AZP25").replace("\r", "%0D").replace("\n", "%0A")
