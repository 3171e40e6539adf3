"""Tests of abilities that only some providers have: baking, several parts, rollback."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from msgspec.structs import replace

from pytest_ephemeral import providers
from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.testing.bench import Bench, Launcher, get, make_order
from pytest_ephemeral.testing.conformance import OwnerStarter
from pytest_ephemeral.testing.waiting import until


class BakerConformance:
    """Tests of a provider that bakes images."""

    def test_a_baked_image_is_present(self, image: Image) -> None:
        """A baked image has a digest, and is found again unchanged."""
        assert image.digest.startswith("sha256:")
        assert image.reference
        baker: Any = providers.load(image.provider)
        assert baker.present(image)


class PartsConformance:
    """Tests of a provider whose environments have several processes or services."""

    def test_each_part_has_its_own_log(self, launch: Launcher, provider: Any, bench: Bench) -> None:
        """Each part has a log; in the common log, each line has its part's name."""
        environment = launch("pair")
        until(lambda: get(environment))
        until(lambda: "worker | working\n" in provider.logs(environment))
        files = provider.log_files(environment)
        assert set(files) >= set(bench.parts)  # a machine also has its console
        assert files["worker"].startswith("working\n")


class RollbackConformance:
    """Tests of a provider whose environments can be rolled back to their baseline."""

    def test_rollback_restores_the_baseline(
        self, image: Image | None, provider: Any, bench: Bench
    ) -> None:
        """A rollback undoes later changes, also after a crash; the endpoints stay the same."""
        template = replace(bench.template("pair"), rollback="each")
        order = make_order(template, image)

        def ready(environment: Environment) -> Environment:
            until(lambda: get(environment))
            return environment

        def roll_back(environment: Environment) -> Environment:
            return ready(provider.roll_back(replace(order, environment=environment)))

        try:
            provider.check_rollback(template, order.root)
            launched = ready(provider.launch(order))
            _write(launched, "seeded")
            one = ready(provider.take_baseline(replace(order, environment=launched)))
            for _ in range(2):
                _write(one, "wrong")
                one = roll_back(one)
                assert _has(one, "seeded")
                assert not _has(one, "wrong")
                assert one.endpoints == launched.endpoints
                assert provider.status(one).state == "running"
            with suppress(OSError):
                get(one, "/exit/3")
            until(lambda: provider.status(launched).state == "exited")
            assert provider.status(roll_back(one)).state == "running"
        finally:
            provider.destroy(order.environment)
        assert not bench.traces(launched)


def _write(environment: Environment, name: str) -> None:
    done = environment.run(["sh", "-c", f"echo 1 > {name}"])
    assert done.returncode == 0, done.stderr


def _has(environment: Environment, name: str) -> bool:
    return environment.run(["cat", name]).returncode == 0


class OwnerConformance:
    """Tests of a provider whose environments end by themselves."""

    def test_an_environment_ends_at_its_expiry(
        self, launch: Launcher, provider: Any, bench: Bench
    ) -> None:
        """An environment ends by itself at its expiry, and no traces are left."""
        environment = launch(lifetime=1.0)
        until(lambda: provider.status(environment).state == "gone")
        until(lambda: not bench.traces(environment))

    def test_an_environment_ends_when_its_owner_is_killed(
        self, owner: OwnerStarter, bench: Bench
    ) -> None:
        """Within two seconds after SIGKILL of its owner, no traces are left."""
        process, environment = owner(kind="pair")
        until(lambda: get(environment))
        process.kill()
        until(lambda: not bench.traces(environment), within=2)

    def test_a_kept_environment_still_expires(self, owner: OwnerStarter, bench: Bench) -> None:
        """A kept environment still ends at its expiry."""
        process, environment = owner(keep=True, lifetime=2.0)
        process.communicate("\n", timeout=20)
        until(lambda: not bench.traces(environment))
