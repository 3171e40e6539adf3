"""Orders: placed by customers, packed by the worker."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from typing import Any

from shop import catalogue


class RefusedError(Exception):
    """An order that can't be taken; the message is for the customer."""


def place(database: sqlite3.Connection, customer: str, basket: Mapping[str, int]) -> int:
    """Take an order, and its goods out of the stock.

    Args:
        database: In a transaction: a refused order must leave the stock as it was.
        customer: Who orders.
        basket: How many of each slug.

    Returns:
        The order's number.

    Raises:
        RefusedError: The basket is empty, or something in it can't be had.
    """
    if not customer.strip():
        raise RefusedError("An order needs a name.")
    if not basket or any(quantity < 1 for quantity in basket.values()):
        raise RefusedError("An order needs at least one of each tea in it.")
    number = database.execute("INSERT INTO orders (customer) VALUES (?)", [customer]).lastrowid
    assert number is not None
    for slug, quantity in basket.items():
        _take(database, number, slug, quantity)
    return number


def _take(database: sqlite3.Connection, number: int, slug: str, quantity: int) -> None:
    taken = database.execute(
        "UPDATE products SET stock = stock - :quantity WHERE slug = :slug AND stock >= :quantity",
        {"slug": slug, "quantity": quantity},
    )
    product = catalogue.product(database, slug)
    if product is None:
        raise RefusedError(f"There is no tea called {slug}.")
    if not taken.rowcount:
        raise RefusedError(f"There are only {product['stock']} of {product['name']} left.")
    database.execute(
        "INSERT INTO order_lines VALUES (?, ?, ?, ?, ?)",
        [number, slug, product["name"], product["price"], quantity],
    )


def pack_next(database: sqlite3.Connection) -> int | None:
    """Pack the order that has waited longest, and return its number; None when none waits."""
    packed = database.execute(
        "UPDATE orders SET state = 'packed', packed_at = strftime('%Y-%m-%dT%H:%M:%fZ')"
        " WHERE id = (SELECT min(id) FROM orders WHERE state = 'placed') RETURNING id"
    ).fetchall()
    return int(packed[0]["id"]) if packed else None


def order(database: sqlite3.Connection, number: int) -> dict[str, Any] | None:
    """One order with its lines and total, as the API shows it; None when there is none."""
    row = database.execute("SELECT * FROM orders WHERE id = ?", [number]).fetchone()
    if row is None:
        return None
    lines = database.execute(
        "SELECT slug, name, price, quantity FROM order_lines WHERE order_id = ? ORDER BY slug",
        [number],
    )
    found = {**dict(row), "lines": [dict(line) for line in lines]}
    return found | {"total": sum(line["price"] * line["quantity"] for line in found["lines"])}


def orders(database: sqlite3.Connection) -> list[dict[str, Any]]:
    """All orders, the newest first, without their lines."""
    return [dict(row) for row in database.execute("SELECT * FROM orders ORDER BY id DESC")]


def clear(database: sqlite3.Connection) -> int:
    """Remove every order, and say how many there were."""
    database.execute("DELETE FROM order_lines")
    return database.execute("DELETE FROM orders").rowcount
