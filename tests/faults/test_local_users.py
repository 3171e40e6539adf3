"""The setting ``user``: processes that root starts as another user, and their folders."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pluggy
import pytest

from pytest_ephemeral import hookspecs
from pytest_ephemeral.environments.lifecycle import Lifecycle
from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.project import Project
from support.lacks import skip_without
from support.processes import command_of, with_variable
from support.waiting import until

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc"),
    pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user"),
]

NOBODY = pwd.getpwnam("nobody")

Begin = Callable[..., Lifecycle]

POSTGRES = """
port = 5432
scheme = "postgresql"
user = "postgres"
command = '''
[ -d "$STATE/data" ] || initdb -D "$STATE/data" -A trust >/dev/null
exec postgres -D "$STATE/data" -k "$STATE" -h $HOST -p $PORT
'''
ready = { command = "pg_isready -q -h $HOST -p $PORT", timeout = "60s" }
seed = "psql -q -h $HOST -p $PORT -c 'create table tea (name text)'"
"""

ONE = """
port = 8080
user = "nobody"
ready = { log = "here" }
command = '''
id -u > who; touch "$HOME/home" "$TMPDIR/temporary" "$STATE/state"
echo "$(pwd) $USER here" > /dev/stdout
exec sleep 1000
'''
"""

SOME = """
port = 8080
user = { web = "nobody" }
ready = { log = "here" }
command = { web = "touch $STATE/web; exec sleep 1000", work = "touch work; echo here; sleep 1000" }
"""


@pytest.fixture
def root() -> Iterator[Path]:
    """An image root that every user can enter, without anything of other users."""
    folder = Path(f"/var/tmp/ephemeral-users-{os.getpid()}")
    folder.mkdir(mode=0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def make_project(tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> Begin:
    """A function that opens a project with one template, whose state only root can enter."""
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(root))

    def make_project(template: str) -> Lifecycle:
        text = f"[templates.staging]\nprovider = 'local'\n{template}"
        (tmp_path / "ephemeral.toml").write_text(text)
        project = Project.open(tmp_path / "ephemeral.toml", tmp_path)
        manager = pluggy.PluginManager("pytest")
        manager.add_hookspecs(hookspecs)
        return Lifecycle(project, hooks=manager.hook, run="users")

    return make_project


def processes(environment_id: str) -> Iterator[Path]:
    """The processes of an environment in /proc, except its guard."""
    for pid in with_variable(f"PYTEST_EPHEMERAL_ENVIRONMENT={environment_id}"):
        if b"supervisor" not in command_of(pid):
            yield Path("/proc", str(pid))


def owners(environment_id: str) -> set[int]:
    """The user IDs of an environment's processes, except its guard."""
    found = set()
    for entry in processes(environment_id):
        with suppress(OSError):
            found.add(entry.stat().st_uid)
    return found


def shared_memory(environment_id: str) -> set[str]:
    """The shared memory that an environment's processes map: files and IDs of segments."""
    found = set()
    for entry in processes(environment_id):
        with suppress(OSError):
            for line in (entry / "maps").read_text().splitlines():
                _, _, _, _, inode, *name = line.split(maxsplit=5)
                if name and name[0].startswith("/dev/shm/"):
                    found.add(name[0])
                if name and name[0].startswith("/SYSV"):
                    found.add(inode)
    return found


def remaining_memory(shared: set[str]) -> set[str]:
    """The shared memory that the kernel still keeps."""
    rows = Path("/proc/sysvipc/shm").read_text().splitlines()[1:]
    return shared & {row.split()[1] for row in rows} | {one for one in shared if Path(one).exists()}


def test_all_processes_run_as_the_configured_user(make_project: Begin, root: Path) -> None:
    """They have a folder of their own and matching variables; destroy removes the folder."""
    lifecycle = make_project(ONE)
    environment = lifecycle.bring_up(lifecycle.project.config.template("staging")).environment
    own = root / "states" / environment.id / "nobody"
    assert owners(environment.id) == {NOBODY.pw_uid}
    assert environment.logs() == f"{own / 'state'} nobody here\n"
    assert {one.name for one in (own / "state").iterdir()} == {"who", "home", "state"}
    assert (own / "state" / "who").read_text() == f"{NOBODY.pw_uid}\n"
    assert (own / "tmp" / "temporary").stat().st_uid == NOBODY.pw_uid
    done = environment.run(["id", "-un"])
    assert (done.stdout, done.stderr, done.returncode) == ("nobody\n", "", 0)
    lifecycle.destroy(environment)
    assert not owners(environment.id)
    assert not list((root / "states").iterdir())


