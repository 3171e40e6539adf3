"""Compare the time of a container with other plugins: ``python -m benchmarks.containers``.

All of them run the same image and the same two tests, in a pytest process with only the plugins
that they need. One round runs all of them, one after the other; the table has medians. The first
run installs the other plugins into ``benchmarks/.venv``. If this machine lacks something, a line
names the measurements that are left out.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.providers.docker import endpoint

HERE = Path(__file__).parent
SUITES = HERE / "suites"
PYTHON = HERE / ".venv" / "bin" / "python"
PEERS = ("docker", "pytest-docker", "pytest-docker-tools", "pytest-xdist", "testcontainers")

#: Seconds after its start at which the slow application listens.
SLOW = 0.35


@dataclass(frozen=True, slots=True)
class Way:
    """One way to get a container for two tests.

    Attributes:
        name: The name in the table.
        suite: The folder in ``suites`` with its tests and configuration.
        plugins: The modules of the plugins that it needs.
        arguments: Further options of pytest.
        modes: The columns of the table in which it is measured.
        variables: Further environment variables.
        command: The plugin of the docker command that it needs; may be empty.
        early: Whether ``ephemeral_early`` names the template.
    """

    name: str
    suite: str
    plugins: Sequence[str] = ()
    arguments: Sequence[str] = ()
    modes: Sequence[str] = ("fast", "slow", "-n 4")
    variables: Mapping[str, str] = field(default_factory=dict)
    command: str = ""
    early: bool = False


OURS = ("pytest_ephemeral.pytest_plugin.plugin",)
WAYS = (
    Way("bare pytest, a server in its own process", "bare", modes=("fast", "-n 4")),
    Way("prototype: raw engine API", "raw", modes=("fast", "slow", "-n 4")),
    Way("the same, on a network of its own", "raw", variables={"OWN_NETWORK": "yes"}),
    Way("pytest-ephemeral", "ours", OURS, ["--ephemeral-env"]),
    Way("the same, started before collection", "ours", OURS, ["--ephemeral-env"], early=True),
    Way("plain docker SDK, looking every 10 ms", "sdk"),
    Way("pytest-docker-tools", "docker_tools", ["pytest_docker_tools.plugin"]),
    Way("testcontainers, without its reaper", "testcontainers"),
    Way(
        "pytest-docker, `down -v -t 0`",
        "pytest_docker",
        ["pytest_docker"],
        modes=("fast", "slow"),
        variables={"CLEANUP": "down -v -t 0"},
        command="compose",
    ),
    Way(
        "pytest-docker as it is",
        "pytest_docker",
        ["pytest_docker"],
        modes=("fast",),
        command="compose",
    ),
)


def main(rounds: int) -> int:
    """Run all measurements, and print the table."""
    if why := lacking():
        print(f"left out: containers, for lack of {why}")
        return 0
    install()
    ways = [way for way in WAYS if not way.command or has_command(way.command)]
    for way in WAYS:
        if way not in ways:
            print(f"left out: {way.name}, for lack of `docker {way.command}`")
    images = {"fast": image(0.0), "slow": image(SLOW)}
    with tempfile.TemporaryDirectory(prefix="ephemeral-bench-") as state:
        os.environ["PYTEST_EPHEMERAL_STATE"] = state
        seconds: dict[tuple[str, str], list[float]] = {}
        for number in range(rounds + 1):  # round 0 fills caches, and is not counted
            say(f"round {number} of {rounds}")
            for way in ways:
                for mode in way.modes:
                    took = timed(way, mode, images["slow" if mode == "slow" else "fast"], state)
                    settle(images.values())
                    if number:
                        seconds.setdefault((way.name, mode), []).append(took)
        noticed, destroyed = by_itself(images["slow"], state, rounds)
    show({key: median(values) for key, values in seconds.items()}, rounds)
    judge(seconds)
    print(f"\nnoticed after it listens   {noticed * 1000:6.1f} ms   target ≤ 20 ms")
    print(f"removed altogether         {destroyed * 1000:6.1f} ms   a run waits for this")
    return 0


def lacking() -> str:
    """The name of a requirement that this machine lacks; empty if it has all."""
    for program in ("docker", "busybox"):
        if shutil.which(program) is None:
            return f"{program}, which is not installed"
    try:
        endpoint.find().ping()
    except EphemeralError as error:
        return f"a container engine: {error}"
    return ""


def has_command(name: str) -> bool:
    """Whether the docker command has this plugin."""
    argv = ["docker", name, "version"]
    return subprocess.run(argv, capture_output=True, check=False).returncode == 0


def install() -> None:
    """Make the virtual environment with this package and the other plugins."""
    if PYTHON.exists():
        return
    say("installing the peers")
    venv.create(HERE / ".venv", with_pip=True)
    pip = [str(PYTHON), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *PEERS, "--editable", str(HERE.parent)], check=True)


def image(delay: float) -> str:
    """Build the image of all measurements: Busybox's web server, started after a delay."""
    sys.path.append(str(HERE.parent / "tests"))
    from support import engine_images  # type: ignore[import-not-found]  # the tests make the same images

    name = f"ephemeral-bench:{'slow' if delay else 'fast'}"
    serve = "exec httpd -f -p 8080 -h /www"
    # PID 1 ignores SIGTERM, as shell scripts of many applications do.
    command = f'trap "" TERM; sleep {delay}; {serve}' if delay else serve
    dockerfile = f"FROM {engine_images.busybox()}\nEXPOSE 8080\nCMD {command}\n"
    build = ["docker", "build", "--quiet", "--tag", name, "-"]
    environ = {**os.environ, "DOCKER_BUILDKIT": "0"}
    subprocess.run(build, input=dockerfile, text=True, check=True, capture_output=True, env=environ)
    return name


