"""Protocols that a provider or baker may implement; they are checked with ``isinstance``.

Their names follow ``typing``, such as ``SupportsInt``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Literal, NamedTuple, Protocol, runtime_checkable

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Endpoint, Environment, Image
from pytest_ephemeral.providers.protocol import Check, Order, Owned
from pytest_ephemeral.tables import Recipe, Template


@runtime_checkable
class SupportsPreflight(Protocol):
    """A provider that can detect before a launch that a template can't be launched."""

    def preflight(
        self, template: Template, recipes: Sequence[Recipe], root: Path, lifetime: float | None, /
    ) -> None:
        """Check a template before anything is baked or launched for it. Must be fast.

        Args:
            template: The template to launch.
            recipes: The recipes of its images.
            root: The folder of the configuration file.
            lifetime: Seconds until the environment expires, from which its cost is computed; None
                while a hook may still change the template.

        Raises:
            ConfigurationError: The template is wrong, or costs more than it allows.
            UnavailableError: Something that it needs (an engine, credentials) is missing.
        """


@runtime_checkable
class SupportsEarlyContact(Protocol):
    """A provider that can request facts about its platform before the first launch needs them."""

    def contact(self) -> None:
        """Request and cache these facts. An error is not raised here, but by the launch."""


@runtime_checkable
class SupportsPermissionChecks(Protocol):
    """A provider that can check the permissions of a project by requests without effect."""

    def check_permissions(
        self, templates: Sequence[Template], recipes: Sequence[Recipe], root: Path, /
    ) -> Sequence[Check]:
        """Check them, for ``doctor``.

        Args:
            templates: The project's templates for this provider.
            recipes: All recipes of the project.
            root: The folder of the configuration file.
        """


@runtime_checkable
class SupportsAccounts(Protocol):
    """A provider whose resources are in an account that may be shared with others."""

    def account(self) -> str:
        """The account's id at its platform, such as an AWS account's number."""


@runtime_checkable
class SupportsRegions(Protocol):
    """A provider whose resources are spread over regions."""

    def regions(self, known: Iterable[Template | Recipe | Environment | Image]) -> Sequence[str]:
        """The regions of all ``known`` objects, and the default region."""

    def list_owned_in(self, region: str) -> Iterable[Owned]:
        """As ``Provider.list_owned``, in one region."""


@runtime_checkable
class SupportsBulkSweep(Protocol):
    """A provider that removes many resources faster together than one by one."""

    def sweep_all(
        self, owned: Sequence[Owned], condition: Callable[[Owned], bool]
    ) -> Mapping[str, EphemeralError | None]:
        """Read each resource again, and remove those that are still to be removed.

        Args:
            owned: Resources from ``list_owned`` or ``list_owned_in``.
            condition: Returns whether a resource, as just read, is still to be removed.

        Returns:
            By id: None for a removed resource, the error for one that remains. Resources for
            which ``condition`` returned false are left out.
        """


@runtime_checkable
class SupportsCataloging(Protocol):
    """A baker whose images have a mark for being in a catalog."""

    def mark_cataloged(self, image: Image, predecessor: Image | None) -> None:
        """Mark an image as cataloged: from now on, only ``remove`` may delete it. Idempotent.

        Args:
            image: The image that is now in the catalog.
            predecessor: The image that it replaced under the same name and key, if any.
        """


class LayerSpan(NamedTuple):
    """The position of a layer in an archive: its start and size, in bytes."""

    start: int
    size: int


@runtime_checkable
class SupportsLayers(Protocol):
    """A baker whose images are kept by an engine and share layers."""

    def is_pushed(self, image: Image) -> bool:
        """Whether a registry has the image, so that other engines can pull it."""

    def explain_missing(self, image: Image) -> str:
        """Why the engine can't pull a pushed image that it lacks; empty if it was not pushed."""

    def find_layers(self, archive: Path, /) -> Sequence[LayerSpan]:
        """The positions of the layers in an archive that ``pack`` wrote, in order."""


@runtime_checkable
class SupportsEquivalents(Protocol):
    """A baker that can use an image of the catalog instead of baking one with other inputs."""

    def serves(self, image: Image, inputs: Mapping[str, str]) -> bool:
        """Whether an image can be used instead of one that is baked from these inputs.

        Args:
            image: An image of the catalog, with the same name and other inputs.
            inputs: The inputs of an image that would be baked here, by name.
        """


@runtime_checkable
class SupportsClock(Protocol):
    """A provider whose environments run on a platform with its own clock."""

    def clock(self, environment: Environment) -> datetime:
        """The time of the platform's clock, in UTC. It decides whether an expiry has passed.

        Raises:
            EphemeralError: The platform can't be reached.
        """


@runtime_checkable
class SupportsLastLogMark(Protocol):
    """A provider whose platform limits how often a log can be read."""

    def last_log_mark(self, environment: Environment) -> str:
        """As ``Provider.log_mark``, for the log as it was last read; makes no request.

        Output since this mark may include some earlier lines. It misses none.
        """


