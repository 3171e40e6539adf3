"""Measure how long a rollback takes: ``make bench``.

For each template, the table has the time until the environment is ready again, and the
application's own start: the time until a process with the same command, started by hand on the
same state, responds. All are medians.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import pluggy

from benchmarks.__main__ import say
from benchmarks.workshop import Application, free_port, started
from pytest_ephemeral import hookspecs
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.models import Environment
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.local import client
from pytest_ephemeral.providers.local.folder import Folder

TINY = Path(__file__).with_name("tiny.py")

CONFIGURATION = """
[templates.tiny]
provider = "local"
command = "exec {python} {tiny} $HOST $PORT"
port = 18470

[templates.postgres]
provider = "local"
port = 5432
{user}
env = {{ PATH = "{postgres}:/usr/bin:/bin" }}
command = '''
[ -d "$STATE/data" ] || initdb -D "$STATE/data" -A trust > /dev/null
exec postgres -c fsync=off -D "$STATE/data" -k "$STATE" -h $HOST -p $PORT
'''
ready = {{ command = "pg_isready -q -h $HOST -p $PORT" }}
seed = '''
psql -qh $HOST -p $PORT postgres -c 'CREATE DATABASE seeded'
psql -qh $HOST -p $PORT seeded -c 'CREATE TABLE tea AS SELECT generate_series(1, 1000) AS id'
psql -qh $HOST -p $PORT postgres -c 'CREATE DATABASE app TEMPLATE seeded'
'''

[templates.reset]
extends = "postgres"
reset = '''
psql -qh $HOST -p $PORT postgres -c 'DROP DATABASE app WITH (FORCE)' -c \
'CREATE DATABASE app TEMPLATE seeded'
'''
"""


def main(rounds: int) -> int:
    """Run all measurements, and print the table."""
    with tempfile.TemporaryDirectory(prefix="ephemeral-bench-", dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o755)
        os.environ["PYTEST_EPHEMERAL_STATE"] = str(folder / "state")
        os.environ["PYTEST_EPHEMERAL_PREFIX_ROOT"] = str(folder / "trees")
        user = 'user = "postgres"' if os.geteuid() == 0 else ""
        # Without Debian's wrappers of psql and pg_isready: these Perl scripts take 20 ms each.
        postgres = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"))), folder)
        text = CONFIGURATION.format(python=sys.executable, tiny=TINY, user=user, postgres=postgres)
        (folder / "ephemeral.toml").write_text(text)
        manager = pluggy.PluginManager("pytest")
        manager.add_hookspecs(hookspecs)
        project = Project.open(folder / "ephemeral.toml", folder)
        lifecycle = Lifecycle(project, manager.hook, run="bench")
        port = free_port()
        tiny = Application("tiny", [sys.executable, str(TINY), "127.0.0.1", str(port)], port)
        own = median(_own_start(tiny) for _ in range(rounds))
        print(f"{'':34}{'put back':>10}{'own start':>12}{'target':>22}")
        _show(lifecycle, "tiny", rounds, "own start + 0.02 s", own)
        if (postgres / "postgres").exists():
            _show(lifecycle, "postgres", rounds, "own start + 0.02 s")
            _show(lifecycle, "reset", rounds, "0.05 s")
        else:
            print("PostgreSQL is not installed: not measured")
    return 0


def _own_start(application: Application) -> float:
    with started(application) as seconds:
        return seconds


def _show(
    lifecycle: Lifecycle, name: str, rounds: int, target: str, own: float | None = None
) -> None:
    """Roll an environment back several times, and print the median time."""
    say(name)
    template = lifecycle.project.config.template(name)
    environment = lifecycle.bring_up(template, rolled_back=True).environment
    try:
        took = [_put_back(lifecycle, environment) for _ in range(rounds)]
        if own is None and template.reset is None:
            own = median(_restart(environment) for _ in range(rounds))
    finally:
        lifecycle.destroy(environment)
    beside = "" if own is None else f"{own:.3f} s"
    print(f"{name:34}{median(took):8.3f} s{beside:>12}{'≤ ' + target:>22}")


def _restart(environment: Environment) -> float:
    """The time of PostgreSQL's own start after a clean stop, until pg_isready succeeds."""
    control, at = Folder.of_environment(environment).control, environment.endpoints["http"]
    client.stop(control, 10, signal.SIGTERM, keep_guard=True)
    started = time.monotonic()
    client.start(control)
    ready = ["pg_isready", "-q", "-h", at.host, "-p", str(at.port)]
    while subprocess.run(ready, check=False).returncode:
        time.sleep(0.002)
    return time.monotonic() - started


def _put_back(lifecycle: Lifecycle, environment: Environment) -> float:
    # As long as a test: during this time, the copy for the next rollback is made.
    time.sleep(0.3)
    return sum(lifecycle.roll_back(environment).seconds.values())


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if sys.argv[1:] else 7))
