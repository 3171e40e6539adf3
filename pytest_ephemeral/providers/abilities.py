"""What a provider may support besides what every one does; ``isinstance`` tells.

Named as ``typing`` names such protocols (``SupportsInt``).
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
    """A provider that can tell beforehand that a template can't be launched."""

    def preflight(
        self, template: Template, recipes: Sequence[Recipe], root: Path, lifetime: float | None, /
    ) -> None:
        """Refuse a template before anything is baked or launched for it. Cheap.

        Args:
            template: What is to be launched.
            recipes: Those of the images it is made of.
            root: The folder of the configuration file.
            lifetime: Seconds it may live, which decides what it costs; None while a hook may
                still change the template.

        Raises:
            ConfigurationError: It can't be right, or costs more than is allowed.
            UnavailableError: What it needs (an engine, credentials) is not available.
        """


@runtime_checkable
class SupportsEarlyContact(Protocol):
    """A provider whose platform takes its time to say what every launch needs to know of it."""

    def contact(self) -> None:
        """Ask the platform what it is, for whoever needs that later; its refusal is theirs."""


@runtime_checkable
class SupportsPermissionChecks(Protocol):
    """A provider that can try, without any effect, whether it may do what a project needs."""

    def check_permissions(
        self, templates: Sequence[Template], recipes: Sequence[Recipe], root: Path, /
    ) -> Sequence[Check]:
        """Try it, for ``doctor``.

        Args:
            templates: The project's that are of this provider.
            recipes: All that the project has.
            root: The folder of the configuration file.
        """


@runtime_checkable
class SupportsAccounts(Protocol):
    """A provider whose resources are in an account that others use too."""

    def account(self) -> str:
        """The account's name, as its owner knows it."""


@runtime_checkable
class SupportsRegions(Protocol):
    """A provider whose resources are spread over regions."""

    def regions(self, known: Iterable[Template | Recipe | Environment | Image]) -> Sequence[str]:
        """The regions that ``known`` mentions, and the default one."""

    def list_owned_in(self, region: str) -> Iterable[Owned]:
        """As ``Provider.list_owned``, in one region."""


@runtime_checkable
class SupportsBulkSweep(Protocol):
    """A provider that removes many resources faster together than one by one."""

    def sweep_all(
        self, owned: Sequence[Owned], still: Callable[[Owned], bool]
    ) -> Mapping[str, EphemeralError | None]:
        """Look at each resource once more, and remove those that are still to be removed.

        Args:
            owned: What ``list_owned`` or ``list_owned_in`` returned.
            still: Whether one, as it is now, is still to be removed.

        Returns:
            By id: None for what is gone, the error for what remains. What was spared is missing.
        """


@runtime_checkable
class SupportsCataloging(Protocol):
    """A baker that must know which of its images are in a catalog."""

    def mark_cataloged(self, image: Image, predecessor: Image | None) -> None:
        """Mark an image as cataloged: from now on, only ``remove`` may delete it. Idempotent.

        Args:
            image: The image that the catalog lists now.
            predecessor: The one that it listed before under the same name and key, if any.
        """


class LayerSpan(NamedTuple):
    """Where a layer is in an archive, in bytes."""

    start: int
    size: int


@runtime_checkable
class SupportsLayers(Protocol):
    """A baker whose images stay on an engine, and have layers in common."""

    def is_pushed(self, image: Image) -> bool:
        """Whether a registry has the image: whoever needs it gets it from there."""

    def find_layers(self, archive: Path, /) -> Sequence[LayerSpan]:
        """Where the layers are in an archive that ``pack`` wrote, in order."""


@runtime_checkable
class SupportsEquivalents(Protocol):
    """A baker whose images also serve where another would be baked."""

    def serves(self, image: Image, inputs: Mapping[str, str]) -> bool:
        """Whether an image can be used here in the place of one that is made from these inputs.

        Args:
            image: One of the catalog, with the same name and other inputs.
            inputs: What the image would be made from here, by name.
        """


@runtime_checkable
class SupportsClock(Protocol):
    """A provider whose environments are where another clock than this machine's runs."""

    def clock(self, environment: Environment) -> datetime:
        """What time it is there, in UTC: an expiry that only our clock says has passed has not.

        Raises:
            EphemeralError: It can't be asked.
        """


@runtime_checkable
class SupportsLastLogMark(Protocol):
    """A provider whose platform limits how often a log can be read."""

    def last_log_mark(self, environment: Environment) -> str:
        """As ``Provider.log_mark``, of the log as it was read last; makes no call.

        What is read since this mark may begin a little early. It never begins too late.
        """


@runtime_checkable
class SupportsListeners(Protocol):
    """A provider that can see which processes accept an environment's connections."""

    def foreign_listener(self, environment: Environment) -> str:
        """Who accepts connections at its endpoints in its place, for people; empty if nobody."""

    def shared_listener(self, environment: Environment) -> str:
        """Which of its processes also accepts connections that are meant for others.

        Returns:
            It, and what to change, for people; empty if there is none.
        """


