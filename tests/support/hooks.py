"""Hook callers for tests that use the library without pytest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_ephemeral.tables import Template


class SilentHooks:
    """Hooks without implementations."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda **arguments: None


class RecordingHooks:
    """Hooks that record every call.

    Attributes:
        calls: The name and the arguments of each call.
        modify: Called by ``pytest_ephemeral_modify_template``.
        broken: Whether all other hooks raise an error.
    """

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.modify: Callable[[Template], Any] = lambda template: None
        self.broken = False

    def pytest_ephemeral_modify_template(self, template: Template, config: Any) -> Any:
        """Change the template by the test's function."""
        return self.modify(template)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def hook(**arguments: Any) -> None:
            self.calls.append((name.removeprefix("pytest_ephemeral_"), arguments))
            if self.broken:
                raise ValueError("no route to chat")

        return hook
