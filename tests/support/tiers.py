"""Mark the tests that need an engine, a simulated account, a browser or much time; group tests.

``make test`` deselects the marked tests. Tests that share something expensive, such as a bench with
its image or a module's server, are run by one worker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from xdist.scheduler import LoadScopeScheduling

#: By the start of a path below ``tests``: the mark of these tests. All matches apply.
FOLDERS: Mapping[str, str] = {
    "aws/": "aws",
    "browser/": "browser",
    "containers/": "engine",
    "examples/test_init_containers": "engine",
    "examples/test_shop_containers": "engine",
    "examples/test_init_projects": "projects",
    "examples/test_pipelines": "projects",
    "faults/": "kills",
    "faults/test_aws": "aws",
    "promotion/test_board_browser": "browser",
    "vm/": "vm",
}

#: By the bench of the conformance suite: the mark.
BENCHES: Mapping[str, str] = {
    "docker": "engine",
    "docker_newest": "engine",
    "podman": "engine",
    "podman_rootless": "engine",
    "compose": "engine",
    "compose-v2": "engine",
    "compose_newest": "engine",
    "qemu": "vm",
    "ec2": "aws",
    "cloudformation": "aws",
}

#: The marks, in the order in which tests are started: long ones first.
MARKS = ("vm", "aws", "engine", "browser", "projects", "kills")

#: Tests that share nothing, so that any worker may run each.
_EACH = re.compile(r"tests/(plugin|faults|browser)/|tests/examples/test_(pages|pipelines)")

#: Tests of a module that share a bench, which is a parameter.
_BENCH = re.compile(r"(tests/providers/.*)::.*\[(.*?)[-\]]")


#: Tests that share the image of a virtual machine.
_MACHINES = re.compile(r"tests/vm/|tests/providers/.*\[qemu[-\]]")


def marks_of(path: str, bench: str = "") -> list[str]:
    """The marks of a test, by its path below ``tests`` and its bench."""
    marks = {mark for beginning, mark in FOLDERS.items() if path.startswith(beginning)}
    marks |= {BENCHES[bench]} if bench in BENCHES else set()
    return [mark for mark in MARKS if mark in marks]


def rank(item: pytest.Item) -> int:
    """The position of a test in the order of starting: lower is earlier."""
    names = {mark.name for mark in item.iter_markers()}
    return min((at for at, mark in enumerate(MARKS) if mark in names), default=len(MARKS))


def group_of(nodeid: str) -> str:
    """The group of a test; all tests of a group are run by one worker."""
    if _MACHINES.search(nodeid):
        return "vm"
    if bench := _BENCH.match(nodeid):
        return f"{bench[1]}[{bench[2]}]"
    return nodeid if _EACH.match(nodeid) else nodeid.partition("::")[0]


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """xdist's ``loadgroup``, with the groups of ``group_of`` instead of marks."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
