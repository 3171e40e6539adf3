"""Run a small suite with each supported pytest, Python and CI, and with popular plugins.

    python .ci/matrix/run.py --uv UV --folder FOLDER --results FILE PYTHON ...

uv makes the virtual environments from a wheel of this clone, as users do; its cache is kept between
runs. Every cell has a copy of the project. Afterwards, no record and no process of it may remain.
The exit status is 1 if a cell failed. FILE has the results of all cells, as JUnit XML.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree as ET

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]

#: The seconds that a cell may take, and the seconds after which its processes must have ended.
CELL_SECONDS = 120.0
GONE_SECONDS = 10.0

#: The supported releases of pytest; the last one is the newest.
PYTESTS = ("pytest==8.4.0", "pytest==8.4.*", "pytest==9.0.*", "pytest==9.1.*", "pytest")

#: Environment variables: of no CI, of all CIs, and of each CI, those that publishers use.
CIS: Mapping[str, Mapping[str, str]] = {
    "no CI": {},
    "CI": {"CI": "true"},
    "GITHUB_ACTIONS": {
        "CI": "true",
        "GITHUB_ACTIONS": "true",
        "GITHUB_OUTPUT": "output.txt",
        "GITHUB_STEP_SUMMARY": "summary.md",
    },
    "GITLAB_CI": {"CI": "true", "GITLAB_CI": "true"},
    "JENKINS_URL": {"JENKINS_URL": "http://jenkins.invalid/", "BUILD_NUMBER": "7"},
}

#: The CIs whose cells also use xdist; the others do without.
WITH_XDIST = ("no CI", "CI")

#: Variables to remove: those of the current CI, and of a pytest that may have started this.
OTHERS = re.compile(r"CI$|CI_|GITHUB_|GITLAB_|JENKINS_|BUILD_|PYTEST_|VIRTUAL_ENV$|PYTHON")


@dataclass(frozen=True)
class Plugin:
    """A plugin that users may have installed, too.

    Attributes:
        package: What is installed.
        names: How it is registered.
        options: What it is used with.
        passed: How many tests pass.
        pytest: The newest release that it works with.
    """

    package: str
    names: Sequence[str]
    options: Sequence[str] = ()
    passed: int = 2
    pytest: str = PYTESTS[-1]


#: Unset, pytest-asyncio warns on every run, and warnings are errors here.
LOOP = ("-o", "asyncio_default_fixture_loop_scope=function")

PLUGINS = (
    Plugin("pytest-randomly", ["randomly"]),
    Plugin("pytest-rerunfailures", ["rerunfailures"], ["--reruns=1"], passed=3),
    Plugin("pytest-timeout", ["timeout"], ["--timeout=60"]),
    Plugin("pytest-asyncio", ["asyncio"], LOOP, passed=3),
    Plugin("pytest-cov", ["pytest_cov"], ["--cov=.", "--cov-report=term"]),
    Plugin("pytest-html", ["html", "html_fixtures", "metadata"], ["--html=report.html"]),
    Plugin("pytest-playwright", ["playwright"], passed=3),
    Plugin("pytest-bdd", ["pytest-bdd"], passed=3),
    Plugin("pytest-split", ["pytest-split"], ["--splits=2", "--group=1"], passed=1),
    Plugin("pytest-sugar", ["sugar"]),
    Plugin("pytest-instafail", ["instafail"], ["--instafail"]),
    Plugin("pytest-testmon", ["pytest-testmon"], ["--testmon"]),
    Plugin("pytest-freezer", ["freezer"], passed=4),
    Plugin("pyfakefs", ["fakefs"], passed=4),
    Plugin("pytest-socket", ["socket"], ["--disable-socket", "-Wdefault", "test_socket.py"]),
    # Its release 1.7.5 leaves files open by itself, and sends no reports with pytest 9.2.
    Plugin("pytest-forked", ["pytest_forked"], ["--forked", "-Wdefault"], pytest="pytest==9.1.*"),
)


@dataclass(frozen=True)
class Installed:
    """A virtual environment: a Python, a pytest, and plugins."""

    python: Path
    version: str
    pytest: str
    plugins: bool = False

    @property
    def name(self) -> str:
        """The name of its folder."""
        which = re.sub(r"[^\d.*]", "", self.pytest) or "newest"
        return f"{self.version} pytest {which}{' plugins' if self.plugins else ''}"


@dataclass
class Cell:
    """One run of the small suite: in an environment, with variables and options."""

    installed: Installed
    name: str
    options: Sequence[str] = ()
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()
    passed: int = 2
    wrong: str = ""
    seconds: float = 0.0


def main() -> int:
    """Make the virtual environments, run the cells, and print which failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--uv", required=True, help="the uv program")
    parser.add_argument("--folder", required=True, type=Path, help="where all is made")
    parser.add_argument("--results", type=Path, help="a JUnit XML file to write")
    parser.add_argument("pythons", nargs="+", type=Path)
    said = parser.parse_args()
    folder = said.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    cells = list(plan(said.pythons))
    with ThreadPoolExecutor(os.cpu_count() or 2) as pool:
        wheel = build(said.uv, folder)
        environments = dict.fromkeys(cell.installed for cell in cells)
        list(pool.map(lambda one: install(said.uv, folder, wheel, one), environments))
        list(pool.map(lambda numbered: run(folder, *numbered), enumerate(cells)))
    if said.results:
        write(said.results, cells)
    failed = [cell for cell in cells if cell.wrong]
    for cell in failed:
        print(f"FAILED {cell.installed.name}, {cell.name}: {cell.wrong}\n")
    print(f"matrix: {len(cells) - len(failed)} of {len(cells)} cells passed")
    return 1 if failed else 0


