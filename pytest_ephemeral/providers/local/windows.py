"""The local provider on Windows, which only reads its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from pytest_ephemeral.errors import UnavailableError
from pytest_ephemeral.providers.local.tables import LocalRecipe, LocalTemplate
from pytest_ephemeral.providers.protocol import Check
from pytest_ephemeral.tables import Recipe, Template

_HINT = "use the docker provider, or run this under WSL"


class UnsupportedProvider:
    """A provider that reads its configuration, and refuses everything else."""

    name: ClassVar[str] = "local"
    template_type: ClassVar[type[Template]] = LocalTemplate
    recipe_type: ClassVar[type[Recipe] | None] = LocalRecipe
    forwards_ports: ClassVar[bool] = False

    def doctor(self) -> Sequence[Check]:
        """A failed check."""
        return [Check(name="system", ok=False, detail="Windows", hint=_HINT)]

    def __getattr__(self, name: str) -> Any:
        """Refuse all other methods of a provider or baker."""
        raise UnavailableError(f"the local provider does not run on Windows: {_HINT}")
