"""Environments for tests of promotion: web servers in this process, with a production name.

The provider ``served`` has a file for each environment, with the facts that promotion needs:
whether it runs, whether it is kept, and its expiry.
"""

from __future__ import annotations

import hashlib
import json
import os
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import msgspec
import pytest

from pytest_ephemeral import labels, providers
from pytest_ephemeral.artifacts import open_repository
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.images.pipeline import Images
from pytest_ephemeral.ledger import Ledger
from pytest_ephemeral.models import Artifact, Endpoint, Environment, ImageReference
from pytest_ephemeral.promotion import dns
from pytest_ephemeral.promotion.dns_polling import Times
from pytest_ephemeral.promotion.journal import Journal
from pytest_ephemeral.promotion.promoter import Promoter
from pytest_ephemeral.providers.protocol import Owned, Status
from pytest_ephemeral.store import open_store
from pytest_ephemeral.tables import Promotion, Ready, Template
from support import web
from support.environments import make_environment

#: Part of the loopback addresses, different in each worker of xdist.
BLOCK = 10 + int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
V1, V2 = f"127.77.{BLOCK}.1", f"127.77.{BLOCK}.2"
NAME = "shop.example.test"
FOLDER = "SERVED_FOLDER"


class ServedProvider:
    """A provider with only the methods that promotion calls."""

    name: ClassVar[str] = "served"
    template_type: ClassVar[type[Template]] = Template
    recipe_type: ClassVar[None] = None
    forwards_ports: ClassVar[bool] = False

    def status(self, environment: Environment) -> Status:
        known = _read(environment.id)
        if known is None or known["ended"]:
            return Status("gone", "it is not there")
        return Status("running")

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        _change(environment.id, expires=labels.NEVER if expires_at is None else str(expires_at))

    def keep(self, environment: Environment) -> None:
        _change(environment.id, kept=True)

    def destroy(self, environment: Environment) -> None:
        _change(environment.id, ended=True)

    def list_owned(self) -> Iterator[Owned]:
        for file in Path(os.environ[FOLDER]).glob("*.json"):
            known = json.loads(file.read_text())
            if not known["ended"]:
                yield Owned(file.stem, {labels.ID: file.stem, labels.EXPIRES: known["expires"]})

    def run(self, environment: Environment, argv: Sequence[str], *, timeout: float | None) -> Any:
        raise NotImplementedError


def digest_of(text: str) -> str:
    """A digest for a name."""
    return f"sha256:{hashlib.sha256(text.encode()).hexdigest()}"


def install(patch: pytest.MonkeyPatch) -> None:
    """Register the provider in this process."""
    patch.setitem(providers.TABLE, "served", ("support.promotion:ServedProvider", None))


def _read(id: str) -> dict[str, Any] | None:
    file = Path(os.environ[FOLDER]) / f"{id}.json"
    return json.loads(file.read_text()) if file.exists() else None


def _change(id: str, **changes: Any) -> None:
    file = Path(os.environ[FOLDER]) / f"{id}.json"
    known = _read(id) or {}
    temporary = file.with_suffix(f".{os.getpid()}.{threading.get_ident()}")
    temporary.write_text(json.dumps({**known, **changes}))
    temporary.replace(file)


class Site:
    """A web server that answers with its name, or with errors."""

    def __init__(self, host: str, port: int, text: str) -> None:
        self.text = text
        self.port = port
        self.healthy = True
        #: Whether to answer a host name with an error, as for a missing virtual host, or a fault
        #: that only real clients meet.
        self.refuses: Callable[[str], bool] = lambda _: False
        site = self

        class Handler(web.Handler):
            def do_GET(self) -> None:
                asked = (self.headers.get("Host") or "").partition(":")[0]
                well = site.healthy and not site.refuses(asked)
                self.answer(200 if well else 503, site.text.encode())

        self._server = ThreadingHTTPServer((host, port), Handler)
        self._server.daemon_threads = False
        self._server.block_on_close = True
        self.thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.thread.start()

    def stop(self) -> None:
        if self.thread.is_alive():
            self._server.shutdown()
            self.thread.join()
            self._server.server_close()