def timed(way: Way, mode: str, name: str, state: str) -> float:
    """The seconds of a whole run."""
    plugins = [*way.plugins, *(["xdist"] if mode == "-n 4" else [])]
    arguments = ["-n", "4"] if mode == "-n 4" else []
    environ = {
        # Installed packages have bytecode; without this variable, the checkout gets it, too.
        **{name: os.environ[name] for name in os.environ if name != "PYTHONDONTWRITEBYTECODE"},
        **way.variables,
        "BENCH_IMAGE": name,
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_EPHEMERAL_STATE": state,
        "TESTCONTAINERS_RYUK_DISABLED": "true",
        "TESTCONTAINERS_HOST_OVERRIDE": "127.0.0.1",
    }
    argv = [str(PYTHON), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    argv += [word for plugin in plugins for word in ("-p", plugin)]
    started = time.perf_counter()
    done = subprocess.run(
        [*argv, *way.arguments, *arguments, *_template(way, mode)],
        cwd=SUITES / way.suite,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    took = time.perf_counter() - started
    if done.returncode != 0:
        raise SystemExit(f"{way.name} ({mode}) failed:\n{done.stdout}{done.stderr}")
    return took


def settle(images: Iterable[str]) -> None:
    """Wait until all containers of a run are removed, so that they don't slow the next one down.

    Some plugins start the removal in the background, and end before it.
    """
    for name in images:
        listing = ["docker", "ps", "--all", "--quiet", f"--filter=ancestor={name}"]
        while subprocess.run(listing, check=True, capture_output=True).stdout:
            time.sleep(0.05)
    time.sleep(0.3)  # networks are removed after the containers


def _template(way: Way, mode: str) -> Sequence[str]:
    if way.plugins != OURS:
        return ()
    template = "slow" if mode == "slow" else "fast"
    early = ["-o", f"ephemeral_early={template}"] if way.early else []
    return ["--ephemeral-template", template, *early]


def by_itself(name: str, state: str, rounds: int) -> tuple[float, float]:
    """The medians of ``detection``: the delay of readiness, and the time to destroy."""
    from benchmarks.launching import detection

    found = [detection(name, Path(state)) for _ in range(rounds)]
    return median(one for one, _ in found), median(other for _, other in found)


def show(medians: Mapping[tuple[str, str], float], rounds: int) -> None:
    """Print the table."""
    print(f"\nwhole run in seconds, medians of {rounds} rounds\n")
    modes = ("fast", "slow", "-n 4")
    print(f"{'':48}" + "".join(f"{mode:>8}" for mode in modes))
    for way in WAYS:
        cells = (medians.get((way.name, mode)) for mode in modes)
        texts = ("" if cell is None else f"{cell:.2f}" for cell in cells)
        print(f"{way.name:48}" + "".join(f"{text:>8}" for text in texts))


def judge(seconds: Mapping[tuple[str, str], Sequence[float]]) -> None:
    """Compare ours with the targets, by medians of the differences in each round."""
    bare, raw, networked, ours, early = (way.name for way in WAYS[:5])
    peers = [way for way in WAYS[5:] if (way.name, way.modes[0]) in seconds]

    def over(other: str, mode: str, mine: str = ours) -> float:
        pairs = zip(seconds[mine, mode], seconds[other, mode], strict=True)
        return median(one - theirs for one, theirs in pairs)

    print(f"\n{'':48}{'':>8}{'early':>8}")
    for mode in ("fast", "slow"):
        print(f"{f'over the raw API, {mode}':48}{_both(over, raw, mode, early)}  target ≤ 0.05 s")
    for mode in ("fast", "slow", "-n 4"):  # the raw script with the same steps as ours
        print(f"{f'the same on a network, {mode}':48}{_both(over, networked, mode, early)}")
    print(f"{'over bare pytest, -n 4':48}{_both(over, bare, '-n 4', early)}  target ≤ 0.25 s")
    measured = [(way.name, mode) for way in peers for mode in way.modes]
    for mine in (ours, early):
        behind = [f"{name} ({mode})" for name, mode in measured if over(name, mode, mine) >= 0]
        verdict = "no: behind " + ", ".join(behind) if behind else "yes"
        print(f"{'ahead of every peer' if mine == ours else '':48}{verdict}")


def _both(over: Callable[..., float], other: str, mode: str, early: str) -> str:
    """Two columns: the difference to another way, without and with an early start."""
    return f"{over(other, mode):+8.2f}{over(other, mode, early):+8.2f}"


def say(text: str) -> None:
    """Print on stderr which measurement is running."""
    print(f"… {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 7))
