"""The shop's SQLite file: shared by the web server's threads, the worker and the demo loader."""

from __future__ import annotations

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

SCHEMA = """
CREATE TABLE products (
    slug TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    description TEXT NOT NULL,
    colour TEXT NOT NULL,
    price INTEGER NOT NULL CHECK (price > 0),       -- cents
    stock INTEGER NOT NULL CHECK (stock >= 0)
);
CREATE TABLE orders (
    id INTEGER PRIMARY KEY,
    customer TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'placed' CHECK (state IN ('placed', 'packed')),
    placed_at TEXT NOT NULL DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ')),
    packed_at TEXT
);
CREATE TABLE order_lines (
    order_id INTEGER NOT NULL REFERENCES orders (id) ON DELETE CASCADE,
    slug TEXT NOT NULL,
    name TEXT NOT NULL,                             -- as they were when it was ordered
    price INTEGER NOT NULL,
    quantity INTEGER NOT NULL CHECK (quantity > 0),
    PRIMARY KEY (order_id, slug)
);
CREATE INDEX orders_waiting ON orders (id) WHERE state = 'placed';
"""


def create(file: Path) -> None:
    """Make the database unless it is there already.

    The web server and the worker start at the same time. Each makes a whole database aside and
    links it to its place; the second link fails, and the first one's database is used.
    """
    if file.exists():
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".shop-") as aside:
        fresh = Path(aside) / "shop.db"
        with closing(sqlite3.connect(fresh)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.executescript(SCHEMA)
        try:
            os.link(fresh, file)
        except FileExistsError:
            return


@contextmanager
def transaction(file: Path) -> Iterator[sqlite3.Connection]:
    """A connection whose changes are all made at the end, or none of them."""
    # IMMEDIATE: a transaction that writes waits for its turn when it starts, not in its middle.
    connection = sqlite3.connect(file, timeout=10, isolation_level="IMMEDIATE")
    with closing(connection) as database, database:
        database.row_factory = sqlite3.Row
        yield database
