"""The keys that recipes and templates of the local provider have."""

from __future__ import annotations

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.providers.local import signals
from pytest_ephemeral.tables import Name, Recipe, Template


class LocalRecipe(Recipe, frozen=True, kw_only=True):
    """An installed tree, sealed. ``reference`` is a folder that was prepared elsewhere."""

    provider: str = "local"

    def check(self) -> None:
        """Something has to be in the image."""
        super().check()
        if self.reference is None and not self.install:
            raise ValueError("it needs install (what puts the artifact into $PREFIX), or reference")


class LocalTemplate(Template, frozen=True, kw_only=True):
    """Processes of this machine.

    Attributes:
        command: A shell command, or several by process name, started in this order. They see
            ``$PREFIX``, ``$HOST``, ``$PORT`` (and ``$PORT_ADMIN`` for a port named ``admin``),
            ``$URL`` and ``$STATE``, the folder of what they write, which is also where they
            start.
        free_port: Whether ``$PORT`` (and every ``$PORT_NAME``) is a free port instead of the
            template's, one that no other environment of this machine has: for an application
            that can only listen on every address.
        user: The user whom processes run as, where root starts them: all of them, or some by
            name. What that user writes is in a ``$STATE`` of their own.
        grace: How long it may take to stop when it is asked to; it is killed at once if not given.
        stop_signal: What asks its processes to stop, where there is a ``grace``.
    """

    provider: str = "local"
    command: str | dict[Name, str]
    free_port: bool = False
    user: str | dict[Name, str] | None = None
    grace: Duration | None = None
    stop_signal: str = "SIGTERM"

    def check(self) -> None:
        """Something has to be started."""
        if not all(command.strip() for command in self.processes().values()) or not self.command:
            raise ValueError("its command is empty: name the program to start")
        signals.number_of(self.stop_signal)
        if isinstance(self.user, dict):
            for name in self.user.keys() - self.processes().keys():
                raise ValueError(f"user: there is no process {name!r} in its command")

    def processes(self) -> dict[str, str]:
        """Its commands by process name, in starting order."""
        if isinstance(self.command, dict):
            return dict(self.command)
        return {"app": self.command}
