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
    """One run and its environments.

    Attributes:
        id: The run's id; ids sort by the start of the run.
        project: None if the tests use a URL and there is no configuration.
        default: The default template; None if there are several and none is the default.
        folder: Saves the environments' logs; None if no environment is launched.
        publishing: The publishers; None if no environment is launched.
        complaints: Problems of the run that belong to no environment.
        revision: Returns the commit of the tests.
        waits: Whether the client waits until all environments are gone. The end of a container
            kills all its processes, and many CI systems kill what a job has left.
        interrupted: Set when the run is interrupted; ends the wait for approvals.
        deciding: Whether the run is waiting for approvals.
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
        """Prepare a run. No environment is launched yet.

        Args:
            settings: The settings of the run.
            project: The project; None without a configuration.
            relay: Sends events to the clients.

        Raises:
            EphemeralError: The environment to attach to does not run.
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
        """Launch the early environments, and return the description of the run."""
        early, rolled_back = self.settings.early, records.rollbacks(self.project)
        self.broker.start_early({name: name in rolled_back for name in early})
        threading.Thread(target=self._prepare, name="ephemeral preparation", daemon=True).start()
        return self.describe()

    def describe(self) -> Opened:
        """The description of the run, for clients."""
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
        """Destroy what earlier runs have left, while tests are collected."""
        if self.project is None:
            return
        with suppress(EphemeralError):  # an unreadable store is reported where it is needed
            for problem in records.remove_earlier_leaks(self.project):
                self.relay.tell("warn", problem)

    def plan(self, needs: Mapping[Key, Sequence[str]], process: ClientProcess) -> None:
        """See ``Broker.plan``. Takes over the client's current variables, folders and hooks, too.

        Raises:
            EphemeralError: The store can't be read, or a template can't be launched.
        """
        adopt(process)
        if needs and self.project is not None:
            self.project.store.has("environments")
        self.relay.update(process.hooks)
        self.broker.plan(needs)

    def keep(self, id: str) -> None:
        """Keep an environment after the end of this run."""
        if isinstance(self.backend, LifecycleBackend):
            self.backend.to_keep.add(id)

    # -- the end -----------------------------------------------------------------------------

    def interrupt(self) -> None:
        """Start to end all environments, unless the run is waiting for approvals."""
        self.interrupted.set()
        if not self.deciding:
            self.broker.end_all()

    def finish(self) -> Finished:
        """End all environments; returns the outcome of the run.

        Unless ``waits`` is set, it returns once the platform has accepted all removals. This
        process then waits for their end.
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
        """Whether no environment is launching, being destroyed, or leaked."""
        return self._states().isdisjoint({"launching", "destroying", "leaked"})

    def is_awaited(self) -> bool:
        """Whether the client waits until this process has ended.

        It does if nothing is left to do, or if its own end would kill this process (``waits``). It
        does not wait for a leaked environment, which is reported.
        """
        return self.is_done() or (self.waits and "leaked" not in self._states())

    def _states(self) -> set[State]:
        return {entry.state for entry in self.broker.entries}

    def outcome(self) -> Finished:
        """The outcome of the run, apart from its tests."""
        summaries = [
            records.summary(entry, crashed=self._crashed(entry)) for entry in self.broker.entries
        ]
        failed = bool(self.complaints) or any(
            one.state == "leaked" or one.crashed for one in summaries
        )
        return Finished(summaries, tuple(self.complaints), failed)

    def _crashed(self, entry: Entry) -> bool:
        """Whether an environment stopped by itself unnoticed, and its template's health is fail."""
        if not entry.is_unnoticed() or entry.environment is None:
            return False
        templates = {} if self.project is None else self.project.config.templates
        template = templates.get(entry.environment.template)
        return template is None or template.health == "fail"

    def record(self, exit_status: int) -> Finished:
        """Write the report, if there is a file for it, and record the stage."""
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
        """Request manual approval, and wait. Without an approval, the run fails."""
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
        self._record_stage(0, "")  # before the decision, which needs it; there is no report yet
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
        """Record the outcome of the tests, once."""
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
    """A function that sends progress events to the first client, and to the log folder."""

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
        relay.tell("on_progress", event)

    return say