@runtime_checkable
class SupportsListeners(Protocol):
    """A provider that can find the processes that accept an environment's connections."""

    def foreign_listener(self, environment: Environment) -> str:
        """Another process that accepts connections at its endpoints, for people; or empty."""

    def shared_listener(self, environment: Environment) -> str:
        """A process of the environment that also accepts connections meant for others.

        Returns:
            The process and what to change, for people; empty if there is none.
        """


@runtime_checkable
class SupportsSockets(Protocol):
    """A provider that forwards ports, and can check whether the application itself listens."""

    def is_listening(self, environment: Environment, endpoint: Endpoint, /) -> bool | None:
        """Whether it listens at the target of an endpoint; None if this is unknown."""


@runtime_checkable
class SupportsHealth(Protocol):
    """A provider whose platform has health checks."""

    def pending_health(self, environment: Environment) -> str:
        """The health checks that have not passed yet, for people; empty when all have."""


@runtime_checkable
class SupportsStagedDestroy(Protocol):
    """A provider whose platform accepts a removal first, and completes it later."""

    def destroy_in_stages(self, environment: Environment, accepted: Callable[[], None]) -> None:
        """As ``Provider.destroy``.

        Args:
            environment: The environment.
            accepted: Called as soon as the platform has accepted the removal: all of it has
                stopped, or will stop without further requests. The rest of the call waits, and
                removes shared resources.
        """


@runtime_checkable
class SupportsRollback(Protocol):
    """A provider that can put an environment back to its baseline: ready, and seeded.

    The lifecycle waits until the environment is ready again, after ``take_baseline`` and after
    ``roll_back``. The provider knows from the launch on whether there will be rollbacks, by
    ``Template.rollback`` of the order.
    """

    def check_rollback(self, template: Template, root: Path, /) -> None:
        """Refuse a template with state that can't be put back. Must be fast and change nothing.

        Args:
            template: The template to launch, before ``{env:…}`` is filled in.
            root: The folder of the configuration file.

        Raises:
            ConfigurationError: It has such state, such as a bound folder, which is named.
            UnavailableError: This machine lacks something that rollbacks need.
        """

    def take_baseline(self, order: Order, /) -> Environment:
        """Take the baseline of an environment that is ready and seeded. Called once.

        Args:
            order: The order of its launch, with the environment that ``launch`` returned.

        Returns:
            The environment, with the same id, endpoints and URL. Its handle may have changed.

        Raises:
            EphemeralError: The baseline could not be taken.
        """

    def roll_back(self, order: Order, /) -> Environment:
        """Put an environment back to its baseline, even if it has stopped or is damaged.

        Args:
            order: The order of its launch, with the environment that the last call returned.

        Returns:
            The environment, with the same id, endpoints and URL. Its handle may have changed.

        Raises:
            EphemeralError: It could not be put back. The environment can't be used any more.
        """


@runtime_checkable
class SupportsStandby(Protocol):
    """A provider that keeps machines of ended environments, renewed and stopped, for later ones.

    If the machine is to be kept, the environment's handle has ``STANDBY_FITS``,
    ``STANDBY_COUNT`` and ``STANDBY_SECONDS``. After its end, the environment's record in the
    ledger is that of its machine, until another environment claims the machine.
    """

    def fits(self, order: Order, /) -> str:
        """A text that is equal for an order and a machine that fits; empty if none can fit.

        Raises:
            EphemeralError: It can't be determined now.
        """

    def renew(self, environment: Environment, until: datetime, /) -> None:
        """Renew the machine of an ended environment, and stop it.

        Returns when the platform has accepted this, and does not wait for the end.

        Args:
            environment: The environment's record.
            until: The machine's expiry, in UTC.

        Raises:
            EphemeralError: It could not be renewed: it still runs, and must be destroyed.
        """

    def readiness(self, standby: Environment, /) -> Literal["ready", "not yet", "broken"]:
        """Whether a machine can be started: it is ``ready`` once it is renewed and has stopped.

        Raises:
            EphemeralError: It can't be read now, or does not match its record.
        """

    def restart(self, order: Order, standby: Environment, /) -> Environment:
        """As ``Provider.launch``, with a machine on standby that this order has claimed.

        Args:
            order: The order.
            standby: The machine's record; ``CLAIMED_BY`` in its handle is the order's id.

        Raises:
            EphemeralError: It could not be started. The order's record has its resources.
        """

    def let_go(self, standby: Environment, /) -> None:
        """Remove the resources of a restarted machine that its new environment does not use.

        Raises:
            EphemeralError: Some remain.
        """


@runtime_checkable
class SupportsFreeze(Protocol):
    """A provider whose environments can resume from the memory of one that was ready and seeded."""

    def freeze(self, order: Order, /) -> Environment:
        """Save the memory of an environment whose handle has ``TO_FREEZE``; it keeps running.

        Args:
            order: The order of its launch, with the environment, which is ready and seeded.

        Returns:
            The environment, with the same id, endpoints and URL. If its memory could not be
            saved, its handle has the reason, and the environment can still be used.
        """

    def refuse_memory(self, environment: Environment, why: str, /) -> None:
        """Refuse the memory that an environment was resumed from: no other is resumed from it.

        Args:
            environment: The environment.
            why: The reason, for people. It is shown when the next one is booted instead.
        """
