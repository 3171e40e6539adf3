"""The entry point that every pytest run imports, with or without ``--ephemeral-env``.

It imports only pytest and three small modules of ours, as every run of every project with this
plugin pays for its imports.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_ephemeral.pytest_plugin import markers, options
from pytest_ephemeral.pytest_plugin.fixtures import (
    OFF,
    _ephemeral_template,
    ephemeral_env,
    ephemeral_env_class,
    ephemeral_env_function,
    ephemeral_env_module,
    ephemeral_http,
    ephemeral_url,
)

__all__ = [
    "_ephemeral_template",
    "ephemeral_env",
    "ephemeral_env_class",
    "ephemeral_env_function",
    "ephemeral_env_module",
    "ephemeral_http",
    "ephemeral_url",
]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Declare the options."""
    options.add(parser)


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """With ``--ephemeral-env``, start the owner process as early as possible."""
    known = early_config.known_args_namespace
    if getattr(known, "ephemeral_env", False) and not known.help and not known.version:
        from pytest_ephemeral.pytest_plugin import owner

        owner.start_early(early_config)


def pytest_ignore_collect(collection_path: Path) -> bool | None:
    """Collect no tests from the store, even if a project sets its own ``norecursedirs``."""
    return True if collection_path.name == ".ephemeral" else None


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    """Add our hooks, which a conftest.py may implement."""
    from pytest_ephemeral import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


def pytest_configure(config: pytest.Config) -> None:
    """Declare the marker; with ``--ephemeral-env``, load everything else."""
    config.addinivalue_line("markers", markers.LINE)
    if config.option.ephemeral_env and not config.option.help:
        from pytest_ephemeral.pytest_plugin import session

        session.begin(config)


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    """Without ``--ephemeral-env``, report the skipped tests."""
    if not config.option.ephemeral_env:
        _summarize_off(terminalreporter)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Parametrize a test with the templates that its marker names."""
    markers.parametrize(metafunc)


def _summarize_off(terminal: pytest.TerminalReporter) -> None:
    """Print the number of skipped tests, and the options that had no effect."""
    if skipped := sum(map(_needs_environment, terminal.stats.get("skipped", ()))):
        tests = "1 test was" if skipped == 1 else f"{skipped} tests were"
        text = f"ephemeral: {tests} skipped: {OFF}"
        terminal.write_line(text, yellow=True)
    if idle := _find_idle_options(terminal.config):
        verb = "has" if len(idle) == 1 else "have"
        text = f"ephemeral: {', '.join(idle)} {verb} no effect without --ephemeral-env"
        terminal.write_line(text, yellow=True)


def _find_idle_options(config: pytest.Config) -> list[str]:
    """The options on the command line; those in the configuration file are for other runs."""
    typed = [str(word).partition("=")[0] for word in config.invocation_params.args]
    return [f"--{option.name}" for option in options.OPTIONS if f"--{option.name}" in typed]


def _needs_environment(report: object) -> bool:
    reason = getattr(report, "longrepr", None)
    return isinstance(reason, tuple) and reason[-1] == f"Skipped: {OFF}"
