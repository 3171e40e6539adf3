"""The one place that launches environments and destroys them.

The order of things is what makes it safe: the record before the act, every resource labelled in
the call that creates it, and whatever goes wrong on the way up is taken down before anyone is
told.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import msgspec

from pytest_ephemeral import providers
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.environments import expiry, progress, rollback, standby
from pytest_ephemeral.environments.freezing import freeze_if_asked
from pytest_ephemeral.environments.orders import (
    image_names,
    make_order,
    modify,
    register_environment,
)
from pytest_ephemeral.environments.progress import PhaseTimer, Progress, Timed
from pytest_ephemeral.environments.removal import remove
from pytest_ephemeral.environments.rollback import Baselines
from pytest_ephemeral.environments.run_images import RunImages
from pytest_ephemeral.environments.seeding import run_step
from pytest_ephemeral.errors import EphemeralError, describe_error
from pytest_ephemeral.models import Environment, Image, Outcome
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.abilities import SupportsPreflight
from pytest_ephemeral.providers.protocol import SEEDED, Order, Provider, Status
from pytest_ephemeral.tables import BakeMode, Rollback, Template


def _ignore(_: object) -> None:
    """The default: progress is not reported, and nothing is done before a removal."""


class Lifecycle(msgspec.Struct):
    """Launches and destroys the environments of one run.

    Attributes:
        project: Where records, artifacts and images are.
        hooks: A pluggy hook relay: pytest's own, or the command line's.
        run: The id of this run.
        config: What the hooks get as ``config``.
        bake: Whether images that are missing are baked.
        say: Told what is going on, from whichever thread it goes on in.
        before_removal: Given what did not come up, as long as something of it is there.
        cancelled: Once set, nothing that is still coming up is waited for.
    """

    project: Project
    hooks: Any
    run: str
    config: Any = None
    bake: BakeMode = "missing"
    say: Callable[[Progress], None] = _ignore
    before_removal: Callable[[Environment], None] = _ignore
    cancelled: threading.Event = msgspec.field(default_factory=threading.Event)
    _hook_lock: threading.RLock = msgspec.field(default_factory=threading.RLock)
    _images: RunImages = msgspec.field(default_factory=RunImages)
    _ends: dict[str, Outcome] = msgspec.field(default_factory=dict)
    _baselines: Baselines = msgspec.field(default_factory=Baselines)

    def check(self, template: str, *, rolled_back: bool = False) -> None:
        """Check before a launch that a template's provider has what it needs.

        Args:
            template: Its name.
            rolled_back: Whether its environments are to be put back to their baseline.

        Raises:
            UnavailableError: It is not.
            ConfigurationError: It would cost more than it may, or can't be right.
        """
        wanted = self.project.config.template(template)
        if rolled_back:
            rollback.check(wanted, self.project.config.root)
        provider = providers.load(wanted.provider)
        if isinstance(provider, SupportsPreflight):
            modify = self.hooks.pytest_ephemeral_modify_template
            self._preflight(wanted, provider, None if modify.get_hookimpls() else wanted.ttl)

    def _preflight(
        self, template: Template, provider: SupportsPreflight, lifetime: float | None
    ) -> None:
        config = self.project.config
        recipes = [config.recipe(name) for name in template.images()]
        provider.preflight(template, recipes, config.root, lifetime)

    # -- up ------------------------------------------------------------------------------

    def bring_up(
        self, template: Template, *, ttl: Duration | None = None, rolled_back: bool = False
    ) -> Timed:
        """Launch an environment of a template, and return when it is ready and seeded.

        Args:
            template: Of the configuration.
            ttl: How long it may live, instead of the template's own word.
            rolled_back: Whether it is to be put back to its baseline, which is taken then.

        Raises:
            EphemeralError: It could not be. Nothing of it is left, or the message says what.
        """
        with self._hook_lock:
            template = modify(template, self.hooks, self.config)
        when: Rollback = template.rollback or "each"
        template = msgspec.structs.replace(template, rollback=when if rolled_back else None)
        provider = providers.load(template.provider)
        if isinstance(provider, SupportsPreflight):
            self._preflight(template, provider, ttl or template.ttl)
        timer = PhaseTimer(self.say)
        with timer.phase(template.name, "bake"):
            images = {name: self.image(name) for name in image_names(template)}
        lifetime = ttl or template.ttl
        environment = register_environment(self.project, self.run, template, images, lifetime)
        try:
            order = make_order(
                self.project,
                environment,
                template,
                images,
                lambda changed: self._record(changed, "handle"),
            )
            return self._launch(order, provider, timer)
        except BaseException as error:
            self._abandon(environment, error)
            raise

    def _launch(self, order: Order, provider: Provider, timer: PhaseTimer) -> Timed:
        template, id = order.template, order.environment.id
        order = progress.connect(order, self.say, self.cancelled)
        with timer.phase(id, "launch"):
            environment = standby.launch(self.project.ledger, order, provider)
        with (
            self._recording(environment, "url", "endpoints", "handle"),
            timer.phase(id, "ready"),
        ):
            self._wait(environment, provider, order)
        if template.seed is not None and SEEDED not in environment.handle:
            with timer.phase(id, "seed"):
                run_step("seed", environment, provider, template.seed, order.secrets)
        environment = freeze_if_asked(order, environment, provider, timer)
        if template.rollback is not None:
            environment = self._take_baseline(order, environment, provider, timer)
        environment = msgspec.structs.replace(environment, state="ready")
        self._record(environment, "state", "handle")
        self.say(Progress(id, "up", environment.url, timer.total()))
        self._emit("environment_ready", environment=environment)
        if environment.url:
            self.publish(environment, environment.url)
        return Timed(environment, timer.seconds)

    def _take_baseline(
        self, order: Order, environment: Environment, provider: Provider, timer: PhaseTimer
    ) -> Environment:
        with timer.phase(environment.id, "baseline"):
            order = msgspec.structs.replace(order, environment=environment)
            environment = rollback.take_baseline(order, provider)
            self._record(environment, "handle")
            self._wait(environment, provider, order)
        self._baselines.add(order, environment)
        return environment

    def roll_back(self, environment: Environment) -> Timed:
        """Put an environment back to its baseline, and return when it is ready again.

        Raises:
            EphemeralError: It could not be, and can't be used any more.
        """
        timer, provider = PhaseTimer(self.say), providers.load(environment.provider)
        with (
            self._baselines.use(environment.id) as order,
            timer.phase(environment.id, "rollback"),
            rollback.explain_expiry(order.environment, provider),
        ):
            changed = rollback.roll_back(order, provider)
            self._baselines.add(order, changed)
            if changed != order.environment:
                self._record(changed, "handle")
            self._wait(changed, provider, order)
            rollback.seed_again(order, changed, provider)
        self.say(Progress(environment.id, "restored", seconds=timer.total()))
        return Timed(msgspec.structs.replace(changed, state="ready"), timer.seconds)

    def image(self, name: str) -> Image:
        """The baked image of that name, baked or fetched first where that is allowed.

        Raises:
            EphemeralError: It can't be had.
        """
        return self._images.obtain(self.project, name, self.bake, self.say)

    def _wait(self, environment: Environment, provider: Provider, order: Order) -> None:
        progress.wait_until_ready(
            environment, provider, order, cancelled=self.cancelled, say=self.say
        )

    def _abandon(self, environment: Environment, error: BaseException) -> None:
        """Destroy an incomplete environment. If that fails, say so in the original error."""
        try:
            self.before_removal(environment)
        finally:
            try:
                remove(self.project.ledger, environment)
            except EphemeralError as leak:
                error.add_note(str(leak))

    # -- and then --------------------------------------------------------------------------

    def status(self, environment: Environment) -> Status:
        """Its state as its provider reports it. An expired one says so."""
        status = providers.load(environment.provider).status(environment)
        expires_at = environment.expires_at
        if status.state == "gone" and expires_at is not None and expires_at <= datetime.now(UTC):
            lived = Duration((expires_at - environment.created_at).total_seconds())
            return Status("gone", f"its ttl ({lived}) ran out: set a longer `ttl` in its template")
        return status

    def extend(self, environment: Environment, expires_at: datetime) -> Environment:
        """Change an environment's expiry, on all its resources and in its record."""
        return expiry.extend(self.project.ledger, environment, expires_at)

    def keep(self, environment: Environment) -> Environment:
        """Let an environment outlive this run; its expiry holds."""
        kept = expiry.keep(self.project.ledger, environment)
        self.say(Progress(environment.id, "kept", environment.url))
        self._emit("environment_stopped", environment=kept, outcome="kept")
        return kept

    def publish(self, environment: Environment, url: str) -> None:
        """Publish an environment's URL."""
        self._emit("publish_url", environment=environment, url=url)

    def keep_machine(self, environment: Environment) -> bool:
        """See ``standby.keep_machine``; the hooks are told that the environment ends."""
        with self._baselines.give_up(environment.id):
            kept = standby.keep_machine(self.project.ledger, environment, self.say)
        if kept:
            self._emit("environment_stopped", environment=environment, outcome="destroying")
        return kept

    def destroy(
        self,
        environment: Environment,
        *,
        outcome: Outcome = "destroyed",
        accepted: Callable[[], None] = lambda: None,
        last: bool = True,
    ) -> float:
        """Remove all of an environment, and its record.

        Args:
            environment: Up, half-made, or gone already.
            outcome: What the hooks are told when it worked.
            accepted: Called once the platform has agreed to remove it.
            last: Whether the hooks are told that it is leaked when this fails.

        Returns:
            Seconds it took.

        Raises:
            DestroyError: Something remains, and so does the record: `pytest-ephemeral reap`.
        """
        started = time.monotonic()
        self.say(Progress(environment.id, "destroy"))
        try:
            with self._baselines.give_up(environment.id):
                remove(self.project.ledger, environment, accepted)
        except EphemeralError:
            if last:
                self._emit_end(environment, "leaked")
            raise
        seconds = time.monotonic() - started
        if environment.id not in self._ends:
            self.say(Progress(environment.id, "destroyed", seconds=seconds))
        self._emit_end(environment, outcome)
        return seconds

    def leave(self, environment: Environment) -> None:
        """Tell the hooks that a removal continues in the background.

        What the engine of a provider takes its time for (an address, a bridge) is nothing that
        people should wait for. Its record stays until it is done, and longer if it fails.
        """
        self._emit_end(environment, "destroying")

    def _emit_end(self, environment: Environment, outcome: Outcome) -> None:
        """Tell the hooks how it ended; of a removal that was said to go on, only that it failed."""
        with self._hook_lock:
            told = self._ends.get(environment.id)
            if told and "destroying" in {told, outcome} and outcome != "leaked":
                return
            self._ends[environment.id] = outcome
            self._emit("environment_stopped", environment=environment, outcome=outcome)

    # -- what both need ----------------------------------------------------------------------

    def _record(self, environment: Environment, *names: str) -> None:
        self.project.ledger.change(
            environment.id, **{name: getattr(environment, name) for name in names}
        )

    @contextmanager
    def _recording(self, environment: Environment, *names: str) -> Iterator[None]:
        """Write the record while something else is waited for: writing to disk takes time."""
        with ThreadPoolExecutor(1) as pool:
            recorded = pool.submit(self._record, environment, *names)
            yield
            recorded.result()

    def _emit(self, event: str, **arguments: Any) -> None:
        """Call the hooks, one event at a time. An error in one of them is only reported."""
        hook = getattr(self.hooks, f"pytest_ephemeral_{event}")
        try:
            with self._hook_lock:
                hook(**arguments, config=self.config)
        except Exception as error:  # noqa: BLE001 - anyone's code
            text = f"pytest_ephemeral_{event} failed: {describe_error(error)}"
            self.say(Progress(arguments["environment"].id, "warning", text))
