"""A project with environments in all states, for tests of the board."""

from __future__ import annotations

import hashlib
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from pytest_ephemeral import machine
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import PromotionError
from pytest_ephemeral.images import stages
from pytest_ephemeral.images.stages import Stage as Passed
from pytest_ephemeral.models import Image, ImageReference
from pytest_ephemeral.project import Project
from pytest_ephemeral.promotion import approval
from pytest_ephemeral.promotion.approval_records import Approvals
from pytest_ephemeral.tables import Ready
from support.promotion import NAME, V1, V2, Site, Stage

CONFIGURATION = """
[images.shop]
provider = "local"
install = ["true"]

[templates.staging]
image = "shop"
command = "shop serve"
port = 8080

[promotion.production]
dns = "hosts"
record = "shop.example.test"
file = "hosts"
verify = { http = "/healthz", timeout = "600ms" }
requires = ["tests", "acceptance", "approval"]
"""

HOSTILE = "<script>document.title = 'stolen'</script>"


class BoardStage(Stage):
    """A ``Stage`` with a real project and its configuration."""

    def __init__(self, folder: Path, port: int, **settings: Any) -> None:
        requires = ["tests", "acceptance", "approval"]
        super().__init__(folder, port, **{"requires": requires, **settings})
        root = folder / "shop"
        root.mkdir()
        (root / "ephemeral.toml").write_text(CONFIGURATION)
        project = Project.open(root / "ephemeral.toml", root)
        self.project = project
        self.ledger = project.ledger

    def bake(self, version: str, *, minutes: float = 30) -> ImageReference:
        """Record an image and its artifact."""
        file = self.folder / f"shop-{version}-py3-none-any.whl"
        file.write_text(version)
        artifact = self.project.artifacts.push(file, name="shop", version=version)
        key = f"sha256:{hashlib.sha256(version.encode()).hexdigest()}"
        now = datetime.now(UTC)
        image = Image(
            name="shop",
            key=key,
            provider="local",
            reference="x",
            digest=key,
            artifact=artifact.digest,
            baked_at=now - timedelta(minutes=minutes),
            baked_by="ci@build-7",
        )
        self.project.images.catalog.record(image)
        return ImageReference.to(image)

    def record_stage(
        self, image: ImageReference, stage: str, *, failed: int = 0, passed: int = 41
    ) -> None:
        """Record the result of a test stage."""
        stages.record(
            self.project.store,
            Passed(
                stage=stage,
                run=f"20261123T0{failed}1500Z-{stage}",
                image=image.key,
                digest=image.digest or "",
                tests={"passed": passed, "failed": failed},
                exit_status=1 if failed else 0,
                finished_at=datetime.now(UTC),
                revision="4be71c09d2aa55c17b0e",
                ci_url=f"https://ci.example.test/{stage}",
            ),
        )

    def ask(self, id: str, *, wait: float = 1800) -> None:
        """Request approval of an environment."""
        approval.ask(self.ledger, self.get(id), wait=Duration(wait), publish=lambda *_: None)

    def decide(self, id: str, decision: Any, by: str, comment: str = "") -> None:
        Approvals(self.project.store).decide(
            id, decision, by=by, comment=comment, now=datetime.now(UTC)
        )


def fill_board(folder: Path, sites: dict[str, Site]) -> BoardStage:
    """Add environments: one in production, one that failed, one that waits, two that run."""
    stage = BoardStage(folder, sites["v1"].port)
    hosts = {"v1": V1, "v2": V2}
    old, new, odd = stage.bake("1.4.2", minutes=900), stage.bake("1.5.0"), stage.bake("1.5.1")
    for image in (old, new):
        stage.record_stage(image, "tests")
        stage.record_stage(image, "acceptance", passed=12)
    stage.add("staging-7f3k2q", hosts["v1"], image=old, owner=_owner("ci", "build-7"))
    stage.ask("staging-7f3k2q")
    stage.decide("staging-7f3k2q", "approved", "Anna Keller", "Checkout and returns look right.")
    stage.promoter().promote("staging-7f3k2q")
    stage.add("staging-k2v6nj", hosts["v2"], image=odd, owner=_owner("ci", "build-7"))
    stage.record_stage(odd, "tests", passed=41)
    stage.record_stage(odd, "acceptance", passed=12)
    stage.ask("staging-k2v6nj")
    stage.decide("staging-k2v6nj", "approved", "Anna Keller")
    with suppress(PromotionError):
        sites["v2"].refuses = lambda asked: asked == NAME
        impatient = Ready(http="/healthz", timeout=Duration(0.1))
        changed = msgspec.structs.replace(stage.promotion, verify=impatient)
        stage.promoter(promotion=changed).promote("staging-k2v6nj")
    stage.record_stage(odd, "tests", passed=38, failed=3)
    stage.ledger.remove("staging-k2v6nj")
    stage.add("staging-m4x8wd", hosts["v2"], image=new, owner=_owner("ci", "build-7"))
    stage.ask("staging-m4x8wd")
    stage.add("staging-c9t2vb", hosts["v2"], image=odd, ttl=200, owner=_owner("anna", "desk-3"))
    stage.add(
        "german-h6pz5s", hosts["v1"], image=new, owner=_owner("bo", "laptop"), state="launching"
    )
    stage.ask("staging-c9t2vb")
    stage.decide("staging-c9t2vb", "rejected", "Bo Lindqvist", "The basket loses its second line.")
    return stage


def _owner(user: str, host: str) -> Any:
    elsewhere = hashlib.sha256(host.encode()).hexdigest()[:32]  # the id of another machine
    return msgspec.structs.replace(
        machine.this_owner("run"), user=user, host=host, machine=elsewhere
    )


def use_local_provider(stage: BoardStage) -> None:
    """Record the local provider for all environments, for a screenshot."""
    for one in stage.ledger.entries():
        stage.ledger.change(one.id, provider="local")
