"""What every provider promises, in one set of tests that all of them pass."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_ephemeral import labels, models, providers
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.providers.protocol import Owned
from pytest_ephemeral.testing.bench import Bench, Launcher, bake, get, make_order
from pytest_ephemeral.testing.waiting import until

#: Starts a process that launches an environment, and gives both.
OwnerStarter = Callable[..., tuple[subprocess.Popen[str], Environment]]


class ProviderFixtures:
    """What the tests of a provider have. A subclass has a fixture ``bench`` of scope ``class``."""

    @pytest.fixture(scope="class")
    @classmethod
    def image(
        cls, bench: Bench, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Image | None]:
        """The bench's image, baked into folders of its own; None if it has none."""
        root = tmp_path_factory.mktemp("conformance")
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("PYTEST_EPHEMERAL_STATE", str(root / "machine"))
            patch.setenv("PYTEST_EPHEMERAL_PREFIX_ROOT", str(root / "trees"))
            if (recipe := bench.recipe(root)) is None:
                yield None
                return
            baked = bake(recipe, root)
            yield baked
            baker: Any = providers.load(baked.provider)
            baker.remove(baked)

    @pytest.fixture
    def provider(self, bench: Bench) -> Any:
        """The provider itself."""
        return providers.load(bench.template("web").provider)

    @pytest.fixture
    def launch(self, bench: Bench, image: Image | None) -> Iterator[Launcher]:
        """Launch environments that are destroyed behind the test."""
        with ExitStack() as cleanup:
            yield Launcher(bench, image, cleanup)

    @pytest.fixture
    def owner(
        self, bench: Bench, image: Image | None, provider: Any, tmp_path: Path
    ) -> Iterator[OwnerStarter]:
        """Let another process own an environment."""
        with ExitStack() as cleanup:

            def start(
                *, kind: Any = "web", lifetime: float = 120.0, keep: bool = False
            ) -> tuple[subprocess.Popen[str], Environment]:
                file = tmp_path / "request"
                file.write_bytes(pickle.dumps((bench.template(kind), image, lifetime)))
                process = cleanup.enter_context(_start_owner(file, keep=keep))
                cleanup.callback(process.kill)
                assert process.stdout is not None
                environment = models.decode(process.stdout.readline().encode(), Environment)
                cleanup.callback(provider.destroy, environment)
                return process, environment

            yield start


