"""Environments with several images: their promotion, and their images in use."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pytest_ephemeral.errors import PromotionError
from pytest_ephemeral.images import stages
from pytest_ephemeral.images.stages import Stage
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Environment, ImageReference
from pytest_ephemeral.promotion import requirements
from pytest_ephemeral.providers.compose.tables import ComposeTemplate
from pytest_ephemeral.store.directory import DirectoryStore
from pytest_ephemeral.tables import Promotion
from support.environments import make_environment

NOW = datetime(2027, 1, 1, tzinfo=UTC)
WEB, WORKER = (
    ImageReference(name=name, key=f"sha256:{at * 64}", reference=name, digest=f"sha256:{at * 64}")
    for name, at in (("web", "1"), ("worker", "2"))
)


def environment() -> Environment:
    return make_environment(provider="compose", image=WEB, more_images=[WORKER])


def record_stage(
    store: DirectoryStore, image: ImageReference, *, exit_status: int, minute: int
) -> None:
    stage = Stage(
        stage="acceptance",
        run=f"run-{minute}",
        image=image.key,
        digest=image.digest or "",
        tests={"passed": 1},
        exit_status=exit_status,
        finished_at=NOW + timedelta(minutes=minute),
    )
    stages.record(store, stage)


def test_promotion_requires_every_image_to_pass(tmp_path: Path) -> None:
    """An image that was not tested, or failed, prevents the promotion."""
    store = DirectoryStore(tmp_path)
    wanted = Promotion(name="production", dns="hosts", record="shop.test", requires=["acceptance"])
    for image, status, said in ((WEB, 0, "has not tested it"), (WORKER, 1, "failed")):
        record_stage(store, image, exit_status=status, minute=status)
        with pytest.raises(PromotionError, match=said) as caught:
            requirements.check(store, wanted, environment())
        assert "web sha256:1111" in str(caught.value)
        assert "worker sha256:2222" in str(caught.value)
    record_stage(store, WORKER, exit_status=0, minute=2)
    assert set(requirements.check(store, wanted, environment()).stages) == {"acceptance"}


def test_all_images_of_an_environment_are_in_use(tmp_path: Path) -> None:
    """The ledger lists all of them, not only the first."""
    ledger = Ledger(DirectoryStore(tmp_path))
    template = ComposeTemplate(name="staging", file="compose.yaml", service="web", port=80)
    ledger.create(environment(), template)
    assert ledger.in_use() == {WEB.key, WORKER.key}
    assert environment().images == [WEB, WORKER]
