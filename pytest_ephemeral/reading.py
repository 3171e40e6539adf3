"""Convert TOML values to the types of the configuration; each error has the path of its key.

msgspec converts the single values. It could convert whole tables, too, but its errors leave out
the key in a path such as ``$.templates[...]``, so this module takes tables apart.
"""

from __future__ import annotations

import json
import types
from collections.abc import Mapping
from typing import (
    Annotated,
    Any,
    Final,
    Literal,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import closest
from pytest_ephemeral.models import decode_hook
from pytest_ephemeral.tables import (
    NAME_PATTERN,
    PYTHON_PATTERN,
    VARIABLE_PATTERN,
    Promotion,
    Recipe,
    Table,
    Template,
)

T = TypeVar("T")

_WORDS: Mapping[Any, str] = {
    str: "a string",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    Duration: 'a duration such as "90s", "5m" or "2h"',
}

_PATTERNS: Mapping[str, str] = {
    NAME_PATTERN: " of at most 48 lower-case letters, digits and inner hyphens",
    VARIABLE_PATTERN: " of letters, digits and underscores, as a variable's name is",
    PYTHON_PATTERN: ' such as "3.13"',
    "^/": ' that starts with "/"',
}


#: How many optional keys of a table a message names.
_FEW_KEYS: Final = 8


class Problem(Exception):  # noqa: N818 - only used inside the configuration's modules
    """An error at one place of the configuration.

    Attributes:
        where: The path of the key, as in TOML.
        text: The error, such as the expected type.
    """

    def __init__(self, where: str, text: str) -> None:
        super().__init__(f"{where}: {text}" if where else text)
        self.where = where
        self.text = text


def join(where: str, key: str) -> str:
    """The path of a key in a table; the key is quoted if TOML requires it."""
    bare = key and all(letter.isascii() and (letter.isalnum() or letter in "-_") for letter in key)
    written = key if bare else json.dumps(key)
    return f"{where}.{written}" if where else written


def read(value: Any, kind: Any, where: str) -> Any:
    """Convert one value.

    Args:
        value: The value, as read from TOML.
        kind: The type annotation that it must match.
        where: The path of its key.

    Raises:
        Problem: It does not match.
    """
    member = _member(kind, value)
    if isinstance(value, dict) and isinstance(member, type) and issubclass(member, Table):
        return read_table(value, member, where)
    if isinstance(value, dict) and get_origin(member) is dict:
        return _read_mapping(value, member, where)
    if isinstance(value, dict) and _is_list_of_tables(kind):
        raise Problem(where, f"expected a list of tables: write [[{where}]], not [{where}]")
    if isinstance(value, list) and get_origin(member) is list:
        (item,) = get_args(member)
        return [read(each, item, f"{where}[{at}]") for at, each in enumerate(value)]
    return _read_leaf(value, kind, where)


def read_table(value: Mapping[str, Any], kind: type[T], where: str, *, name: str = "") -> T:
    """Convert a table.

    Args:
        value: The table, as read from TOML.
        kind: The subclass of ``Table``.
        where: The path of the table.
        name: The table's name, for types with the field ``name``.

    Raises:
        Problem: A key is unknown, missing or wrong, or two keys can't be combined.
    """
    if not isinstance(value, dict):
        raise Problem(where, f"expected {describe_type(kind)}, got {format_value(value)}")
    fields = keys_of(kind)
    for key in value:
        if key not in fields:
            reason = kind.unsupported.get(key)  # type: ignore[attr-defined]
            raise Problem(join(where, key), reason or f"unknown key.{closest(key, fields)}")
    hints = get_type_hints(kind, include_extras=True)
    found: dict[str, Any] = {"name": name} if name else {}
    for key, field in fields.items():
        if key in value:
            if isinstance(value[key], str) and not value[key].strip():
                raise Problem(join(where, key), "it is empty: write a value, or remove the key")
            found[field.name] = read(value[key], hints[field.name], join(where, key))
        elif field.required:
            raise Problem(join(where, key), f"missing; expected {describe_type(hints[field.name])}")
    table = kind(**found)
    try:
        table.check()  # type: ignore[attr-defined]
    except ValueError as error:
        raise Problem(where, str(error)) from None
    return table


def keys_of(kind: type) -> dict[str, msgspec.structs.FieldInfo]:
    """The keys that a table may have, with their fields.

    A recipe's, template's or promotion's ``name`` is the name of its table, not a key in it.
    """
    named = issubclass(kind, Recipe | Template | Promotion)
    return {
        field.encode_name: field
        for field in msgspec.structs.fields(kind)
        if not (named and field.name == "name")
    }


def describe_type(kind: Any) -> str:
    """Describe an expected type, for people."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        return describe_type(arguments[0]) + "".join(_constraint(each) for each in arguments[1:])
    if origin is Literal:
        listed = [json.dumps(each) for each in arguments]
        return " or ".join(listed) if len(listed) < 3 else f"one of {', '.join(listed)}"
    if origin in {Union, types.UnionType}:
        return " or ".join(describe_type(each) for each in arguments if each is not types.NoneType)
    if origin is list:
        return f"a list, each {describe_type(arguments[0])}"
    if origin is dict and arguments[1] is not Any:
        return f"a table, each value {describe_type(arguments[1])}"
    return _WORDS.get(kind) or f"a table{_format_keys(kind)}"


def _format_keys(kind: Any) -> str:
    """The keys of a table for a message: the required ones, or else all if they are few."""
    if not (isinstance(kind, type) and issubclass(kind, Table)):
        return ""
    fields = keys_of(kind)
    required = [key for key, field in fields.items() if field.required]
    if required:
        return f" with {' and '.join(required)}"
    several = "any of " * (len(fields) > 1)
    return f" with {several}{', '.join(fields)}" if len(fields) <= _FEW_KEYS else ""


def format_value(value: Any) -> str:
    """Format a value for a message: shortened; tables and lists only by their type."""
    if isinstance(value, dict):
        return "a table"
    if isinstance(value, list):
        return "a list"
    if isinstance(value, int) and value.bit_length() > 64:
        return "a huge number"
    written = json.dumps(value, default=str, ensure_ascii=False)
    return written if len(written) <= 60 else f"{written[:57]}…"


def _member(kind: Any, value: Any) -> Any:
    """The member of a union type that may match a value; for other types, the type itself."""
    if get_origin(kind) is Annotated:
        return _member(get_args(kind)[0], value)
    if get_origin(kind) not in {Union, types.UnionType}:
        return kind
    members = [_member(each, value) for each in get_args(kind)]
    return next((each for each in members if _may_be(each, value)), kind)


def _may_be(kind: Any, value: Any) -> bool:
    if isinstance(value, dict):
        is_table = isinstance(kind, type) and issubclass(kind, Table)
        return get_origin(kind) is dict or is_table
    return isinstance(value, list) and get_origin(kind) is list


def _is_list_of_tables(kind: Any) -> bool:
    item = next(iter(get_args(kind)), None) if get_origin(kind) is list else None
    return isinstance(item, type) and issubclass(item, Table)


def _read_mapping(value: Mapping[str, Any], kind: Any, where: str) -> dict[str, Any]:
    key_kind, value_kind = get_args(kind)
    for key in value:
        path = join(where, key)
        if not key.isprintable():
            raise Problem(path, "a key must not contain control characters")
        _read_leaf(key, key_kind, path)
    return {key: read(item, value_kind, join(where, key)) for key, item in value.items()}


def _read_leaf(value: Any, kind: Any, where: str) -> Any:
    if isinstance(value, str) and "\0" in value:
        raise Problem(where, "must not contain a NUL character")
    try:
        return msgspec.convert(value, kind, dec_hook=decode_hook)
    except msgspec.ValidationError as error:
        expected = str(
            error.__cause__ or f"expected {describe_type(kind)}, got {format_value(value)}"
        )
        raise Problem(where, expected + _near_choice(value, kind)) from None


def _near_choice(value: Any, kind: Any) -> str:
    """The closest of the valid values, as a hint; empty if none is close, or any may be given."""
    if not isinstance(value, str) or get_origin(kind) is not Literal:
        return ""
    hint = closest(value, get_args(kind))
    return f".{hint}" if hint.startswith(" Did") else ""


def _constraint(meta: Any) -> str:
    if not isinstance(meta, msgspec.Meta):
        return ""
    if meta.pattern is not None:
        return _PATTERNS.get(meta.pattern, f" that matches {meta.pattern}")
    if meta.ge is not None and meta.le is not None:
        return f" from {meta.ge} to {meta.le}"
    if meta.gt is not None:
        return f" above {meta.gt}"
    return " that is not empty" if meta.min_length else ""
