"""What only some providers promise: to bake, to have several parts, to be put back."""

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
    """What a provider promises that bakes images."""

    def test_an_image_that_was_baked_is_there(self, image: Image) -> None:
        """A baked image names its content, and is found again unchanged."""
        assert image.digest.startswith("sha256:")
        assert image.reference
        baker: Any = providers.load(image.provider)
        assert baker.present(image)


class PartsConformance:
    """What a provider promises whose environments have several processes or services."""

    def test_logs_of_several_parts(self, launch: Launcher, provider: Any, bench: Bench) -> None:
        """Each part has its log; shown together, each line says whose it is."""
        environment = launch("pair")
        until(lambda: get(environment))
        until(lambda: "worker | working\n" in provider.logs(environment))
        files = provider.log_files(environment)
        assert set(files) >= set(bench.parts)  # a machine's console comes with them
        assert files["worker"].startswith("working\n")


class RollbackConformance:
    """What a provider promises whose environments can be put back to their baseline."""

    def test_it_is_put_back(self, image: Image | None, provider: Any, bench: Bench) -> None:
        """What was written is gone, also after a crash; id, URL and ports are the same."""
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
    """What a provider promises whose environments end by themselves, whoever has died."""

    def test_it_ends_at_its_expiry(self, launch: Launcher, provider: Any, bench: Bench) -> None:
        """It ends by itself when its time is over; nothing is left."""
        environment = launch(lifetime=1.0)
        until(lambda: provider.status(environment).state == "gone")
        until(lambda: not bench.traces(environment))

    def test_it_dies_with_its_owner(self, owner: OwnerStarter, bench: Bench) -> None:
        """Two seconds after kill -9 of its owner, nothing is left."""
        process, environment = owner(kind="pair")
        until(lambda: get(environment))
        process.kill()
        until(lambda: not bench.traces(environment), within=2)

    def test_kept_it_still_expires(self, owner: OwnerStarter, bench: Bench) -> None:
        """One that was kept ends at its expiry all the same."""
        process, environment = owner(keep=True, lifetime=2.0)
        process.communicate("\n", timeout=20)
        until(lambda: not bench.traces(environment))