def plan(pythons: Sequence[Path]) -> Iterator[Cell]:
    """List the cells: every pytest on every Python in every CI, and every plugin."""
    versions = {python: _version(python) for python in pythons}
    for python, version in versions.items():
        for pytest in PYTESTS:
            for name, variables in CIS.items():
                options = ["-n", "2"] if name in WITH_XDIST else []
                yield Cell(Installed(python, version, pytest), name, options, variables)
        together = Installed(python, version, PYTESTS[-1], plugins=True)
        yield Cell(together, "all plugins", [*LOOP, "-n", "2"])
    oldest = Installed(pythons[0], versions[pythons[0]], PYTESTS[0], plugins=True)
    yield Cell(oldest, "all plugins", LOOP)
    newest = pythons[-1]
    for plugin in PLUGINS:
        installed = Installed(newest, versions[newest], plugin.pytest, plugins=True)
        yield beside(installed, plugin)


def _version(python: Path) -> str:
    argv = [str(python), "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


def beside(installed: Installed, plugin: Plugin) -> Cell:
    """A cell with one plugin: the suite, and the plugin's own test if there is one."""
    others = [name for other in PLUGINS if other is not plugin for name in other.names]
    without = [word for name in others for word in ("-p", f"no:{name}")]
    short = plugin.package.removeprefix("pytest-")
    own = [f"test_{short}.py"] if (HERE / "plugins" / f"test_{short}.py").exists() else []
    own += ["site.feature"] if short == "bdd" else []
    return Cell(installed, plugin.package, [*without, *plugin.options], {}, own, plugin.passed)


def build(uv: str, folder: Path) -> Path:
    """Build the wheel that all virtual environments install."""
    _call(uv, "build", "--quiet", "--wheel", "--out-dir", str(folder / "dist"), str(ROOT))
    return next((folder / "dist").glob("*.whl"))


def install(uv: str, folder: Path, wheel: Path, one: Installed) -> None:
    """Make one virtual environment."""
    place = folder / "environments" / one.name
    packages = [str(wheel), one.pytest, "pytest-xdist"]
    if one.plugins:
        packages += [plugin.package for plugin in PLUGINS]
    _call(uv, "venv", "--quiet", "--python", str(one.python), str(place))
    _call(uv, "pip", "install", "--quiet", "--python", str(place / "bin" / "python"), *packages)


def _call(*argv: str) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"matrix: {' '.join(argv)} failed:\n{done.stdout}{done.stderr}")


def run(folder: Path, number: int, cell: Cell) -> None:
    """Run one cell, and record its failures."""
    place = folder / "cells" / str(number)
    shutil.copytree(HERE / "project", place)
    for name in cell.files:
        shutil.copy(HERE / "plugins" / name, place)
    (place / "prefixes").mkdir(mode=0o700)
    python = folder / "environments" / cell.installed.name / "bin" / "python"
    started = time.monotonic()
    process = subprocess.Popen(
        [str(python), "-m", "pytest", "--ephemeral-env", *cell.options],
        cwd=place,
        env=_environ(place, python.parent, cell),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=CELL_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        cell.wrong = f"not over in {CELL_SECONDS:g} s:\n{process.communicate()[0][-4000:]}"
        return
    cell.seconds = time.monotonic() - started
    cell.wrong = _judge(process.returncode, output, cell.passed) or _left(place)


def _environ(place: Path, programs: Path, cell: Cell) -> dict[str, str]:
    own = {name: value for name, value in os.environ.items() if not OTHERS.match(name)}
    return {
        **own,
        "PATH": f"{programs}:{own['PATH']}",
        "PYTEST_EPHEMERAL_STATE": str(place / "state"),
        "PYTEST_EPHEMERAL_PREFIX_ROOT": str(place / "prefixes"),
        **cell.variables,
    }


def _judge(status: int, output: str, passed: int) -> str:
    counted = re.findall(r"\b(\d+) passed", re.sub(r"\x1b\[[\d;]*m", "", output))
    if status == 0 and counted[-1:] == [str(passed)]:
        return ""
    return f"exit status {status}, {passed} tests should have passed:\n{output[-4000:]}"


def _left(place: Path) -> str:
    """The remains of a cell: records of environments, or processes that name its state folder."""
    deadline = time.monotonic() + GONE_SECONDS
    while left := [*map(str, place.glob(".ephemeral/environments/*.json")), *_processes(place)]:
        if time.monotonic() > deadline:
            return f"left behind: {', '.join(left)}"
        time.sleep(0.05)
    return ""


def _processes(place: Path) -> Iterator[str]:
    mark = f"{place}/".encode()
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if mark in (entry / "environ").read_bytes():
                yield f"process {entry.name} {(entry / 'cmdline').read_bytes()!r}"
        except OSError:
            continue


def write(file: Path, cells: Sequence[Cell]) -> None:
    """Write the results as JUnit XML."""
    suite = ET.Element("testsuite", name="matrix", tests=str(len(cells)))
    for cell in cells:
        case = ET.SubElement(
            suite,
            "testcase",
            classname=f"matrix.{cell.installed.name}",
            name=cell.name,
            time=f"{cell.seconds:.3f}",
        )
        if cell.wrong:
            ET.SubElement(case, "failure", message="failed").text = cell.wrong
    ET.ElementTree(suite).write(file, encoding="utf-8", xml_declaration=True)


if __name__ == "__main__":
    sys.exit(main())
