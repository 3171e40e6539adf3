"""Launch and destroy environments. All other code does that through this module.

Three rules prevent leaks. A record is written before a resource is created. Each resource gets its
labels in the call that creates it. If a launch fails, its resources are destroyed before the error
is reported.
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
    """The default for ``say`` and ``before_removal``."""


class Lifecycle(msgspec.Struct):
    """Launches and destroys the environments of one run.

    Attributes:
        project: The project with its store, artifacts and images.
        hooks: A pluggy hook relay.
        run: The id of this run.
        config: The value of the hooks' argument ``config``.
        bake: When to bake images.
        say: Receives progress, from several threads.
        before_removal: Receives an environment whose launch failed, before it is destroyed.
        cancelled: When it is set, all launches fail at once.
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
        """Check before a launch that a template's provider has all that it needs.

        Args:
            template: The template's name.
            rolled_back: Whether its environments are rolled back between tests.

        Raises:
            UnavailableError: Something is missing.
            ConfigurationError: The template is wrong, or could cost more than its limit.
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
        """Launch an environment, and wait until it is ready and seeded.

        Args:
            template: A template of the configuration.
            ttl: The time to live, instead of the template's own.
            rolled_back: Whether it is rolled back between tests, so that it needs a baseline.

        Returns:
            The environment, and how many seconds each phase took.

        Raises:
            EphemeralError: The launch failed. A note of the error names what is left, if anything.
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
        """Roll an environment back to its baseline, and wait until it is ready.

        Returns:
            The environment, and how many seconds that took.

        Raises:
            EphemeralError: The rollback failed, and the environment can't be used any more.
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
        """Get the image of a recipe; bakes or downloads it if needed and allowed.

        Raises:
            EphemeralError: It is missing and can't be baked.
        """
        return self._images.obtain(self.project, name, self.bake, self.say)

    def _wait(self, environment: Environment, provider: Provider, order: Order) -> None:
        progress.wait_until_ready(
            environment, provider, order, cancelled=self.cancelled, say=self.say
        )

    def _abandon(self, environment: Environment, error: BaseException) -> None:
        """Destroy an incomplete environment. If that fails, add a note to the original error."""
        try:
            self.before_removal(environment)
        finally:
            try:
                remove(self.project.ledger, environment)
            except EphemeralError as leak:
                error.add_note(str(leak))

    # -- inspect, change and destroy -------------------------------------------------------

    def status(self, environment: Environment) -> Status:
        """The state that the provider reports; for an expired environment, with that reason."""
        status = providers.load(environment.provider).status(environment)
        expires_at = environment.expires_at
        if status.state == "gone" and expires_at is not None and expires_at <= datetime.now(UTC):
            lived = Duration((expires_at - environment.created_at).total_seconds())
            return Status("gone", f"its ttl ({lived}) ran out: set a longer `ttl` in its template")
        return status

    def extend(self, environment: Environment, expires_at: datetime) -> Environment:
        """See ``expiry.extend``."""
        return expiry.extend(self.project.ledger, environment, expires_at)

    def keep(self, environment: Environment) -> Environment:
        """Keep an environment after this run. It still expires."""
        kept = expiry.keep(self.project.ledger, environment)
        self.say(Progress(environment.id, "kept", environment.url))
        self._emit("environment_stopped", environment=kept, outcome="kept")
        return kept

    def publish(self, environment: Environment, url: str) -> None:
        """Call the hook that publishes an environment's URL."""
        self._emit("publish_url", environment=environment, url=url)

    def keep_machine(self, environment: Environment) -> bool:
        """See ``standby.keep_machine``. For the hooks, the environment ends."""
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
        """Destroy all resources of an environment, and remove its record.

        Args:
            environment: The environment; it may be incomplete, or gone already.
            outcome: The outcome for the hooks, if the removal succeeds.
            accepted: Called once the platform has accepted the request to destroy it.
            last: Whether a failure is final, so that the hooks receive the outcome ``leaked``.

        Returns:
            How many seconds it took.

        Raises:
            DestroyError: Something is left. The record stays, for `pytest-ephemeral reap`.
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
        """Report to the hooks that a removal continues in the background.

        The user need not wait for slow parts of a removal, such as an address or a network bridge.
        The record stays until the removal has succeeded.
        """
        self._emit_end(environment, "destroying")

    def _emit_end(self, environment: Environment, outcome: Outcome) -> None:
        """Call the hook for the end of an environment.

        After ``destroying``, it is called again only for ``leaked``.
        """
        with self._hook_lock:
            earlier = self._ends.get(environment.id)
            if earlier and "destroying" in {earlier, outcome} and outcome != "leaked":
                return
            self._ends[environment.id] = outcome
            self._emit("environment_stopped", environment=environment, outcome=outcome)

    # -- records and hooks -------------------------------------------------------------------

    def _record(self, environment: Environment, *names: str) -> None:
        self.project.ledger.change(
            environment.id, **{name: getattr(environment, name) for name in names}
        )

    @contextmanager
    def _recording(self, environment: Environment, *names: str) -> Iterator[None]:
        """Write the record in a thread while the block runs: writing to disk takes time."""
        with ThreadPoolExecutor(1) as pool:
            recorded = pool.submit(self._record, environment, *names)
            yield
            recorded.result()

    def _emit(self, event: str, **arguments: Any) -> None:
        """Call a hook, one call at a time. An error in it is only reported as a warning."""
        hook = getattr(self.hooks, f"pytest_ephemeral_{event}")
        try:
            with self._hook_lock:
                hook(**arguments, config=self.config)
        except Exception as error:  # noqa: BLE001 - the code of any plugin
            text = f"pytest_ephemeral_{event} failed: {describe_error(error)}"
            self.say(Progress(arguments["environment"].id, "warning", text))
