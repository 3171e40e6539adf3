"""A third party's DNS backend, registered by its entry point: the example of the docs.

The database has those columns of PowerDNS's own schema that matter here.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from support import entry_points
from support.plugin_project import PluginProject, make_project

EXAMPLE = Path(__file__).parents[2] / "examples" / "dns_backend"

PROMOTION = """
[promotion.production]
dns = "powerdns-sqlite"
zone = "example.test"
record = "shop.example.test"
record-ttl = "1s"
file = "pdns.sqlite3"
drain = "100ms"
keep-old = "1m"
"""

SCHEMA = """
CREATE TABLE domains (id INTEGER PRIMARY KEY, name VARCHAR(255) NOT NULL);
CREATE TABLE records (id INTEGER PRIMARY KEY, domain_id INTEGER, name VARCHAR(255),
    type VARCHAR(10), content VARCHAR(65535), ttl INTEGER);
INSERT INTO domains (id, name) VALUES (1, 'example.test');
INSERT INTO records (domain_id, name, type, content, ttl)
    VALUES (1, 'example.test', 'SOA', 'ns admin 1 2 3 4 5', 60),
           (1, 'other.example.test', 'A', '192.0.2.1', 60);
"""


@pytest.fixture
def project(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PluginProject]:
    """A project whose name is in a database; all child processes find the backend."""
    site = tmp_path / "site"
    entry_points.register(site, "dns", "powerdns-sqlite = sqlite_dns:SqliteDns")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), str(EXAMPLE)]))
    folder = tmp_path / "project"
    folder.mkdir()
    made = make_project(folder, monkeypatch, tmp_path_factory)
    made.configure((folder / "ephemeral.toml").read_text() + PROMOTION)
    with sqlite3.connect(folder / "pdns.sqlite3") as database:
        database.executescript(SCHEMA)
    yield made
    made.end_production()


def run(project: PluginProject, *arguments: str, status: int = 0) -> str:
    """Run a command, and return its output."""
    done = project.command(*arguments, status=status)
    return done.stdout + done.stderr


def addresses(project: PluginProject) -> list[tuple[str, int]]:
    """The addresses of the name in the database, with their TTLs."""
    with sqlite3.connect(project.folder / "pdns.sqlite3") as database:
        return database.execute(
            "SELECT content, ttl FROM records WHERE name = 'shop.example.test'"
        ).fetchall()


def up(project: PluginProject) -> tuple[str, str]:
    """Launch an environment, and return its id and address."""
    before = set(project.list_ids())
    url = run(project, "up", project.one, "--ttl", "10m").splitlines()[-1]
    (new,) = set(project.list_ids()) - before
    return new, url.rpartition("//")[2].partition(":")[0]


def test_promotion_and_rollback_update_the_database(project: PluginProject) -> None:
    """Records of other names stay as they are."""
    first, at_first = up(project)
    second, at_second = up(project)
    run(project, "promote", first, "--to", "production")
    assert addresses(project) == [(at_first, 1)]
    run(project, "promote", second, "--to", "production")
    assert addresses(project) == [(at_second, 1)]
    run(project, "rollback", "production")
    assert addresses(project) == [(at_first, 1)]
    with sqlite3.connect(project.folder / "pdns.sqlite3") as database:
        rows = database.execute("SELECT type, content FROM records WHERE id < 3").fetchall()
    assert rows == [("SOA", "ns admin 1 2 3 4 5"), ("A", "192.0.2.1")]


def test_a_record_changed_by_others_stays(project: PluginProject) -> None:
    """A record that differs from the one of the last promotion is not replaced."""
    first, _ = up(project)
    second, _ = up(project)
    run(project, "promote", first, "--to", "production")
    with sqlite3.connect(project.folder / "pdns.sqlite3") as database:
        database.execute("UPDATE records SET content = '192.0.2.9' WHERE name LIKE 'shop%'")
    assert "someone else changed" in run(project, "promote", second, "--to", "production", status=1)
    assert addresses(project) == [("192.0.2.9", 1)]


def test_a_missing_database_is_an_error(project: PluginProject) -> None:
    """The error names the file, and no file is created."""
    first, _ = up(project)
    (project.folder / "pdns.sqlite3").unlink()
    assert "pdns.sqlite3: unable to open" in run(
        project, "promote", first, "--to", "production", status=1
    )
    assert not (project.folder / "pdns.sqlite3").exists()
