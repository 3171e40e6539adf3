"""Images of interrupted bakes are adopted or reaped."""

from __future__ import annotations

from typing import Any

import pytest

from aws.conftest import Bench
from aws.reaping import (
    mark_baker_dead,
    reap,
)
from pytest_ephemeral.images.catalog import Catalog
from pytest_ephemeral.providers.ec2.baking import Ec2Baker


def test_an_unrecorded_verified_ami_is_adopted_or_reaped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bake ends before it is cataloged: the next bake uses the AMI, or reap removes it."""
    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.bake()
    (unrecorded,) = baked_amis(bench)
    assert unrecorded not in bench.account.verified()
    bench.account.calls()
    assert bench.bake().reference == unrecorded
    assert "ec2:CreateImage" not in bench.account.calls()
    assert unrecorded in bench.account.verified()
    with monkeypatch.context() as patch:
        patch.setattr(Catalog, "record", interrupted)
        with pytest.raises(KeyboardInterrupt):
            bench.bake(install=["echo another"], verify=[])
    (another,) = set(baked_amis(bench)) - {unrecorded}
    assert reap(bench) == {}  # its baking process still runs
    mark_baker_dead(bench, another)
    assert len(reap(bench)) == 1
    assert baked_amis(bench) == [unrecorded]


def test_a_cataloged_ami_without_its_tag_is_not_reaped(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bake ends after the catalog is written: reap, or the next use, adds the tag."""
    for heal in (lambda: reap(bench), bench.bake):
        with monkeypatch.context() as patch:
            patch.setattr(Ec2Baker, "mark_cataloged", interrupted)
            with pytest.raises(KeyboardInterrupt):
                bench.bake(mode="always")
        image = bench.images.catalog.entries()[0]
        mark_baker_dead(bench, image.reference)
        assert image.reference not in bench.account.verified()
        heal()
        assert image.reference in bench.account.verified()
        bench.images.prune(0, ())


def test_a_forced_bake_removes_the_previous_ami(bench: Bench) -> None:
    """The catalog has one image for each key, so the replaced AMI must not remain."""
    first = bench.bake()
    second = bench.bake(mode="always")
    assert first.key == second.key
    assert baked_amis(bench) == [second.reference]


def baked_amis(bench: Bench) -> list[str]:
    """List the existing AMIs, without the base."""
    found = bench.account.ec2.describe_images(Owners=["self"])["Images"]
    return [one["ImageId"] for one in found if one["ImageId"] != bench.account.base]


def interrupted(*_: Any) -> None:
    """Interrupt the process."""
    raise KeyboardInterrupt