class Stage:
    """A project with environments, and a production name, by default in a hosts file."""

    def __init__(self, folder: Path, port: int, **settings: Any) -> None:
        self.folder = folder
        self.port = port
        store = open_store(str(folder / "store"), folder)
        self.project: Any = SimpleNamespace(
            store=store,
            ledger=Ledger(store),
            artifacts=SimpleNamespace(entries=list[Artifact]),
            config=SimpleNamespace(root=folder),
            images=Images(store=store, artifacts=open_repository("artifacts", folder), root=folder),
        )
        self.ledger: Ledger = self.project.ledger
        defaults = {
            "name": "production",
            "dns": "hosts",
            "record": NAME,
            "file": "hosts",
            "verify": Ready(http="/healthz", timeout=Duration(0.6)),
            "record_ttl": Duration(1),
            "drain": Duration(60),
            "keep_old": Duration(600),
        }
        self.promotion = Promotion(**{**defaults, **settings})
        self.events: list[Any] = []
        self.published: list[tuple[str, str]] = []

    def promoter(self, **changes: Any) -> Promoter:
        promotion = changes.pop("promotion", self.promotion)
        backend = changes.pop("backend", None) or dns.load(promotion, self.folder)
        return Promoter(
            self.project,
            promotion,
            backend,
            publish=lambda environment, url: self.published.append((environment.id, url)),
            say=self.events.append,
            times=changes.pop("times", Times(patience=2.0, propagation=5.0)),
            **changes,
        )

    def add(self, id: str, host: str, *, ttl: float = 3600, **changes: Any) -> Environment:
        """Add a running environment."""
        expires_at = datetime.now(UTC) + timedelta(seconds=ttl)
        image = ImageReference(name="shop", key=digest_of(id), reference="x", digest=digest_of(id))
        values: dict[str, Any] = {
            "template": "staging",
            "provider": "served",
            "image": image,
            "url": f"http://{host}:{self.port}/",
            "endpoints": {"http": Endpoint(host=host, port=self.port)},
            "expires_at": expires_at,
            "state": "ready",
        }
        environment = make_environment(id, **values | changes)
        _change(id, expires=str(expires_at), kept=False, ended=False)
        self.ledger.create(environment, Template(name="staging", provider="served"))
        return environment

    def get(self, id: str) -> Environment:
        return self.ledger.get(id)

    def provider_state(self, id: str) -> Mapping[str, Any]:
        """The state of an environment in the provider's file."""
        known = _read(id)
        assert known is not None
        return known

    def when_live(self, id: str) -> Callable[[str], bool]:
        """For ``Site.refuses``: errors only when the production name points to the environment."""
        host = self.get(id).endpoints["http"].host
        return lambda asked: asked == self.promotion.record and host in self.addresses()

    def find_production(self) -> list[str]:
        """The environments that the ledger has as production."""
        return [one.id for one in self.ledger.entries() if one.production]

    def abandon(self) -> None:
        """Make the current promotion that of a dead process."""
        left = Journal(self.project.store, "production")
        left.note(owner=msgspec.structs.replace(left.run.owner, started="long ago"))

    def addresses(self) -> list[str]:
        """The addresses of the production name."""
        return dns.load(self.promotion, self.folder).addresses()


def free_port(*hosts: str) -> int:
    """A port that is free on all given addresses."""
    while True:
        with socket.socket() as probe:
            probe.bind((hosts[0], 0))
            port: int = probe.getsockname()[1]
        try:
            for host in hosts:
                with socket.socket() as probe:
                    probe.bind((host, port))
        except OSError:
            continue
        return port


@contextmanager
def sites(*hosts: str) -> Iterator[dict[str, Site]]:
    """Start web servers on some addresses and one port; by address."""
    port = free_port(*hosts)
    made = {host: Site(host, port, f"site {number}") for number, host in enumerate(hosts, 1)}
    try:
        yield made
    finally:
        for site in made.values():
            site.stop()


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Site]]:
    """The web servers of the environments v1 and v2, by id."""
    (tmp_path / "served").mkdir()
    install(monkeypatch)
    monkeypatch.setenv(FOLDER, str(tmp_path / "served"))
    monkeypatch.setenv("PYTEST_EPHEMERAL_STATE", str(tmp_path / "state"))
    with sites(V1, V2) as made:
        yield {"v1": made[V1], "v2": made[V2]}


@pytest.fixture
def make_stage(served: dict[str, Site], tmp_path: Path) -> Callable[..., Stage]:
    """Make a project in which v1 and v2 are up, and none is production."""

    def make(**settings: Any) -> Stage:
        made = Stage(tmp_path, served["v1"].port, **settings)
        made.add("v1", V1)
        made.add("v2", V2)
        return made

    return make


@pytest.fixture
def stage(make_stage: Callable[..., Stage]) -> Stage:
    """A project in which v1 is production, and v2 is up."""
    made = make_stage()
    made.promoter().promote("v1")
    return made
