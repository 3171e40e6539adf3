"""One run in the owner process: from the first environment to the end of cleanup."""

from __future__ import annotations

import os
import secrets
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import msgspec
import pluggy

from pytest_ephemeral import ci, files, hookspecs, machine, publishers
from pytest_ephemeral.broker import plain_url, records
from pytest_ephemeral.broker.backend import AttachedBackend, LifecycleBackend, attach
from pytest_ephemeral.broker.broker import Broker
from pytest_ephemeral.broker.entries import Entry
from pytest_ephemeral.broker.logs import LogFolder
from pytest_ephemeral.broker.opening import adopt, find_default
from pytest_ephemeral.broker.protocol import (
    ClientProcess,
    Finished,
    Key,
    Opened,
    ProgressEvent,
    Settings,
)
from pytest_ephemeral.broker.relay import Relay
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import State
from pytest_ephemeral.project import Project
from pytest_ephemeral.publishers import Publishing


class Run(msgspec.Struct):
    """One run that owns environments.

    Attributes:
        id: Sorts by when the run began.
        project: None when tests run against a plain URL, and there is no configuration.
        default: The template of tests that name none; None if there are several and no default.
        folder: What is kept of environments; None where there is no project.
        publishing: The publishers; None when no environment is brought up.
        complaints: What went wrong besides the environments themselves.
        revision: Gives the commit that the tests were taken from.
        waits: Whether nothing may be left to be removed after the client has ended: the end of
            a container ends all its processes, and many a CI kills what a job has left.
        interrupted: Set once nobody waits for tests, or for a decision, any more.
        deciding: Whether a decision is awaited now.
    """

    id: str
    settings: Settings
    relay: Relay
    project: Project | None
    lifecycle: Lifecycle | None
    backend: LifecycleBackend | AttachedBackend
    broker: Broker
    default: str | None
    folder: LogFolder | None = None
    publishing: Publishing | None = None
    complaints: list[str] = msgspec.field(default_factory=list)
    revision: Callable[[], str] = str
    waits: bool = False
    interrupted: threading.Event = msgspec.field(default_factory=threading.Event)
    deciding: bool = False
    _staged: bool = False
    _closed: bool = False
    _ending: threading.Lock = msgspec.field(default_factory=threading.Lock)

    @classmethod
    def open(cls, settings: Settings, project: Project | None, relay: Relay) -> Run:
        """Make ready for a project's tests. What they need is brought up once that is known.

        Raises:
            EphemeralError: What was to be attached to does not run.
        """
        id = f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(3)}"
        if project is None or settings.attach is not None:
            return cls._attached(id, settings, relay, project)
        manager = pluggy.PluginManager("pytest")
        manager.add_hookspecs(hookspecs)
        folder = LogFolder(settings.logs, project)
        lifecycle = Lifecycle(
            project,
            hooks=manager.hook,
            run=id,
            bake=settings.bake,  # type: ignore[arg-type]  # the options have checked it
            before_removal=folder.save,
        )
        backend = LifecycleBackend(lifecycle, settings, folder)
        lifecycle.say = _reporter(relay, backend, folder)
        broker = Broker(backend, lasting=settings.approval is not None)
        default = find_default(project, settings)
        made = cls(id, settings, relay, project, lifecycle, backend, broker, default, folder)
        made.waits = ci.is_ci(os.environ) or machine.is_contained()
        made.revision = records.revision(project)
        relay.connect(manager)
        made.publishing = publishers.register(
            manager,
            project.config,
            os.environ,
            console=lambda text: relay.tell("print", text),
            warn=lambda text: relay.tell("warn", text),
        )
        return made

    @classmethod
    def _attached(cls, id: str, settings: Settings, relay: Relay, project: Project | None) -> Run:
        lifecycle = None
        if project is not None:
            manager = pluggy.PluginManager("pytest")
            manager.add_hookspecs(hookspecs)
            lifecycle = Lifecycle(project, hooks=manager.hook, run=id)
        default = None if project is None else find_default(project, settings)
        template = None if project is None else project.config.templates.get(default or "")
        backend = attach(settings.attach or "", lifecycle, template, id)
        for problem in plain_url.find_missing(backend.environment, template):
            relay.tell("warn", problem)
        default = default or settings.template or "attached"
        broker = Broker(backend, alone=True)
        return cls(id, settings, relay, project, lifecycle, backend, broker, default)

    def begin(self) -> Opened:
        """Start what is wanted before any test is known, and say what there is."""
        early, rolled_back = self.settings.early, records.rollbacks(self.project)
        self.broker.start_early({name: name in rolled_back for name in early})
        threading.Thread(target=self._prepare, name="ephemeral preparation", daemon=True).start()
        return self.describe()

    def describe(self) -> Opened:
        """What there is."""
        project = self.project
        return Opened(
            run=self.id,
            templates=() if project is None else tuple(project.config.templates),
            default=self.default,
            config=None if project is None else project.config.path,
            store="" if project is None else project.store.url,
            rollbacks=records.rollbacks(self.project),
        )

    def _prepare(self) -> None:
        """While tests are collected, remove earlier leaks."""
        if self.project is None:
            return
        with suppress(EphemeralError):  # whoever needs the store reports that it can't be read
            for problem in records.remove_earlier_leaks(self.project):
                self.relay.tell("warn", problem)

    def plan(self, needs: Mapping[Key, Sequence[str]], process: ClientProcess) -> None:
        """See ``Broker.plan``; takes over what the client has set meanwhile.

        Raises:
            EphemeralError: The store can't be read, or a template can't be launched.
        """
        adopt(process)
        if needs and self.project is not None:
            self.project.store.has("environments")
        self.relay.update(process.hooks)
        self.broker.plan(needs)

    def keep(self, id: str) -> None:
        """Let an environment outlive this run."""
        if isinstance(self.backend, LifecycleBackend):
            self.backend.to_keep.add(id)

    # -- the end -----------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Begin to end everything. What awaits a person's decision stays up."""
        self.interrupted.set()
        if not self.deciding:
            self.broker.end_all()

    def finish(self) -> Finished:
        """End all environments, and return what became of them.

        What the platform has accepted to remove may be left to this process, but not where that
        ends with its client.
        """
        with self._ending:
            if not self._closed:
                self._closed = True
                self.broker.close(leave=not self.waits)
                self._close()
        self.relay.flush()
        self.relay.dismiss()
        return self.outcome()

    def _close(self) -> None:
        if self.publishing is not None:
            self.publishing.close()
        if self.folder is not None:
            self.folder.close()
            for problem in self.folder.problems:
                self.relay.tell("warn", problem)

    def is_done(self) -> bool:
        """Whether nothing is left to be removed."""
        return self._states().isdisjoint({"launching", "destroying", "leaked"})

    def is_awaited(self) -> bool:
        """Whether the client waits until this process has ended.

        It does where that is at once, and where its own end would end this process, too. What
        could not be removed is told, and waited for by nobody.
        """
        return self.is_done() or (self.waits and "leaked" not in self._states())

    def _states(self) -> set[State]:
        return {entry.state for entry in self.broker.entries}

    def outcome(self) -> Finished:
        """How the run came out, but for its tests."""
        summaries = [
            records.summary(entry, crashed=self._crashed(entry)) for entry in self.broker.entries
        ]
        failed = bool(self.complaints) or any(
            one.state == "leaked" or one.crashed for one in summaries
        )
        return Finished(summaries, tuple(self.complaints), failed)

    def _crashed(self, entry: Entry) -> bool:
        """Whether an environment stopped by itself, no test noticed, and that is a failure."""
        if not entry.is_unnoticed() or entry.environment is None:
            return False
        templates = {} if self.project is None else self.project.config.templates
        template = templates.get(entry.environment.template)
        return template is None or template.health == "fail"

    def record(self, exit_status: int) -> Finished:
        """Write down what became of the run, where that was asked for."""
        report = records.report(self.id, self.broker.entries)
        try:
            if self.settings.report is not None:
                files.replace(self.settings.report, [report])
        except OSError as error:
            self.complaints.append(
                f"the report could not be written to {self.settings.report}: {error}"
            )
        self._record_stage(exit_status, files.digest_of([report]))
        return self.outcome()

    def decide(self) -> None:
        """Request manual approval, and wait; anything but an approval is a complaint."""
        if self.settings.approval is None or not isinstance(self.backend, LifecycleBackend):
            return
        with self._ending:
            self.deciding = True
            try:
                self._decide(self.backend, self.settings.approval)
            finally:
                self.deciding = False

    def _decide(self, backend: LifecycleBackend, seconds: float) -> None:
        from pytest_ephemeral.broker import approval

        assert self.lifecycle is not None
        self.broker.look_at_all()
        if self.outcome().failed:
            self.complaints.append("no approval was requested: the run has failed")
            return
        self._record_stage(0, "")  # people decide by these; the report is not written yet
        up = [
            entry.environment
            for entry in self.broker.entries
            if entry.state == "ready" and entry.used and entry.environment is not None
        ]
        approved, problems = approval.decide(
            self.lifecycle,
            up,
            seconds,
            lambda text: self.relay.tell("print", text),
            self.interrupted,
        )
        backend.to_keep.update(approved)
        self.complaints += problems

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
                entries=self.broker.entries,
                exit_status=exit_status,
                report=report,
                revision=self.revision,
            )
        except (EphemeralError, OSError) as error:
            self.complaints.append(f"the outcome of this run could not be recorded: {error}")


def _reporter(
    relay: Relay, backend: LifecycleBackend, folder: LogFolder
) -> Callable[[Progress], None]:
    """Tells of progress: to people, and to the log folder."""

    def say(progress: Progress) -> None:
        folder.note(progress)
        task = threading.get_ident()
        event = ProgressEvent(
            progress.subject,
            progress.phase,
            progress.text,
            progress.seconds,
            progress.live,
            task,
            task in backend.routine,
        )
        relay.tell("hear", event)

    return say
