"""Tests that every provider must pass."""

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
from pytest_ephemeral.testing.bench import LIFETIME, Bench, Launcher, bake, get, make_order
from pytest_ephemeral.testing.waiting import until

#: Starts a process that launches an environment; returns both.
OwnerStarter = Callable[..., tuple[subprocess.Popen[str], Environment]]


class ProviderFixtures:
    """Fixtures for tests of a provider. A subclass needs a fixture ``bench`` of scope ``class``."""

    @pytest.fixture(scope="class")
    @classmethod
    def image(
        cls, bench: Bench, tmp_path_factory: pytest.TempPathFactory
    ) -> Iterator[Image | None]:
        """The bench's image, baked into temporary folders; None if it has none."""
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
        """The provider under test."""
        return providers.load(bench.template("web").provider)

    @pytest.fixture
    def launch(self, bench: Bench, image: Image | None) -> Iterator[Launcher]:
        """Launch environments that are destroyed after the test."""
        with ExitStack() as cleanup:
            yield Launcher(bench, image, cleanup)

    @pytest.fixture
    def owner(
        self, bench: Bench, image: Image | None, provider: Any, tmp_path: Path
    ) -> Iterator[OwnerStarter]:
        """Launch an environment whose owner is another process."""
        with ExitStack() as cleanup:

            def start(
                *, kind: Any = "web", lifetime: float = LIFETIME, keep: bool = False
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
    """Tests that every provider must pass."""

    def test_the_endpoint_responds(self, launch: Launcher) -> None:
        """The application answers at the URL, and has the order's variables."""
        environment = launch(variables={"COLOUR": "blue"})
        assert until(lambda: get(environment)) == "hello"
        assert get(environment, "/variable/COLOUR") == "blue"
        assert environment.url == environment.endpoints["http"].url
        assert environment.handle

    def test_each_named_port_becomes_an_endpoint(self, launch: Launcher) -> None:
        """Each named port is an endpoint, and the first one is the environment's URL."""
        environment = launch("pair")
        assert list(environment.endpoints) == ["http", "admin"]
        assert environment.url == environment.url_for("http")
        admin = msgspec.structs.replace(environment, url=environment.url_for("admin"))
        assert until(lambda: get(environment)) == until(lambda: get(admin)) == "hello"

    def test_two_environments_do_not_disturb_each_other(self, launch: Launcher) -> None:
        """Two environments of one template have their own variables."""
        one, two = launch(variables={"NAME": "one"}), launch(variables={"NAME": "two"})
        assert until(lambda: get(one, "/variable/NAME")) == "one"
        assert until(lambda: get(two, "/variable/NAME")) == "two"

    def test_an_environment_can_be_pickled(self, launch: Launcher, provider: Any) -> None:
        """An environment can be pickled, and the copy can be used like the original."""
        environment = launch()
        copy = pickle.loads(pickle.dumps(environment))  # noqa: S301
        assert copy == environment
        assert provider.status(copy).state == "running"

    def test_a_crash_is_reported(self, launch: Launcher, provider: Any) -> None:
        """An environment whose application exits is ``exited``, with its status and its log."""
        environment = launch("crash")
        until(lambda: provider.status(environment).state == "exited")
        assert "status 3" in provider.status(environment).detail
        until(lambda: "no database" in provider.logs(environment))  # consoles are late

    def test_a_crash_after_startup_is_reported(
        self, launch: Launcher, provider: Any, bench: Bench
    ) -> None:
        """If a part exits after it was up, the status names the part and its exit status."""
        environment = launch("pair")
        until(lambda: get(environment))
        with suppress(OSError):
            get(environment, "/exit/5")
        status = until(lambda: (s := provider.status(environment)).state == "exited" and s)
        assert bench.parts[0] in status.detail
        assert "status 5" in status.detail

    def test_the_log_is_complete_from_the_start(self, launch: Launcher, provider: Any) -> None:
        """The log has all output from the start; ``tail`` returns its end."""
        environment = launch()
        until(lambda: get(environment, "/one"))
        until(lambda: provider.logs(environment, tail=1) == "GET /one\n")  # engine logs are late
        assert provider.logs(environment).splitlines()[0].startswith("started")
        assert environment.logs() == provider.logs(environment)

    def test_the_log_between_two_marks_is_exact(self, launch: Launcher, provider: Any) -> None:
        """The log between two marks is exactly the output between them."""
        environment = launch()

        def visit(path: str) -> None:
            until(lambda: get(environment, path))
            until(
                lambda: f"GET {path}\n" in provider.logs(environment)
            )  # an engine's log is a moment late

        visit("/before")
        first = provider.log_mark(environment)
        visit("/between")
        second = provider.log_mark(environment)
        visit("/after")
        assert provider.logs(environment, since=first, until=second) == "GET /between\n"
        assert provider.logs(environment, since=second) == "GET /after\n"

    def test_secrets_are_masked_in_the_log(self, launch: Launcher, provider: Any) -> None:
        """The application gets the secret, and the log shows ``***`` instead of it."""
        environment = launch(variables={"GREETING": "s3cr3t-t0ken"}, secrets=["s3cr3t-t0ken"])
        until(lambda: get(environment))
        assert get(environment, "/variable/GREETING") == "s3cr3t-t0ken"
        until(lambda: "started" in provider.logs(environment))  # consoles are late
        assert provider.logs(environment).startswith("started ***\n")

    def test_a_command_runs_in_the_environment(self, launch: Launcher) -> None:
        """A command has the application's variables; its status and output are returned."""
        environment = launch(variables={"COLOUR": "blue"})
        assert until(lambda: get(environment)) == "hello"
        done = environment.run(["sh", "-c", "echo $COLOUR; echo red >&2; exit 7"])
        assert (done.returncode, done.stdout, done.stderr) == (7, "blue\n", "red\n")

    def test_a_command_has_empty_standard_input(self, launch: Launcher, provider: Any) -> None:
        """The standard input of a command is empty."""
        assert provider.run(launch(), ["cat"], timeout=20).stdout == ""

    def test_an_unknown_command_fails_as_in_a_shell(self, launch: Launcher, provider: Any) -> None:
        """An unknown command exits with status 126 or 127, and raises no exception."""
        done = provider.run(launch(), ["no-such-command"], timeout=20)
        assert done.returncode in {126, 127}
        assert "no-such-command" in done.stderr

    def test_a_command_is_killed_at_its_timeout(self, launch: Launcher, provider: Any) -> None:
        """At its time-out, a command is killed with its child processes."""
        environment = launch()
        script = "sleep 1000 & echo $! > /tmp/$NAME.pid; wait"
        named = ["env", f"NAME={environment.id}", "sh", "-c"]
        with pytest.raises(subprocess.TimeoutExpired):
            provider.run(environment, [*named, script], timeout=1)
        # An orphan may stay a zombie: an application that is process 1 does not reap others.
        look = "pid=$(cat /tmp/$NAME.pid); ! kill -0 $pid || grep -q '^State:.Z' /proc/$pid/status"
        until(lambda: provider.run(environment, [*named, look], timeout=20).returncode == 0)
        provider.run(environment, [*named, "rm /tmp/$NAME.pid"], timeout=20)

    def test_the_hint_names_the_wrong_port(self, launch: Launcher, provider: Any) -> None:
        """If the application listens on another port than the template's, the hint names both."""
        environment = launch("elsewhere")
        until(lambda: "started" in provider.logs(environment))
        assert "18478" in provider.hint(environment)
        assert "18477" in provider.hint(environment)

    def test_a_healthy_environment_has_no_hint(self, launch: Launcher, provider: Any) -> None:
        """There is no hint for an application that listens on the template's port."""
        environment = launch()
        until(lambda: get(environment))
        assert provider.hint(environment) == ""

    @pytest.mark.parametrize("later", [timedelta(hours=1), None], ids=["later", "never"])
    def test_the_expiry_can_be_extended_or_removed(
        self, launch: Launcher, provider: Any, later: timedelta | None
    ) -> None:
        """An environment with a later expiry, or none, still runs after its first expiry."""
        environment = launch(lifetime=1.5)
        passed = datetime.now(UTC) + timedelta(seconds=2)
        provider.extend(environment, None if later is None else datetime.now(UTC) + later)
        until(lambda: datetime.now(UTC) > passed)
        assert provider.status(environment).state == "running"

    def test_destroy_leaves_nothing(self, launch: Launcher, provider: Any, bench: Bench) -> None:
        """After destroy, the bench finds no traces of the environment."""
        environment = launch("pair")
        until(lambda: get(environment))
        assert bench.traces(environment)
        provider.destroy(environment)
        assert bench.traces(environment) == []
        assert provider.status(environment).state == "gone"

    def test_destroy_removes_a_crashed_environment(
        self, launch: Launcher, provider: Any, bench: Bench
    ) -> None:
        """If one part has exited, destroy removes the other parts, too."""
        environment = launch("pair")
        until(lambda: get(environment))
        with suppress(OSError):
            get(environment, "/exit/5")
        until(lambda: provider.status(environment).state == "exited")
        provider.destroy(environment)
        assert bench.traces(environment) == []

    def test_destroying_twice_is_harmless(self, launch: Launcher, provider: Any) -> None:
        """Destroying a destroyed environment does nothing."""
        environment = launch()
        provider.destroy(environment)
        provider.destroy(environment)

    def test_a_starting_environment_can_be_destroyed(
        self, launch: Launcher, provider: Any, bench: Bench
    ) -> None:
        """An environment that is still starting can be destroyed."""
        environment = launch()
        provider.destroy(environment)
        assert bench.traces(environment) == []

    def test_destroying_a_never_launched_environment_is_harmless(
        self, provider: Any, bench: Bench, image: Image
    ) -> None:
        """Destroying an environment that was never launched does nothing."""
        environment = make_order(bench.template("web"), image).environment
        provider.destroy(environment)
        assert provider.status(environment).state == "gone"

    def test_destroy_needs_only_the_first_record(
        self, launch: Launcher, provider: Any, bench: Bench
    ) -> None:
        """After an interrupted launch, the first record is enough: it has the id and labels."""
        environment = launch()
        recorded = msgspec.structs.replace(environment, handle={}, endpoints={}, url="")
        provider.destroy(recorded)
        assert bench.traces(environment) == []

    def test_a_destroyed_environment_is_reported_as_gone(
        self, launch: Launcher, provider: Any
    ) -> None:
        """Every request to a destroyed environment raises an ``EphemeralError`` with its id."""
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

    def test_list_owned_returns_the_labels(self, launch: Launcher, provider: Any) -> None:
        """Each environment is listed with its labels and current expiry, without a ledger."""
        environment = launch()
        owned = _owned(provider, environment)
        assert owned.labels == environment.labels
        assert not owned.abandoned
        later = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
        provider.extend(environment, later)
        expires = _owned(provider, environment).labels[labels.EXPIRES]
        assert datetime.fromisoformat(expires) == later

    def test_a_listed_environment_can_be_swept(
        self, launch: Launcher, provider: Any, bench: Bench
    ) -> None:
        """An environment that was found by its labels alone is removed completely."""
        environment = launch()
        provider.sweep(_owned(provider, environment))
        assert bench.traces(environment) == []
        assert environment.id not in {owned.id for owned in provider.list_owned()}

    def test_another_process_can_use_and_destroy_an_environment(
        self, owner: OwnerStarter, provider: Any, bench: Bench
    ) -> None:
        """A process that is not the owner needs only the environment's data."""
        _, environment = owner()
        assert until(lambda: get(environment)) == "hello"
        assert provider.status(environment).state == "running"
        until(lambda: "started" in environment.logs())  # consoles are late
        assert environment.run(["echo", "hi"]).stdout == "hi\n"
        provider.destroy(environment)
        assert bench.traces(environment) == []

    def test_a_kept_environment_outlives_its_owner(
        self, owner: OwnerStarter, provider: Any
    ) -> None:
        """A kept environment is still up after its owner has exited, and is not abandoned."""
        process, environment = owner(keep=True)
        until(lambda: get(environment))
        process.communicate("\n", timeout=20)
        time.sleep(0.3)  # long enough for it to end, if it were not kept
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