@runtime_checkable
class SupportsSockets(Protocol):
    """A provider that can see whether an environment itself listens, behind what forwards to it."""

    def is_listening(self, environment: Environment, endpoint: Endpoint, /) -> bool | None:
        """Whether it listens where one of its endpoints leads; None if that can't be seen."""


@runtime_checkable
class SupportsHealth(Protocol):
    """A provider whose platform runs health checks of its own."""

    def pending_health(self, environment: Environment) -> str:
        """The health checks that have not passed yet, for people; empty when all have."""


@runtime_checkable
class SupportsStagedDestroy(Protocol):
    """A provider whose platform first accepts a removal, and then takes its time for it."""

    def destroy_in_stages(self, environment: Environment, accepted: Callable[[], None]) -> None:
        """As ``Provider.destroy``.

        Args:
            environment: Which.
            accepted: Called as soon as the platform has agreed to remove it: nothing of it runs
                on, or the platform will see to that by itself. What is left is to wait, and to
                take away what is shared.
        """


@runtime_checkable
class SupportsRollback(Protocol):
    """A provider that can put an environment back to its baseline: ready, and seeded.

    The lifecycle waits until the environment is ready again, after each of the two. The template
    of an order says from the launch on whether it will be rolled back (``Template.rollback``).
    """

    def check_rollback(self, template: Template, root: Path, /) -> None:
        """Refuse a template with state that could not be put back. Cheap, changes nothing.

        Args:
            template: What is to be launched, before ``{env:…}`` is filled in.
            root: The folder of the configuration file.

        Raises:
            ConfigurationError: It has such state, such as a bound folder; names it.
            UnavailableError: What is needed for it is not available here.
        """

    def take_baseline(self, order: Order, /) -> Environment:
        """Take the baseline of an environment that is ready and seeded. Called once.

        Args:
            order: What it was launched with; its environment is as ``launch`` returned it.

        Returns:
            The environment, with the same id, endpoints and URL. Its handle may have changed.

        Raises:
            EphemeralError: It could not be taken.
        """

    def roll_back(self, order: Order, /) -> Environment:
        """Put an environment back to its baseline, whatever has become of it meanwhile.

        Args:
            order: What it was launched with; its environment is as this returned it last.

        Returns:
            The environment, with the same id, endpoints and URL. Its handle may have changed.

        Raises:
            EphemeralError: It could not be put back, and can't be used any more.
        """


@runtime_checkable
class SupportsStandby(Protocol):
    """A provider that keeps the machines of ended environments, renewed and stopped, for others.

    The handle of an environment whose machine is to be kept has ``STANDBY_FITS``, ``_COUNT`` and
    ``_SECONDS``. Its record becomes that of its machine, until another environment claims it.
    """

    def fits(self, order: Order, /) -> str:
        """What a machine must fit to be an order's; empty when only a new one will do.

        Raises:
            EphemeralError: It can't be told now.
        """

    def renew(self, environment: Environment, until: datetime, /) -> None:
        """Have the platform make the machine of an ended environment as new, and stop it.

        Returns when that is under way; nobody has to wait for it.

        Args:
            environment: Which, by its record.
            until: When the machine expires.

        Raises:
            EphemeralError: It can't be; it runs on, and has to be destroyed.
        """

    def readiness(self, standby: Environment, /) -> Literal["ready", "not yet", "broken"]:
        """Whether a machine can be started: it is as new, and has stopped.

        Raises:
            EphemeralError: It can't be seen now, or is not what its record says.
        """

    def restart(self, order: Order, standby: Environment, /) -> Environment:
        """As ``Provider.launch``, with a machine that nobody else claims.

        Args:
            order: What is to be launched.
            standby: Whose machine that is; its handle says in ``CLAIMED_BY`` who claims it.

        Raises:
            EphemeralError: It could not be. The order's record says what it has by then.
        """

    def let_go(self, standby: Environment, /) -> None:
        """Remove what only a machine that was restarted had before.

        Raises:
            EphemeralError: It remains.
        """


@runtime_checkable
class SupportsFreeze(Protocol):
    """A provider whose environments can go on from where another was ready and seeded."""

    def freeze(self, order: Order, /) -> Environment:
        """Freeze an environment whose handle says ``TO_FREEZE``, and let it run on.

        Args:
            order: What it was launched with; its environment is ready and seeded.

        Returns:
            The environment, with the same id, endpoints and URL. If it could not be frozen, its
            handle says why: that is no reason not to use it.
        """

    def refuse_memory(self, environment: Environment, why: str, /) -> None:
        """Have the memory that an environment goes on from resumed by no other.

        Args:
            environment: Which.
            why: For people, who are told when the next one is booted instead.
        """
