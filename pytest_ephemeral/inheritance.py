"""``extends``: a table that has all keys of another one but those that it writes itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pytest_ephemeral.errors import closest
from pytest_ephemeral.reading import Problem, join, read
from pytest_ephemeral.tables import EXTENDS, Name

Tables = Mapping[str, Mapping[str, Any]]

#: What a key that is written puts out of the table that is extended: they can't be combined.
_INSTEAD: Final[Mapping[str, tuple[str, ...]]] = {
    "port": ("ports",),
    "ports": ("port",),
    "context": ("base", "reference", "install"),
    "base": ("context", "reference"),
    "reference": ("context", "base", "artifact", "build", "sources", "install"),
}


def merge_tables(tables: Tables, where: str, noun: str) -> dict[str, dict[str, Any]]:
    """All tables with what they extend; one that is extended comes before those that extend it.

    Args:
        tables: The recipes or the templates, as TOML gave them.
        where: The path of what they are in.
        noun: What they are, for people.

    Raises:
        Problem: There is no table of that name, or one extends itself.
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
    """The table, the one it extends, the one that extends, and so on."""
    chain = [name]
    while EXTENDS in tables[chain[-1]]:
        at = join(join(where, chain[-1]), EXTENDS)
        base = read(tables[chain[-1]][EXTENDS], Name, at)
        if base not in tables:
            raise Problem(at, f"no {noun} {base!r}.{closest(base, tables)}")
        if base in chain:
            circle = [*chain[chain.index(base) :], base]
            raise Problem(at, f"it extends itself: {' → '.join(circle)}")
        chain.append(base)
    return chain


def _leave_out(base: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """What is extended, without what can't be combined with what is written."""
    replaced = {each for key in table for each in _INSTEAD.get(key, ())} - table.keys()
    return {key: value for key, value in base.items() if key not in replaced}


def _merge(base: Mapping[str, Any], table: Mapping[str, Any]) -> dict[str, Any]:
    """Both tables' keys; of those in both, tables are merged, and all else is the second's."""
    both = {
        key: _merge(base[key], value)
        for key, value in table.items()
        if isinstance(value, dict) and isinstance(base.get(key), dict)
    }
    return {**base, **table, **both}
