"""TeamCity: progress messages while an environment is up, and parameters for later steps.

https://www.jetbrains.com/help/teamcity/service-messages.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from pytest_ephemeral.publishers.channels import Channel, HandoverChannel, Host, PrintChannel
from pytest_ephemeral.publishers.events import EnvironmentEvent

_ESCAPES: Final = {
    "|": "||",
    "'": "|'",
    "[": "|[",
    "]": "|]",
    "\n": "|n",
    "\r": "|r",
}


def progress(event: EnvironmentEvent) -> str:
    """The message that sets the build's progress text; empty unless the environment came up."""
    if event.outcome != "up":
        return ""
    return f"##teamcity[progressMessage '{_escape(event.sentence())}']"


def set_parameters(values: Mapping[str, str]) -> str:
    """The messages that set each value as an environment variable of later steps."""
    return "\n".join(
        f"##teamcity[setParameter name='env.{name}' value='{_escape(value)}']"
        for name, value in values.items()
    )


def channels(host: Host) -> Iterator[tuple[str, Channel]]:
    """TeamCity's channels."""
    console = host.console
    yield "progress", PrintChannel(console, progress)
    yield "parameters", HandoverChannel(lambda values: console(set_parameters(values)))


def _escape(text: str) -> str:
    return "".join(_ESCAPES.get(letter) or _ascii(letter) for letter in text)


def _ascii(letter: str) -> str:
    """Escape a character that is not ASCII, as ``|0x`` and four digits for each UTF-16 unit."""
    if letter.isascii():
        return letter
    units = letter.encode("utf-16-be", "surrogatepass").hex()
    return "".join(f"|0x{units[at : at + 4].upper()}" for at in range(0, len(units), 4))
