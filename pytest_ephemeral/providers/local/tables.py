"""The configuration keys of the local provider's recipes and templates."""

from __future__ import annotations

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.providers.local import signals
from pytest_ephemeral.tables import Name, Recipe, Template


class LocalRecipe(Recipe, frozen=True, kw_only=True):
    """An installed folder, sealed. ``reference`` is a folder that was prepared elsewhere."""

    provider: str = "local"

    def check(self) -> None:
        """Check that it has ``install`` or ``reference``."""
        super().check()
        if self.reference is None and not self.install:
            raise ValueError("it needs install (the commands that fill $PREFIX), or reference")


class LocalTemplate(Template, frozen=True, kw_only=True):
    """Processes of this machine.

    Attributes:
        command: A shell command, or several by process name, started in this order. Commands have
            ``$PREFIX``, ``$HOST``, ``$PORT`` (and ``$PORT_ADMIN`` for a port named ``admin``),
            ``$URL``, and ``$STATE``, their working folder, which they may write to.
        free_port: Whether ``$PORT`` (and every ``$PORT_NAME``) is a free port instead of the
            template's. Use it for an application that can only listen on every address.
        user: The user that runs the processes, if root starts them: of all, or by process name.
            The processes of each user have a ``$STATE`` of their own.
        grace: How long processes may take to stop; without it, they are killed at once.
        stop_signal: The signal that stops its processes, if it has a ``grace``.
    """

    provider: str = "local"
    command: str | dict[Name, str]
    free_port: bool = False
    user: str | dict[Name, str] | None = None
    grace: Duration | None = None
    stop_signal: str = "SIGTERM"

    def check(self) -> None:
        """Check that it has a command, a valid signal, and users only of known processes."""
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
