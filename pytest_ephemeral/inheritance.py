"""``extends``: a table inherits the keys of another table, and may override them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pytest_ephemeral.errors import closest
from pytest_ephemeral.reading import Problem, join, read
from pytest_ephemeral.tables import EXTENDS, Name

Tables = Mapping[str, Mapping[str, Any]]

#: By a key of a table: the keys that are then not inherited, as they can't be combined with it.
_INSTEAD: Final[Mapping[str, tuple[str, ...]]] = {
    "port": ("ports",),
    "ports": ("port",),
    "context": ("base", "reference", "install"),
    "base": ("context", "reference"),
    "reference": ("context", "base", "artifact", "build", "sources", "install"),
}


def merge_tables(tables: Tables, where: str, noun: str) -> dict[str, dict[str, Any]]:
    """Merge all tables with those that they extend. A table comes after the one it extends.

    Args:
        tables: The recipes or the templates by name, as read from TOML.
        where: The path of the table that they are in.
        noun: ``image`` or ``template``, for messages.

    Raises:
        Problem: A table extends one that does not exist, or extends itself.
    """
    merged: dict[str, dict[str, Any]] = {}
    for name in tables:
        for each in reversed(_find_chain(name, tables, where, noun)):
            if each not in merged:
                table = tables[each]
                base = merged[table[EXTENDS]] if EXTENDS in table else {}
                merged[each] = _merge(_leave_out(base, table), table)
    return merged


def _find_chain(name: str, tables: Tables, where: str, noun: str) -> list[str]:
    """The names of a table, of the table that it extends, and so on."""
    chain = [name]
    while EXTENDS in tables[chain[-1]]:
        at = join(join(where, chain[-1]), EXTENDS)
        base = read(tables[chain[-1]][EXTENDS], Name, at)
        if base not in tables:
            raise Problem(at, f"no {noun} {base!r}.{closest(base, tables)}")
        if base in chain:
            cycle = [*chain[chain.index(base) :], base]
            raise Problem(at, f"it extends itself: {' → '.join(cycle)}")
        chain.append(base)
    return chain


def _leave_out(base: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """The inherited keys, without those that can't be combined with the table's own."""
    replaced = {each for key in table for each in _INSTEAD.get(key, ())} - table.keys()
    return {key: value for key, value in base.items() if key not in replaced}


def _merge(base: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Merge two tables, and the tables in both of them. Other values are the second table's."""
    both = {
        key: _merge(base[key], value)
        for key, value in table.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return {**base, **table, **both}
