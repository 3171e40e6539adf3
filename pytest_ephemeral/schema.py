"""Make the JSON Schema of ``ephemeral.toml`` from the types of the configuration.

``ephemeral.schema.json`` is the schema with the package's own providers; a test checks that it is
up to date. Its dialect is draft 7, which editors' TOML extensions and validate-pyproject support.
"""

from __future__ import annotations

import inspect
import json
import re
import types
from collections.abc import Iterable
from typing import Any, Final, Union, get_args, get_origin, get_type_hints

import msgspec

from pytest_ephemeral import providers
from pytest_ephemeral.config import Document
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.models import to_builtins
from pytest_ephemeral.reading import keys_of
from pytest_ephemeral.tables import EXTENDS, NAME_PATTERN, Promotion, Table

DIALECT: Final = "http://json-schema.org/draft-07/schema#"
ID: Final = "https://pytest-ephemeral.readthedocs.io/ephemeral.schema.json"

#: A template without a port must have a readiness check by its log or by a command.
_READY_WITHOUT_PORT: Final = {
    "required": ["ready"],
    "properties": {"ready": {"anyOf": [{"required": ["log"]}, {"required": ["command"]}]}},
}


def schema(provider_names: Iterable[str] = tuple(providers.TABLE)) -> dict[str, Any]:
    """Make the schema of a whole ``ephemeral.toml``.

    Args:
        provider_names: The providers of images and templates; by default the package's own.

    Raises:
        ConfigurationError: There is no such provider.
    """
    definitions: dict[str, Any] = {}
    images, templates = [], []
    for provider in map(providers.load, provider_names):
        templates.append(_refer(provider.template_type, definitions))
        _template(definitions[provider.template_type.__name__], provider)
        if provider.recipe_type is not None:
            images.append(_refer(provider.recipe_type, definitions))
            _recipe(definitions[provider.recipe_type.__name__], provider.name)
    document = _table(Document, definitions)
    document["properties"] |= {
        "images": _tables_by_name(images),
        "templates": _tables_by_name(templates),
        "promotion": _tables_by_name([_refer(Promotion, definitions)]),
    }
    document |= {"description": "Ephemeral environments for test stages."}
    head = {"$schema": DIALECT, "$id": ID, "title": "pytest-ephemeral"}
    return {**head, **document, "$defs": dict(sorted(definitions.items()))}


def format_schema(document: dict[str, Any]) -> str:
    """Format a schema as the text of a file."""
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def for_validate_pyproject(tool_name: str) -> dict[str, Any]:  # noqa: ARG001 - validate-pyproject's signature
    """The schema of ``[tool.pytest-ephemeral]``, for validate-pyproject.

    Args:
        tool_name: The table's name in ``tool``; ignored.
    """
    return schema()


def _kind(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    """The schema of a type annotation. None is left out, as TOML has no null."""
    origin, arguments = get_origin(kind), get_args(kind)
    if isinstance(kind, type) and issubclass(kind, Table):
        return _refer(kind, definitions)
    if origin in {Union, types.UnionType}:
        members = [_kind(each, definitions) for each in arguments if each is not types.NoneType]
        return members[0] if len(members) == 1 else {"anyOf": members}
    if origin is list:
        return {"type": "array", "items": _kind(arguments[0], definitions)}
    if origin is dict:
        names = _kind(arguments[0], definitions)
        values = _kind(arguments[1], definitions)
        return {"type": "object", "propertyNames": names, "additionalProperties": values}
    return msgspec.json.schema(kind, schema_hook=_duration_schema)


def _duration_schema(kind: type) -> dict[str, Any]:
    if kind is Duration:
        return {"type": "string", "pattern": Duration.PATTERN, "examples": ["90s", "5m", "2h"]}
    raise NotImplementedError(f"no schema of {kind!r}")


def _refer(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    if kind.__name__ not in definitions:
        definitions[kind.__name__] = _table(kind, definitions)
    return {"$ref": f"#/$defs/{kind.__name__}"}


def _table(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(kind, include_extras=True)
    meanings = meanings_of(kind)
    fields = keys_of(kind)
    properties = {}
    for key, field in fields.items():
        properties[key] = _kind(hints[field.name], definitions)
        if "$ref" in properties[key]:  # draft 7 ignores all other keywords next to it
            continue
        if field.name in meanings:
            properties[key]["description"] = meanings[field.name]
        if isinstance(field.default, bool | int | float | str):
            properties[key]["default"] = to_builtins(field.default)
    return {
        "type": "object",
        "description": (inspect.getdoc(kind) or "").partition("\n")[0],
        "properties": properties,
        "required": [key for key, field in fields.items() if field.required],
        "additionalProperties": False,
    }


def meanings_of(kind: type) -> dict[str, str]:
    """The meanings of fields: ``Attributes:`` in the docstrings of a class and its bases."""
    meanings: dict[str, str] = {}
    for each in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(each.__doc__ or "").partition("Attributes:\n")
        for name, text in re.findall(r"^    (\w+): (.+(?:\n {5,}.+)*)", section, re.MULTILINE):
            meanings[name] = " ".join(text.replace("``", "`").split())
    return meanings


def _tables_by_name(kinds: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "type": "object",
        "propertyNames": {"pattern": NAME_PATTERN},
        "additionalProperties": kinds[0] if len(kinds) == 1 else {"anyOf": kinds},
    }


def _recipe(definition: dict[str, Any], provider: str) -> None:
    """Add the rules about combinations of keys to the schema of a recipe."""
    definition["properties"]["provider"] = {"const": provider, "description": "The provider."}
    _require(definition, {"required": sorted({*definition["required"], "provider"})})
    definition["not"] = {
        "required": ["reference"],
        "anyOf": [{"required": ["artifact"]}, {"required": ["install"]}],
    }


def _template(definition: dict[str, Any], provider: Any) -> None:
    """Add the rules about combinations of keys to the schema of a template."""
    definition["properties"]["provider"] = {"const": provider.name, "description": "The provider."}
    needed: dict[str, Any] = {"required": definition["required"]}
    if "url" not in definition["required"]:  # a template with a URL has its port there
        definition["not"] = {"required": ["port", "ports"]}
        needed["anyOf"] = [{"required": ["port"]}, {"required": ["ports"]}]
        if not provider.template_type.needs_port:
            needed["anyOf"].append(_READY_WITHOUT_PORT)
    _require(definition, needed)


def _require(definition: dict[str, Any], needed: dict[str, Any]) -> None:
    """Require keys, except in tables with ``extends``, which may inherit them."""
    definition["required"] = []
    definition["anyOf"] = [{"required": [EXTENDS]}, needed]