class ProviderConformance(ProviderFixtures):
    """What every provider promises."""

    def test_its_endpoint_answers(self, launch: Launcher) -> None:
        """The URL leads to the application, which has the variables it was given."""
        environment = launch(variables={"COLOUR": "blue"})
        assert until(lambda: get(environment)) == "hello"
        assert get(environment, "/variable/COLOUR") == "blue"
        assert environment.url == environment.endpoints["http"].url
        assert environment.handle

    def test_several_ports_are_several_endpoints(self, launch: Launcher) -> None:
        """Each named port is an endpoint of its own; the first is the URL's."""
        environment = launch("pair")
        assert list(environment.endpoints) == ["http", "admin"]
        assert environment.url == environment.url_for("http")
        admin = msgspec.structs.replace(environment, url=environment.url_for("admin"))
        assert until(lambda: get(environment)) == until(lambda: get(admin)) == "hello"

    def test_two_run_side_by_side(self, launch: Launcher) -> None:
        """Two of one template get in each other's way in nothing."""
        one, two = launch(variables={"NAME": "one"}), launch(variables={"NAME": "two"})
        assert until(lambda: get(one, "/variable/NAME")) == "one"
        assert until(lambda: get(two, "/variable/NAME")) == "two"

    def test_it_is_plain_data(self, launch: Launcher, provider: Any) -> None:
        """What launching gives goes through pickle, and the copy is as good."""
        environment = launch()
        copy = pickle.loads(pickle.dumps(environment))  # noqa: S301
        assert copy == environment
        assert provider.status(copy).state == "running"

    def test_a_crash_is_told_at_once(self, launch: Launcher, provider: Any) -> None:
        """An application that exits is seen as exited, with its status and its last words."""
        environment = launch("crash")
        until(lambda: provider.status(environment).state == "exited")
        assert "status 3" in provider.status(environment).detail
        assert "no database" in provider.logs(environment)

    def test_a_later_crash_is_told_too(self, launch: Launcher, provider: Any, bench: Bench) -> None:
        """One that was up and then exits is exited, and says which part and how."""
        environment = launch("pair")
        until(lambda: get(environment))
        with suppress(OSError):
            get(environment, "/exit/5")
        status = until(lambda: (s := provider.status(environment)).state == "exited" and s)
        assert bench.parts[0] in status.detail
        assert "status 5" in status.detail

    def test_logs_are_there_from_the_first_byte(self, launch: Launcher, provider: Any) -> None:
        """What is printed before anyone asks is in the log; ``tail`` gives the end of it."""
        environment = launch()
        until(lambda: get(environment, "/one"))
        until(lambda: provider.logs(environment, tail=1) == "GET /one\n")  # engines take a moment
        assert provider.logs(environment).splitlines()[0].startswith("started")
        assert environment.logs() == provider.logs(environment)

    def test_logs_between_marks(self, launch: Launcher, provider: Any) -> None:
        """Between two marks is exactly what was printed between them."""
        environment = launch()

        def visit(path: str) -> None:
            until(lambda: get(environment, path))
            until(
                lambda: f"GET {path}\n" in provider.logs(environment)
            )  # it takes an engine a moment

        visit("/before")
        first = provider.log_mark(environment)
        visit("/between")
        second = provider.log_mark(environment)
        visit("/after")
        assert provider.logs(environment, since=first, until=second) == "GET /between\n"
        assert provider.logs(environment, since=second) == "GET /after\n"

    def test_secrets_are_masked(self, launch: Launcher, provider: Any) -> None:
        """The application gets its secret; no log has it."""
        environment = launch(variables={"GREETING": "s3cr3t-t0ken"}, secrets=["s3cr3t-t0ken"])
        until(lambda: get(environment))
        assert get(environment, "/variable/GREETING") == "s3cr3t-t0ken"
        assert until(lambda: provider.logs(environment)).startswith("started ***\n")

    def test_a_command_runs_inside(self, launch: Launcher) -> None:
        """It gets the application's variables, and gives its status and what it printed."""
        environment = launch(variables={"COLOUR": "blue"})
        assert until(lambda: get(environment)) == "hello"
        done = environment.run(["sh", "-c", "echo $COLOUR; echo red >&2; exit 7"])
        assert (done.returncode, done.stdout, done.stderr) == (7, "blue\n", "red\n")

    def test_a_command_has_no_input(self, launch: Launcher, provider: Any) -> None:
        """One that reads its standard input finds its end, not someone's terminal."""
        assert provider.run(launch(), ["cat"], timeout=20).stdout == ""

    def test_a_command_that_is_not_there(self, launch: Launcher, provider: Any) -> None:
        """It fails as under a shell; it is not an error of ours."""
        done = provider.run(launch(), ["no-such-command"], timeout=20)
        assert done.returncode in {126, 127}
        assert "no-such-command" in done.stderr

    def test_a_command_that_takes_too_long_is_killed(self, launch: Launcher, provider: Any) -> None:
        """At its time-out it ends, with what it has started."""
        environment = launch()
        script = "sleep 1000 & echo $! > /tmp/$NAME.pid; wait"
        named = ["env", f"NAME={environment.id}", "sh", "-c"]
        with pytest.raises(subprocess.TimeoutExpired):
            provider.run(environment, [*named, script], timeout=1)
        # Whose parent is gone may stay a zombie: an application that is PID 1 collects nobody.
        look = "pid=$(cat /tmp/$NAME.pid); ! kill -0 $pid || grep -q '^State:.Z' /proc/$pid/status"
        until(lambda: provider.run(environment, [*named, look], timeout=20).returncode == 0)
        provider.run(environment, [*named, "rm /tmp/$NAME.pid"], timeout=20)

    def test_a_hint_names_where_it_listens(self, launch: Launcher, provider: Any) -> None:
        """An application that listens on another port than the template's: the hint says which."""
        environment = launch("elsewhere")
        until(lambda: "started" in provider.logs(environment))
        assert "18478" in provider.hint(environment)
        assert "18477" in provider.hint(environment)

    def test_no_hint_where_all_is_well(self, launch: Launcher, provider: Any) -> None:
        """One that listens where it should has nothing odd about it."""
        environment = launch()
        until(lambda: get(environment))
        assert provider.hint(environment) == ""

    @pytest.mark.parametrize("later", [timedelta(hours=1), None], ids=["later", "never"])
    def test_its_expiry_can_be_moved(
        self, launch: Launcher, provider: Any, later: timedelta | None
    ) -> None:
        """Extended or disarmed, it lives on when the old expiry passes."""
        environment = launch(lifetime=1.5)
        passed = datetime.now(UTC) + timedelta(seconds=2)
        provider.extend(environment, None if later is None else datetime.now(UTC) + later)
        until(lambda: datetime.now(UTC) > passed)
        assert provider.status(environment).state == "running"

    def test_destroying_leaves_nothing(self, launch: Launcher, provider: Any, bench: Bench) -> None:
        """After destroying, nothing of it can be found from outside."""
        environment = launch("pair")
        until(lambda: get(environment))
        assert bench.traces(environment)
        provider.destroy(environment)
        assert bench.traces(environment) == []
        assert provider.status(environment).state == "gone"

    def test_destroying_what_has_crashed(
        self, launch: Launcher, provider: Any, bench: Bench
    ) -> None:
        """Where one process has exited, the others are removed all the same."""
        environment = launch("pair")
        until(lambda: get(environment))
        with suppress(OSError):
            get(environment, "/exit/5")
        until(lambda: provider.status(environment).state == "exited")
        provider.destroy(environment)
        assert bench.traces(environment) == []

    def test_destroying_twice_is_no_error(self, launch: Launcher, provider: Any) -> None:
        """The second time there is nothing to do."""
        environment = launch()
        provider.destroy(environment)
        provider.destroy(environment)

    def test_destroying_at_once(self, launch: Launcher, provider: Any, bench: Bench) -> None:
        """One that is still starting is destroyed as well as one that is up."""
        environment = launch()
        provider.destroy(environment)
        assert bench.traces(environment) == []

    def test_destroying_what_was_never_made(
        self, provider: Any, bench: Bench, image: Image
    ) -> None:
        """A record whose launch never came to anything is no error."""
        environment = make_order(bench.template("web"), image).environment
        provider.destroy(environment)
        assert provider.status(environment).state == "gone"

    def test_destroying_by_its_record_alone(
        self, launch: Launcher, provider: Any, bench: Bench
    ) -> None:
        """A launch that was cut short is known by the record from before it: id and labels."""
        environment = launch()
        recorded = msgspec.structs.replace(environment, handle={}, endpoints={}, url="")
        provider.destroy(recorded)
        assert bench.traces(environment) == []

    def test_what_is_gone_says_so(self, launch: Launcher, provider: Any) -> None:
        """Whatever is asked of one that is gone: a clear error of ours."""
        environment = launch()
        provider.destroy(environment)
        asks: list[Callable[[], object]] = [
            lambda: provider.run(environment, ["true"], timeout=20),
            lambda: provider.extend(environment, None),
            lambda: provider.keep(environment),
            lambda: provider.logs(environment),
        ]
        for ask in asks:
            with pytest.raises(EphemeralError, match=environment.id):
                ask()

    def test_it_is_listed_with_its_labels(self, launch: Launcher, provider: Any) -> None:
        """All that is there is found without a ledger, with whose it is and until when."""
        environment = launch()
        owned = _owned(provider, environment)
        assert owned.labels == environment.labels
        assert not owned.abandoned
        later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
        provider.extend(environment, later)
        expires = _owned(provider, environment).labels[labels.EXPIRES]
        assert datetime.fromisoformat(expires) == later

    def test_what_is_listed_can_be_swept(
        self, launch: Launcher, provider: Any, bench: Bench
    ) -> None:
        """Without any record, what was found by its labels alone is removed whole."""
        environment = launch()
        provider.sweep(_owned(provider, environment))
        assert bench.traces(environment) == []
        assert environment.id not in {owned.id for owned in provider.list_owned()}

    def test_any_process_can_act_on_it(
        self, owner: OwnerStarter, provider: Any, bench: Bench
    ) -> None:
        """Not only its owner: the environment's own data are enough."""
        _, environment = owner()
        assert until(lambda: get(environment)) == "hello"
        assert provider.status(environment).state == "running"
        assert "started" in environment.logs()
        assert environment.run(["echo", "hi"]).stdout == "hi\n"
        provider.destroy(environment)
        assert bench.traces(environment) == []

    def test_kept_it_outlives_its_owner(self, owner: OwnerStarter, provider: Any) -> None:
        """Kept, it is still up when its owner has exited, and can be destroyed."""
        process, environment = owner(keep=True)
        until(lambda: get(environment))
        process.communicate("\n", timeout=20)
        time.sleep(0.3)  # the time in which it would have ended
        assert get(environment) == "hello"
        assert not _owned(provider, environment).abandoned


def _start_owner(request: Path, *, keep: bool) -> subprocess.Popen[str]:
    argv = [sys.executable, "-m", "pytest_ephemeral.testing.owner", str(request)]
    return subprocess.Popen(
        argv + ["keep"] * keep,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )


def _owned(provider: Any, environment: Environment) -> Owned:
    found: Owned
    (found,) = [owned for owned in provider.list_owned() if owned.id == environment.id]
    return found
