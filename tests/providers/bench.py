"""The table of the providers that the conformance suite is run against.

A new provider is one module with a ``Bench``, and one row here. Another engine of a provider is
another class in its module.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

from pytest_ephemeral.testing import Bench

#: Name → module and class.
TABLE: Final[Mapping[str, str]] = {
    "local": "bench_local.Bench",
    "docker": "bench_docker.Bench",
    "docker_newest": "bench_docker.NewestBench",
    "podman": "bench_docker.PodmanBench",
    "compose": "bench_compose.Bench",
    "compose-v2": "bench_compose.PluginBench",
    "compose_newest": "bench_compose.NewestBench",
    "qemu": "bench_qemu.Bench",
    "ec2": "bench_ec2.Bench",
    "cloudformation": "bench_cloudformation.Bench",
}

#: A further engine, which runs only a part of the suite.
ROOTLESS: Final = "podman_rootless"

#: The rows whose environments end by themselves when their owner dies; others have a watchdog.
SELF_GUARDING: Final = ("local", "qemu")

#: The rows whose environments can be rolled back.
WITH_ROLLBACK: Final = (
    *("local", "docker", "docker_newest", "podman"),
    *("compose", "compose-v2", "compose_newest"),
)


def load(name: str) -> Bench:
    """Load the bench of one provider."""
    place = "bench_docker.RootlessBench" if name == ROOTLESS else TABLE[name]
    module, _, kind = place.partition(".")
    bench: Bench = getattr(import_module(module), kind)()
    return bench


def with_parts() -> list[str]:
    """Return the rows whose environments have several processes or services."""
    return [name for name in TABLE if len(load(name).parts) > 1]
