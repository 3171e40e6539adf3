"""What the shop sells."""

from __future__ import annotations

import sqlite3
from typing import TypedDict, cast


class Product(TypedDict):
    """A tea; its price is in cents."""

    slug: str
    name: str
    description: str
    colour: str
    price: int
    stock: int


def products(database: sqlite3.Connection) -> list[Product]:
    """All of them, by name."""
    return [_product(row) for row in database.execute("SELECT * FROM products ORDER BY name")]


def product(database: sqlite3.Connection, slug: str) -> Product | None:
    """One of them, or None."""
    row = database.execute("SELECT * FROM products WHERE slug = ?", [slug]).fetchone()
    return None if row is None else _product(row)


def put(database: sqlite3.Connection, product: Product) -> None:
    """Add a product, or change the one of that slug."""
    database.execute(
        "INSERT OR REPLACE INTO products"
        " VALUES (:slug, :name, :description, :colour, :price, :stock)",
        product,
    )


def clear(database: sqlite3.Connection) -> int:
    """Remove every product, and say how many there were."""
    return database.execute("DELETE FROM products").rowcount


def _product(row: sqlite3.Row) -> Product:
    return cast("Product", dict(row))
