"""Which tests take an engine, a simulated account, a browser or much time, and who runs them.

``make test`` leaves those out, by their marks. Tests that share something costly, such as a bench
with its image or a module's server, are run by one worker.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import pytest
from xdist.scheduler import LoadScopeScheduling

#: The beginning of a path below ``tests`` → the marks of the tests there. All that match count.
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

#: Of the conformance suite: the bench → the mark.
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

#: In the order in which they are begun, so that what takes long does not come last.
MARKS = ("vm", "aws", "engine", "browser", "projects", "kills")

#: Tests that share nothing: any worker takes the next of them. (Users of one number share folders.)
_EACH = re.compile(
    r"tests/(plugin|faults(?!/test_(homeless|shared_images))|browser)/"
    r"|tests/examples/test_(pages|pipelines)"
)

#: Tests of a module that share what one parameter stands for.
_BENCH = re.compile(r"(tests/providers/.*)::.*\[(.*?)[-\]]")


#: Tests that share the one image of a virtual machine.
_MACHINES = re.compile(r"tests/vm/|tests/providers/.*\[qemu[-\]]")


def marks_of(path: str, bench: str = "") -> list[str]:
    """Say which marks a test has: by its path below ``tests``, and the bench that it is run on."""
    marks = {mark for beginning, mark in FOLDERS.items() if path.startswith(beginning)}
    marks |= {BENCHES[bench]} if bench in BENCHES else set()
    return [mark for mark in MARKS if mark in marks]


def rank(item: pytest.Item) -> int:
    """Say how early a test is begun: the lower, the earlier."""
    names = {mark.name for mark in item.iter_markers()}
    return min((at for at, mark in enumerate(MARKS) if mark in names), default=len(MARKS))


def group_of(nodeid: str) -> str:
    """Say what a test shares a worker with."""
    if _MACHINES.search(nodeid):
        return "vm"
    if bench := _BENCH.match(nodeid):
        return f"{bench[1]}[{bench[2]}]"
    return nodeid if _EACH.match(nodeid) else nodeid.partition("::")[0]


class GroupScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """xdist's ``loadgroup``, with groups that are known without marks in the tests' names."""

    def _split_scope(self, nodeid: str) -> str:
        return group_of(nodeid)
