"""The options of pytest's command line and configuration file."""

from __future__ import annotations

from typing import Final, NamedTuple

import pytest

GROUP: Final = "ephemeral"
BAKE_MODES: Final = ("missing", "always", "never")
KEEP_MODES: Final = ("never", "failed", "always")

#: A setting of pytest's configuration file only.
EARLY: Final = "ephemeral_early"


class Option(NamedTuple):
    """An option with a value.

    Attributes:
        name: The name without leading dashes.
        metavar: The placeholder for the value in ``--help``.
        help: The help text.
        default: The default value.
        choices: The valid values; empty for any.
        ini: Whether the configuration file may set it.
    """

    name: str
    metavar: str
    help: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    ini: bool = True

    @property
    def key(self) -> str:
        """The name in the configuration file, and of the attribute of ``config.option``."""
        return self.name.replace("-", "_")


OPTIONS: Final = (
    Option(
        "ephemeral-template",
        "NAME",
        "the template of tests that name none (by default the configuration's "
        "default-template, or the only template)",
    ),
    Option(
        "ephemeral-bake",
        "MODE",
        "bake images that are missing, always, or never (then a missing one is an error)",
        "missing",
        BAKE_MODES,
    ),
    Option(
        "ephemeral-keep",
        "WHEN",
        "leave environments up: never, those of failed tests, or always",
        "never",
        KEEP_MODES,
    ),
    Option(
        "ephemeral-attach",
        "REF",
        "use a running environment instead, by its id, or a plain URL (or NAME=URL,NAME=URL "
        "for several ports); it is never destroyed",
        ini=False,
    ),
    Option(
        "ephemeral-stage",
        "NAME",
        "the name under which the outcome is recorded against the image that was tested",
        "tests",
    ),
    Option("ephemeral-report", "FILE", "write one JSON document of all that was brought up"),
    Option(
        "ephemeral-timeline",
        "FILE",
        "draw the run to this file (.svg or .html): tests, bakes, launches, what waited for what",
    ),
    Option("ephemeral-logs", "DIR", "write every environment's logs there, one folder each"),
    Option(
        "ephemeral-approval",
        "SECONDS",
        "after the tests have passed, keep the tested environments up, show their links, and "
        "wait this long for manual approval; the run fails unless it is approved",
        ini=False,
    ),
    Option(
        "ephemeral-config",
        "FILE",
        "the ephemeral.toml to use (by default the nearest one)",
    ),
)


def add(parser: pytest.Parser) -> None:
    """Declare every option, and its setting in the configuration file."""
    group = parser.getgroup(GROUP, "ephemeral environments")
    group.addoption(
        "--ephemeral-env",
        action="store_true",
        default=False,
        help="bring up the environments that the selected tests need, and destroy them all "
        "afterwards",
    )
    for option in OPTIONS:
        text = option.help + (f" (default: {option.default})" if option.default else "")
        group.addoption(
            f"--{option.name}",
            metavar=option.metavar,
            default=None,
            choices=option.choices or None,
            help=text,
        )
        if option.ini:
            parser.addini(option.key, f"--{option.name}: {text}", default="")
    parser.addini(
        EARLY,
        "templates whose session environment starts with pytest, before collection; get it in "
        "pytest_sessionstart with pytest_ephemeral.early_environment(config)",
        type="args",
        default=[],
    )
