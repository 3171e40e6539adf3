"""Hook relays for tests that call the library without pytest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from pytest_ephemeral.tables import Template


class SilentHooks:
    """Nobody listens."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda **arguments: None


class RecordingHooks:
    """Remembers every call; ``modify`` and ``broken`` are what users might do."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, dict[str, Any]]] = []
        self.modify: Callable[[Template], Any] = lambda template: None
        self.broken = False

    def pytest_ephemeral_modify_template(self, template: Template, config: Any) -> Any:
        """Change the template as the test says."""
        return self.modify(template)

    def __getattr__(self, name: str) -> Callable[..., None]:
        def hook(**arguments: Any) -> None:
            self.heard.append((name.removeprefix("pytest_ephemeral_"), arguments))
            if self.broken:
                raise ValueError("no route to chat")

        return hook
