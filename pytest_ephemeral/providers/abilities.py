"""What a provider may be able to do besides what every one does: ``isinstance`` tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers import Owned
from pytest_ephemeral.tables import Recipe, Template


@runtime_checkable
class Reachable(Protocol):
    """A provider that depends on something else that may not answer: an engine."""

    def reach(self) -> None:
        """See whether it answers, before anything is begun. Cheap.

        Raises:
            UnavailableError: It does not; says what was tried.
        """


@runtime_checkable
class Considering(Protocol):
    """A provider that can tell beforehand that a template would come to nothing."""

    def consider(
        self, template: Template, recipes: Sequence[Recipe], root: Path, lifetime: float | None
    ) -> None:
        """Refuse a template before anything is baked or launched for it. Cheap.

        Args:
            template: What is to be brought up.
            recipes: Of the images it is made of.
            root: The folder of the configuration file.
            lifetime: Seconds it may live, which decides what it costs; None while a hook may
                still make it another template.

        Raises:
            ConfigurationError: It can't be right, or costs more than it may.
            UnavailableError: What it needs (credentials) is not here.
        """


@runtime_checkable
class Shared(Protocol):
    """A provider whose resources are in an account that others use too."""

    def account(self) -> str:
        """Which it is, as its owner names it."""


@runtime_checkable
class Widespread(Protocol):
    """A provider that holds things in several places, such as regions."""

    def places(self, known: Iterable[Template | Recipe | Environment | Image]) -> Sequence[str]:
        """Where there may be something, by all that is known of it; its default place included."""

    def owned_in(self, place: str) -> Iterable[Owned]:
        """As ``Provider.owned``, in one place."""


@runtime_checkable
class Sweeper(Protocol):
    """A provider that removes many things with less ado than one by one."""

    def sweep_all(
        self, owned: Sequence[Owned], still: Callable[[Owned], bool]
    ) -> Mapping[str, EphemeralError | None]:
        """Look at things once more, and remove those that are still to be removed.

        Args:
            owned: What ``owned`` or ``owned_in`` gave.
            still: Whether one, as it is now, is still to be removed.

        Returns:
            By id: None for what is gone, why it remains for what is not. What was spared is
            missing.
        """


@runtime_checkable
class Recording(Protocol):
    """A baker that has to know which of its images stand in a catalog."""

    def recorded(self, image: Image, before: Image | None) -> None:
        """An image does, from now on. Done twice it is no error.

        Args:
            image: Which: only ``remove`` may take it away any more.
            before: What stood there before it, and does no longer.
        """


@runtime_checkable
class Checked(Protocol):
    """A provider whose platform checks by itself whether an environment is up."""

    def unready(self, environment: Environment) -> str:
        """What it is not content with yet, such as a health check; empty when with everything."""
