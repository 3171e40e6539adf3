"""What the owner of a run's environments holds, from the first test to the last trace."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import pytest

from pytest_ephemeral import config as configuration
from pytest_ephemeral import files, publishers
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.project import Project
from pytest_ephemeral.publishers import Publishing
from pytest_ephemeral.pytest_plugin import records
from pytest_ephemeral.pytest_plugin.broker import Broker
from pytest_ephemeral.pytest_plugin.dossier import Dossier
from pytest_ephemeral.pytest_plugin.entries import Entry
from pytest_ephemeral.pytest_plugin.keeper import RunKeeper, attach
from pytest_ephemeral.pytest_plugin.progress import Reporter
from pytest_ephemeral.pytest_plugin.settings import Settings
from pytest_ephemeral.tables import Template


class Run(msgspec.Struct):
    """One run of pytest that owns environments.

    Attributes:
        id: Sorts by when the run began.
        project: None when tests run against a plain URL, and there is no configuration.
        default: The template of tests that name none; None if there are several and no default.
        dossier: What is kept of environments; None where there is no project.
        publishing: Whoever is told of environments; None where none is brought up.
        complaints: What went wrong besides the environments themselves.
        approved: The ids of those that somebody said yes to.
        revision: Gives the commit that the tests were taken from.
    """

    id: str
    settings: Settings
    project: Project | None
    lifecycle: Lifecycle | None
    reporter: Reporter
    broker: Broker
    default: str | None
    dossier: Dossier | None = None
    publishing: Publishing | None = None
    complaints: list[str] = msgspec.field(default_factory=list)
    approved: set[str] = msgspec.field(default_factory=set)
    revision: Callable[[], str] = str
    _staged: bool = False
    _pid: int = msgspec.field(default_factory=os.getpid)
    _closed: bool = False

    @classmethod
    def open(cls, config: pytest.Config, settings: Settings) -> Run:
        """Read the configuration. Nothing is brought up before it is known what is needed.

        Raises:
            EphemeralError: It is wrong, or what was to be attached to does not run.
        """
        id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        reporter = Reporter(config)
        project = _project(config, settings)
        lifecycle = dossier = keeper = None
        if project is not None:
            dossier = Dossier(settings.logs, project)
            lifecycle = Lifecycle(
                project,
                hooks=config.hook,
                run=id,
                config=config,
                bake=settings.bake,  # type: ignore[arg-type]  # settings.read has checked it
                say=_both(reporter.say, dossier.note),
                before_removal=dossier.save,
            )
        default = None if project is None else _default(project, settings)
        if settings.attach is not None:
            broker = Broker(attach(settings.attach, lifecycle, id), alone=True)
            default = default or settings.template or "attached"
        else:
            assert lifecycle is not None
            assert dossier is not None
            keeper = RunKeeper(lifecycle, settings, reporter, dossier)
            broker = Broker(keeper, lasting=settings.approval is not None)
        made = cls(id, settings, project, lifecycle, reporter, broker, default, dossier)
        made.approved = set() if keeper is None else keeper.approved
        if project is not None:
            made.revision = records.revision(project)
        if project is not None and settings.attach is None:
            made.publishing = publishers.register(
                config.pluginmanager,
                project.config,
                os.environ,
                console=reporter.print,
                warn=reporter.warn,
            )
        return made

    @property
    def templates(self) -> list[str]:
        """The names there are; empty when anything goes."""
        return [] if self.project is None else list(self.project.config.templates)

    def close(self) -> None:
        """End all environments; only the first call does anything.

        An interrupt meanwhile is a person who will not wait: what is left ends with this process,
        by the hand of its guards.
        """
        if self._closed or os.getpid() != self._pid:  # a child that was forked owns nothing
            return
        self._closed = True
        try:
            self.broker.close()
        except KeyboardInterrupt:
            self.complaints.append(
                "interrupted again: the environments that are left are being destroyed in the "
                "background; `pytest-ephemeral reap` makes sure"
            )
            return
        clean = all(entry.fate is not None or entry.state == "failed" for entry in self.entries)
        if self.lifecycle is not None and clean and not any(map(leaked, self.entries)):
            self.lifecycle.close()
        if self.publishing is not None:
            self.publishing.close()
        if self.dossier is not None:
            self.dossier.close()
            for problem in self.dossier.problems:
                self.reporter.warn(problem)

    @property
    def entries(self) -> list[Entry]:
        """All environments that were asked for."""
        return self.broker.entries

    def failed(self) -> bool:
        """Whether something went wrong that no test has told."""
        return bool(self.complaints) or any(
            leaked(entry) or self.crashed(entry) for entry in self.entries
        )

    def crashed(self, entry: Entry) -> bool:
        """Whether an environment stopped by itself, no test noticed, and that is a failure."""
        if not unnoticed(entry) or entry.environment is None:
            return False
        template = self._template(entry.environment.template)
        return template is None or template.health == "fail"

    def record(self, exit_status: int) -> None:
        """Write down what became of the run, where that was asked for."""
        if os.getpid() != self._pid:
            return
        report = records.report(self.id, self.entries)
        try:
            if self.settings.report is not None:
                files.replace(self.settings.report, [report])
        except OSError as error:
            self.complaints.append(f"the report is not in {self.settings.report}: {error}")
        self._record_stage(exit_status, files.digest_of([report]))

    def decide(self) -> None:
        """Have a person decide on what was tested, and wait; anything but a yes is a complaint."""
        if self.settings.approval is None or self.lifecycle is None or os.getpid() != self._pid:
            return
        from pytest_ephemeral.pytest_plugin import deciding

        self._record_stage(0, "")  # what people decide by; the report is not written yet
        up = [
            entry.environment
            for entry in self.entries
            if entry.state == "up" and entry.used and entry.environment is not None
        ]
        approved, problems = deciding.decide(
            self.lifecycle, up, self.settings.approval, self._say_now
        )
        self.approved.update(approved)
        self.complaints += problems

    def _say_now(self, text: str) -> None:
        self.reporter.print(text)
        self.reporter.flush()

    def _record_stage(self, exit_status: int, report: str) -> None:
        """Record how the tests came out, once."""
        if self.project is None or self._staged:
            return
        self._staged = True
        try:
            records.record_stage(
                self.project,
                stage=self.settings.stage,
                run=self.id,
                entries=self.entries,
                exit_status=exit_status,
                report=report,
                revision=self.revision,
            )
        except (EphemeralError, OSError) as error:
            self.complaints.append(f"the outcome of this run is not recorded: {error}")

    def _template(self, name: str) -> Template | None:
        return None if self.project is None else self.project.config.templates.get(name)


def _both(
    first: Callable[[Progress], None], second: Callable[[Progress], None]
) -> Callable[[Progress], None]:
    def say(progress: Progress) -> None:
        first(progress)
        second(progress)

    return say


def leaked(entry: Entry) -> bool:
    """Whether something of an environment is left."""
    return entry.fate is not None and entry.fate.word == "leaked"


def unnoticed(entry: Entry) -> bool:
    """Whether an environment stopped by itself, and no test's report says so."""
    return entry.environment is not None and bool(entry.problem) and not entry.told


def _project(config: pytest.Config, settings: Settings) -> Project | None:
    """The project; none is needed for tests that run against a plain URL."""
    plain = "://" in (settings.attach or "")
    if plain and settings.config is None and configuration.find(config.rootpath) is None:
        return None
    return Project.open(settings.config, config.rootpath)


def _default(project: Project, settings: Settings) -> str | None:
    config = project.config
    if settings.template is None and config.default_template is None:
        return next(iter(config.templates)) if len(config.templates) == 1 else None
    return config.template(settings.template).name