def test_some_processes_run_as_the_configured_user(make_project: Begin, root: Path) -> None:
    """The others run as root, in the environment's own folder."""
    lifecycle = make_project(SOME)
    environment = lifecycle.bring_up(lifecycle.project.config.template("staging")).environment
    assert owners(environment.id) == {0, NOBODY.pw_uid}
    web = root / "states" / environment.id / "nobody" / "state" / "web"
    until(web.exists, within=30)
    assert web.stat().st_uid == NOBODY.pw_uid
    assert environment.run(["ls"]).stdout == "work\n"
    lifecycle.destroy(environment)
    assert not list((root / "states").iterdir())


def test_root_can_run_postgresql_as_another_user(make_project: Begin, root: Path) -> None:
    """PostgreSQL refuses root, and needs a folder of its own; the test uses Debian's package."""
    if shutil.which("initdb") is None or shutil.which("postgres") is None:
        skip_without("PostgreSQL's server on PATH", "Debian's is in /usr/lib/postgresql/*/bin")
    lifecycle = make_project(POSTGRES)
    template = lifecycle.project.config.template("staging")
    environment = lifecycle.bring_up(template, rolled_back=True).environment
    endpoint = environment.endpoints["http"]
    ask = ["psql", "-At", "-h", endpoint.host, "-p", str(endpoint.port)]
    assert environment.run([*ask, "-c", "select current_user, count(*) from tea"]).stdout == (
        "postgres|0\n"
    )
    # Root copies the baseline; wait until that process has ended.
    until(lambda: owners(environment.id) == {pwd.getpwnam("postgres").pw_uid})
    shared = shared_memory(environment.id)
    assert len(shared) == 2, "a segment and a file"
    for _ in range(3):
        wrong = "insert into tea values ('green'); create table milk (name text)"
        assert environment.run([*ask, "-c", wrong]).returncode == 0
        assert lifecycle.roll_back(environment).environment == environment
        assert environment.run([*ask, "-c", r"\dt", "-c", "table tea"]).stdout == (
            "public|tea|table|postgres\n"
        )
        shared |= shared_memory(environment.id)
    assert "database system was not properly shut down" not in environment.logs()
    assert remaining_memory(shared) == remaining_memory(shared_memory(environment.id))
    lifecycle.destroy(environment)
    assert remaining_memory(shared) == set()
    assert not owners(environment.id)
    assert not list((root / "states").iterdir())


def test_a_killed_guard_ends_processes_of_other_users(make_project: Begin, root: Path) -> None:
    """A process that has become another user dies with its guard; destroy removes its folder."""
    lifecycle = make_project(ONE)
    environment = lifecycle.bring_up(lifecycle.project.config.template("staging")).environment
    os.kill(int(environment.handle["supervisor"]), 9)
    until(lambda: not owners(environment.id), within=30)
    lifecycle.destroy(environment)
    assert not list((root / "states").iterdir())


@pytest.mark.parametrize(
    ("user", "said"),
    [('"nobdy"', "no user 'nobdy'.*Did you mean 'nobody'"), ('{ x = "nobody" }', "no process 'x'")],
)
def test_an_unknown_user_or_process_is_refused(make_project: Begin, user: str, said: str) -> None:
    """The error names the user or the process, and suggests a known user."""

    def try_it() -> None:
        lifecycle = make_project(ONE.replace('"nobody"', user))
        lifecycle.bring_up(lifecycle.project.config.template("staging"))

    with pytest.raises(ConfigurationError, match=said):
        try_it()


def test_a_folder_closed_to_other_users_is_refused(make_project: Begin, root: Path) -> None:
    """The error comes before the launch, and no folder is left."""
    root.chmod(0o700)
    lifecycle = make_project(ONE)
    with pytest.raises(ConfigurationError, match="other users can't enter"):
        lifecycle.bring_up(lifecycle.project.config.template("staging"))
    assert not list((root / "states").iterdir())
