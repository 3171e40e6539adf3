"""Find the implementations of our hooks in this process, and call them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytest

from pytest_ephemeral.hookspecs import NAMES


def implementers(manager: pytest.PytestPluginManager) -> dict[str, tuple[str, ...]]:
    """By plugin (the path of a conftest.py, or a name): the hooks that it implements."""
    found: dict[str, list[str]] = {}
    for name in NAMES:
        for implementation in getattr(manager.hook, name).get_hookimpls():
            found.setdefault(implementation.plugin_name, []).append(name)
    return {plugin: tuple(names) for plugin, names in found.items()}


def find_missing(
    own: Mapping[str, Sequence[str]], known: Iterable[str]
) -> dict[str, tuple[str, ...]]:
    """The plugins with hooks in a worker that the controller has not loaded."""
    others = set(known)
    return {plugin: tuple(names) for plugin, names in own.items() if plugin not in others}


class HookListener:
    """Calls the hooks of this process: one part of a ``RunListener``.

    Args:
        config: pytest's configuration, which hooks get as ``config``.
    """

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    def has_hook(self, name: str) -> bool:
        return bool(getattr(self._config.hook, name).get_hookimpls())

    def call_hook(self, name: str, plugins: Sequence[str], arguments: Mapping[str, Any]) -> Any:
        caller = getattr(self._config.hook, name)
        if plugins:
            manager = self._config.pluginmanager
            others = [one for one in manager.get_plugins() if manager.get_name(one) not in plugins]
            caller = manager.subset_hook_caller(name, others)
        return caller(**arguments, config=self._config)
