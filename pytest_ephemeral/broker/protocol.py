"""The messages between the owner process and its clients: plain data, cheap to import."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from pytest_ephemeral import errors

if TYPE_CHECKING:
    from pytest_ephemeral.models import Environment

Scope = Literal["session", "package", "module", "class", "function"]

#: The byte that a client writes to the owner's standard input, to end all environments now.
INTERRUPT = b"!"

#: The time-out in seconds for the key that a new client has to send.
HANDSHAKE_TIMEOUT = 10.0


class Key(NamedTuple):
    """The key of an environment. Fixtures with equal keys share one environment.

    Attributes:
        template: The template's name.
        scope: The scope of its fixture.
        instance: The id of the module, class or test; empty for the session. With a rollback, it
            includes the worker, because workers can't share an environment that is rolled back.
        rollback: Whether it is rolled back to its baseline between tests.
    """

    template: str
    scope: Scope
    instance: str
    rollback: bool = False


class Settings(NamedTuple):
    """The settings of one run. Paths are absolute.

    Attributes:
        template: The template of tests without a marker; None for the configuration's default.
        bake: ``missing``, ``always`` or ``never``.
        keep: ``never``, ``failed`` or ``always``.
        attach: The id or the URL of a running environment to use; None to launch environments.
        stage: The name of the stage, for the record of the outcome.
        report: The file for the report; None for no report.
        logs: The folder for the environments' logs; None to save no logs.
        config: The configuration file; None to search in ``start`` and its parent directories.
        approval: Seconds to wait for manual approval; None to request none.
        start: The folder where the search for the configuration begins.
        early: The names of templates whose session environment is launched at once.
        ttl: The environments' time to live in seconds; None for the setting of each template.
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
    """The state of a client's process that the owner process takes over.

    Attributes:
        environ: The environment variables.
        path: The folders of ``sys.path``, for modules of the project such as a provider of its own.
        hooks: The hooks that each plugin implements; the key is a conftest.py's path or a name.
    """

    environ: Mapping[str, str]
    path: Sequence[str]
    hooks: Mapping[str, Sequence[str]] = {}


class Opened(NamedTuple):
    """The description of an open run.

    Attributes:
        run: The run's id.
        templates: The names of all templates; empty if any name is allowed.
        default: The default template; None if there are several and none is the default.
        config: The configuration file; None if there is none.
        store: The store's URL; empty if there is none.
        rollbacks: The setting ``rollback`` of the templates that have it; see ``tables.Rollback``.
    """

    run: str
    templates: Sequence[str]
    default: str | None
    config: Path | None
    store: str = ""
    rollbacks: Mapping[str, str] = {}


class Look(NamedTuple):
    """The state of an environment right before a test.

    Attributes:
        problem: Why it can't be used; empty if it can.
        mark: The end of its log.
    """

    problem: str
    mark: str


class Evidence(NamedTuple):
    """The state of an environment after a failed test.

    Attributes:
        died: Why it stopped by itself; empty if it runs.
        logs: Its log during the test.
        kept: Whether it stays up after the run.
    """

    environment: Environment
    died: str
    logs: str
    kept: bool


class ProgressEvent(NamedTuple):
    """A progress event for the user; see ``environments.progress``.

    Attributes:
        task: The id of the thread, to tell parallel launches apart.
        routine: Whether to show it with ``-v`` only: environments of single tests are many.
    """

    subject: str
    phase: str
    text: str = ""
    seconds: float = 0.0
    live: bool = False
    task: int = 0
    routine: bool = False


class Summary(NamedTuple):
    """The end of one environment, for the summary of a run.

    Attributes:
        id: The environment's id; empty if it did not come up.
        image: The name and the key of its image; two empty strings if it has none.
        state: See ``models.State``.
        seconds: How long each phase took.
        detail: What is left of it; empty if nothing is.
        problem: Why it did not come up, or why it stopped by itself.
        unnoticed: Whether it stopped by itself, and no test's report has that.
        crashed: Whether that makes the run fail.
        cost: The upper limit of its cost in US dollars; None if it has no price.
        expires: The date and time of its expiry; empty if it has none.
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
    """The outcome of a run, apart from its tests.

    Attributes:
        environments: The environments whose launch was started, in that order.
        complaints: Problems of the run that belong to no environment.
        failed: Whether the run fails for a reason other than a test.
    """

    environments: Sequence[Summary] = ()
    complaints: Sequence[str] = ()
    failed: bool = False


class Failure(NamedTuple):
    """An ``EphemeralError`` as a message.

    Attributes:
        kind: The name of its class.
        message: Its text.
        notes: The notes that were added to it.
    """

    kind: str
    message: str
    notes: Sequence[str]

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """Convert an error. The kind is its nearest base class in ``pytest_ephemeral.errors``."""
        known = (kind.__name__ for kind in type(error).__mro__ if hasattr(errors, kind.__name__))
        notes = tuple(getattr(error, "__notes__", ()))
        return cls(next(known, "EphemeralError"), str(error), notes)

    def error(self) -> errors.EphemeralError:
        """The error to raise in the receiving process. Its notes are part of its message."""
        kind: Any = getattr(errors, self.kind, errors.EphemeralError)
        made: errors.EphemeralError = kind("\n".join([self.message, *self.notes]))
        return made
