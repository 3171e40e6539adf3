"""A machine with an environment, an image and a victim, for tests that forge records."""

from __future__ import annotations

import contextlib
import io
import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import strategies as st
from msgspec.structs import replace

from pytest_ephemeral import cli, labels, machine
from pytest_ephemeral.images import claim, stages
from pytest_ephemeral.images.catalog import Catalog
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Artifact, Environment, Image, ImageReference, encode
from pytest_ephemeral.promotion.approval_records import Approvals
from pytest_ephemeral.promotion.dns import DnsRecord
from pytest_ephemeral.promotion.journal import Deployment, Journal, PromotionRun
from pytest_ephemeral.providers.local.folder import Folder
from pytest_ephemeral.providers.local.prefix import Prefix
from pytest_ephemeral.store import open_store
from pytest_ephemeral.tables import Template

KEY = "sha256:" + "ab" * 32


PAST = datetime.now(UTC).replace(microsecond=0) - timedelta(hours=3)


#: This process, as an owner that launched an environment four hours ago.
OWNER = replace(machine.this_owner("run"), uptime=machine.uptime() - 4 * 3600)


CONFIGURATION = """
[images.shop]
provider = "local"
install = ['touch "$PREFIX/app"']

[templates.staging]
image = "shop"
command = "true"
port = 8080
ready = { tcp = true, timeout = "100ms" }

[promotion.production]
dns = "hosts"
record = "shop.example.test"
file = "hosts"
drain = "10ms"
keep-old = "10ms"
"""


class World:
    """A machine with a store, environments and images of ours, and things that are not.

    Args:
        top: A folder for all of it.
        victim: A process that is not ours.
    """

    def __init__(self, top: Path, victim: int) -> None:
        self.top = top
        self.victim = victim
        self.folder = top / "project"
        self.folder.mkdir()
        (self.folder / "ephemeral.toml").write_text(CONFIGURATION)
        self.store = open_store(".ephemeral", self.folder)
        self.foreign = [
            top / "victim",
            top / "state" / "environments" / "victim",
            top / "state" / "environments" / "staging-labels",
            top / "prefixes" / "victim",
            top / "prefixes" / ("cd" * 12),
            top / "environments" / "staging-aaaaaa",
        ]
        for place in self.foreign:
            place.mkdir(parents=True)
            (place / "precious").write_text(f"precious {place}")
        other = {labels.ID: "staging-other"}
        (self.foreign[2] / "labels.json").write_text(json.dumps(other))
        (top / "prefixes").chmod(0o755)

    def fill(self) -> None:
        """Write valid records of every kind."""
        image = self._image()
        ledger = Ledger(self.store)
        for id in ("staging-aaaaaa", "staging-bbbbbb"):
            os.close(Folder.of(id).make({labels.ID: id}))
            ledger.create(self._environment(id, image), Template(name="staging", provider="local"))
        Catalog(self.store).record(image)
        stages.record(
            self.store,
            stages.Stage(
                stage="tests",
                run="r1",
                image=KEY,
                digest=KEY,
                exit_status=0,
                finished_at=PAST,
                tests={"passed": 1},
            ),
        )
        held = claim.BakeClaim(owner=OWNER, image="shop", since=PAST)
        self.store.create(f"bakes/{'ab' * 32}.json", encode(held))
        environment = ledger.get("staging-aaaaaa")
        deadline = PAST + timedelta(hours=9)
        Approvals(self.store).request(environment, deadline=deadline, now=PAST)
        self._promote(ledger.get("staging-bbbbbb"))
        artifact = Artifact(
            name="shop",
            version="1",
            filename="shop.whl",
            digest=KEY,
            size=1,
            pushed_at=PAST,
        )
        artifacts = open_store(".ephemeral/artifacts", self.folder)
        artifacts.create("entries/shop/1.json", encode(artifact))

    def _promote(self, environment: Environment) -> None:
        """Journal a promotion that has ended, and a rollback that was cut short."""
        target = Deployment(
            environment=environment.id,
            image=environment.image,
            records=[DnsRecord(kind="A", values=["127.0.0.1"])],
            at=PAST,
        )
        before = Deployment(environment="staging-aaaaaa", at=PAST)
        journal = Journal(self.store, "production")
        for kind in ("promote", "rollback"):
            run = PromotionRun(
                id=f"{kind}-1", kind=kind, owner=OWNER, started_at=PAST, target=target
            )
            journal.begin(run)
            if kind == "promote":
                journal.note(head={"current": target, "previous": before})
                journal.close("done", before)

    def bake(self) -> None:
        """Bake the image, and export it."""
        self.bundle = self.folder / "shop.image"
        assert run(self, "bake") == 0
        assert run(self, "images", "export", "shop", str(self.bundle)) == 0

    def _image(self) -> Image:
        prefix = Prefix.of(KEY)
        return Image(
            name="shop",
            key=KEY,
            provider="local",
            reference=str(prefix.tree),
            digest=KEY,
            inputs={"prefix": str(prefix.tree.parent)},
            archive=KEY,
            baked_at=PAST,
            baked_by="anna@box",
        )

    def _environment(self, id: str, image: Image) -> Environment:
        return Environment(
            id=id,
            template="staging",
            provider="local",
            image=ImageReference.to(image),
            created_at=PAST,
            expires_at=PAST + timedelta(hours=1),
            owner=OWNER,
            labels={labels.ID: id},
            handle={"folder": str(Folder.of(id).path), "supervisor": str(self.victim)},
        )

    def records(self) -> list[Path]:
        """The files of all records and seals that are still files."""
        seals = (self.top / "prefixes").glob("*.json")
        found = sorted([*(self.folder / ".ephemeral").rglob("*.json"), *seals])
        return [file for file in found if file.is_file() and not file.is_symlink()]

    def hostile(self) -> st.SearchStrategy[Any]:
        """Values that a forged record may have in any place."""
        texts = [
            *("..", ".", "/", "", "\n", "\0", "a/../..", "sha256:../victim", "sha256:", "é" * 200),
            *("docker", "ec2", "nowhere", "local", "staging-aaaaaa", "staging-bbbbbb", "victim"),
            *(str(place) for place in self.foreign),
            *(f"../{place.name}" for place in self.foreign),
            *(str(self.victim), "1", "sha256:" + "cd" * 32, "ready", "9999-12-31T23:59:59Z"),
            "unix:///nowhere/engine.sock",
        ]
        others: list[Any] = [None, True, -1, 0, 2**70, 1e308, [], {}, {"folder": "/"}, [[[]]]]
        return st.sampled_from([*texts, *others])

    def untouched(self) -> bool:
        """Whether everything that is not ours is unchanged."""
        files = all(
            (place / "precious").read_text() == f"precious {place}" for place in self.foreign
        )
        return files and bool(machine.read_process_start(self.victim))


def run(world: World, *words: str) -> int:
    """Run a command with JSON output; an error that is not ours is raised."""
    config, printed = str(world.folder / "ephemeral.toml"), io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        status = cli.main(["--json", "--config", config, *words])
    assert isinstance(json.loads(printed.getvalue()), dict), words
    return status
