"""The messages between the owner process and its clients: plain data, cheap to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pytest_ephemeral import errors

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment

Scope = Literal["session", "package", "module", "class", "function"]

#: The byte by which a client tells the owner, on its standard input, to end everything now.
INTERRUPT = b"!"

#: How long a connection may take to prove that it is a client, in seconds.
HANDSHAKE_TIMEOUT = 10.0


class Key(NamedTuple):
    """Which environment: fixtures of the same template, scope and instance share one.

    Attributes:
        template: The template's name.
        scope: How long it serves.
        instance: The node it serves (a module, a test); empty for the session. With a rollback,
            also the worker: none puts back what another one uses.
        rollback: Whether it is put back to its baseline between tests.
    """

    template: str
    scope: Scope
    instance: str
    rollback: bool = False


class Settings(NamedTuple):
    """The settings of one run. Paths are absolute.

    Attributes:
        template: The template of tests that name none; None for the configuration's default.
        bake: ``missing``, ``always`` or ``never``.
        keep: ``never``, ``failed`` or ``always``.
        attach: The id or the URL of what is used instead; None to bring environments up.
        stage: The name under which the outcome is recorded against the image.
        report: The file for the report.
        logs: The folder for every environment's logs.
        config: The configuration file; None to look for one from ``start`` upwards.
        approval: Seconds to wait for a person's decision; None to ask nobody.
        start: The folder where the search for the configuration begins.
        early: Templates whose session environment starts at once.
        ttl: Seconds that environments may live; None for their templates' own.
    """

    template: str | None = None
    bake: str = "missing"
    keep: str = "never"
    attach: str | None = None
    stage: str = "tests"
    report: Path | None = None
    logs: Path | None = None
    config: Path | None = None
    approval: float | None = None
    start: Path = Path()
    early: Sequence[str] = ()
    ttl: float | None = None


class ClientProcess(NamedTuple):
    """What the owner takes over from the process it works for.

    Attributes:
        environ: The environment variables.
        path: Where modules are found: a provider of the project's own, say.
        hooks: By plugin (the path of a conftest.py, or a name): the hooks it implements.
    """

    environ: Mapping[str, str]
    path: Sequence[str]
    hooks: Mapping[str, Sequence[str]] = {}


class Opened(NamedTuple):
    """A run that can begin.

    Attributes:
        run: Its id.
        templates: The names there are; empty when anything goes.
        default: The template of tests that name none; None if there are several and no default.
        config: The configuration file; None where none is needed.
        store: Where the run's ledger is; empty where there is none.
        rollbacks: When environments are put back, by their templates; see ``tables.Rollback``.
    """

    run: str
    templates: Sequence[str]
    default: str | None
    config: Path | None
    store: str = ""
    rollbacks: Mapping[str, str] = {}


class Look(NamedTuple):
    """How an environment is right before a test: why it can't be used, and its log's end."""

    problem: str
    mark: str


class Evidence(NamedTuple):
    """The evidence of an environment for a failed test."""

    environment: Environment
    died: str
    logs: str
    kept: bool


class ProgressEvent(NamedTuple):
    """A progress event for people who wait; see ``environments.progress``.

    Attributes:
        task: Which of several things that go on at once this belongs to.
        routine: One of so many alike that it is told with ``-v`` only.
    """

    subject: str
    phase: str
    text: str = ""
    seconds: float = 0.0
    live: bool = False
    task: int = 0
    routine: bool = False


class Summary(NamedTuple):
    """What became of one environment, for the end of a run.

    Attributes:
        id: The environment's; empty when it never came up.
        image: The name and the key of what it ran; empty when its template says so itself.
        state: See ``models.State``.
        detail: What remains of it, when something does.
        problem: Why it did not come up, or how it stopped by itself.
        unnoticed: It stopped by itself, and no test's report says so.
        crashed: That is a failure of the run.
        cost: Dollars it has cost at most; None when it costs nothing.
        expires: When it ends by itself, for people.
    """

    id: str
    template: str
    image: tuple[str, str]
    url: str
    state: str
    seconds: Mapping[str, float]
    detail: str = ""
    problem: str = ""
    unnoticed: bool = False
    crashed: bool = False
    cost: float | None = None
    expires: str = ""


class Finished(NamedTuple):
    """The end of a run, as far as pytest waits for it.

    Attributes:
        environments: All that were asked for, in that order.
        complaints: What went wrong besides.
        failed: Whether something went wrong that no test has told.
    """

    environments: Sequence[Summary]
    complaints: Sequence[str]
    failed: bool


class Failure(NamedTuple):
    """An error of ours on its way from one process to another."""

    kind: str
    message: str
    notes: Sequence[str]

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """An error, by the nearest of its classes that both sides know."""
        known = (kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
        notes = tuple(getattr(error, "__notes__", ()))
        return cls(next(known, "EphemeralError"), str(error), notes)

    def error(self) -> errors.EphemeralError:
        """The same error, to be raised here. Its notes are part of its message."""
        kind: Any = getattr(errors, self.kind, errors.EphemeralError)
        made: errors.EphemeralError = kind("\n".join([self.message, *self.notes]))
        return made
