"""Processes for tests, forked from a process that already has the imports, so they start fast."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Mapping
from multiprocessing.pool import Pool

_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(
    ["pytest", "pytest_ephemeral.promotion.promoter", "requests", "boto3"]
)


def pool(number: int) -> Pool:
    """Start processes that share only the environment variables with this one."""
    return _CONTEXT.Pool(number, _take_variables, [dict(os.environ)])


def exit_status_of(victim: Callable[..., object], *arguments: str) -> int:
    """Run a function in a process of its own, and return its exit status.

    Args:
        victim: A function on the top level of a module.
        arguments: The function's arguments.

    Returns:
        The process's exit status; negative if a signal ended it.
    """
    process = _CONTEXT.Process(target=_run, args=(victim, arguments, dict(os.environ)))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


def _run(
    victim: Callable[..., object], arguments: tuple[str, ...], variables: Mapping[str, str]
) -> None:
    _take_variables(variables)
    victim(*arguments)


def _take_variables(variables: Mapping[str, str]) -> None:
    os.environ.clear()  # they are those of the first fork
    os.environ.update(variables)
