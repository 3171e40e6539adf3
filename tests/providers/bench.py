"""The table of the providers that the conformance suite is run against.

A new provider is one module with a ``Bench``, and one row here.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Final

from pytest_ephemeral.testing import Bench

#: Name → the module that has a class ``Bench``.
TABLE: Mapping[str, str] = {
    "local": "bench_local",
    "docker": "bench_docker",
    "docker_newest": "bench_docker_newest",
    "podman": "bench_podman",
    "compose": "bench_compose",
    "compose-v2": "bench_compose_v2",
    "compose_newest": "bench_compose_newest",
    "qemu": "bench_qemu",
    "ec2": "bench_ec2",
    "cloudformation": "bench_cloudformation",
}

#: A further engine, which passes a part of the suite.
ROOTLESS: Final = "podman_rootless"

#: The rows whose environments end by themselves when their owner dies; others have a watchdog.
SELF_GUARDING: Final = ("local", "qemu")

#: The rows whose environments can be put back to their baseline.
WITH_ROLLBACK: Final = (
    *("local", "docker", "docker_newest", "podman"),
    *("compose", "compose-v2", "compose_newest"),
)


def load(name: str) -> Bench:
    """The bench of one provider."""
    bench: Bench = import_module(TABLE.get(name, f"bench_{name}")).Bench()
    return bench


def with_parts() -> list[str]:
    """The rows whose environments have several processes or services."""
    return [name for name in TABLE if len(load(name).parts) > 1]
