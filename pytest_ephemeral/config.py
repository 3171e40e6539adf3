"""Read ``ephemeral.toml``, or ``[tool.pytest-ephemeral]`` in pyproject.toml, strictly.

An error raises a ``ConfigurationError`` with the file, the path of the key, the expected value,
and the closest valid name.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from pytest_ephemeral import providers, template_checks
from pytest_ephemeral.discovery import TOOL
from pytest_ephemeral.errors import ConfigurationError, closest
from pytest_ephemeral.inheritance import Tables, merge_tables
from pytest_ephemeral.models import Announcement
from pytest_ephemeral.reading import Problem, format_value, join, read, read_table
from pytest_ephemeral.tables import (
    EXTENDS,
    Audience,
    KeepInStore,
    Name,
    Promotion,
    Recipe,
    Table,
    Template,
)

T = TypeVar("T")


class Artifacts(Table, frozen=True, kw_only=True):
    """``[artifacts]``.

    Attributes:
        repository: The artifact repository: a folder, relative to the configuration's, or a URL.
    """

    repository: str = ".ephemeral/artifacts"


class Webhook(Table, frozen=True, kw_only=True):
    """``[[webhook]]``: a URL that receives events about environments.

    Attributes:
        url: The URL; ``{env:…}`` works here.
        events: The events to send; by default all.
        headers: Headers that are sent with each event; ``{env:…}`` works here.
    """

    url: str
    events: list[Announcement] = msgspec.field(default_factory=list)
    headers: dict[str, str] = msgspec.field(default_factory=dict)


class Document(Table, frozen=True, kw_only=True):
    """The whole file. Its images, templates and promotions are read later.

    Attributes:
        default_template: The template of tests that name none.
        store: The store: a folder, or ``s3://bucket/prefix``.
        publish: Where to send an environment's URL; ``auto`` is the CI server that this runs on.
        require_signature: The file of a public key: only images signed with it are used.
        keep_in_store: Which images have their content in the store. With ``auto``, container
            images have it only in CI or in a shared store, and not if a registry has them.
    """

    default_template: Name | None = None
    store: str = ".ephemeral"
    require_signature: str | None = None
    keep_in_store: KeepInStore = "auto"
    artifacts: Artifacts = Artifacts()
    images: dict[Name, dict[str, Any]] = msgspec.field(default_factory=dict)
    templates: dict[Name, dict[str, Any]] = msgspec.field(default_factory=dict)
    promotion: dict[Name, dict[str, Any]] = msgspec.field(default_factory=dict)
    publish: list[Audience] = msgspec.field(default_factory=lambda: ["auto"])
    webhook: list[Webhook] = msgspec.field(default_factory=list)


class Config(msgspec.Struct, frozen=True):
    """A checked configuration.

    Attributes:
        path: The configuration file.
        root: Its folder, to which relative paths are relative.
        images: The recipes by name, each of its provider's ``recipe_type``.
        templates: The templates by name, each of its provider's ``template_type`` and with
            ``provider`` set.
    """

    path: Path
    root: Path
    default_template: str | None
    store: str
    require_signature: Path | None
    keep_in_store: KeepInStore
    artifacts_repository: str
    images: Mapping[str, Recipe]
    templates: Mapping[str, Template]
    promotions: Mapping[str, Promotion]
    publish: tuple[Audience, ...]
    webhooks: tuple[Webhook, ...]

    def template(self, name: str | None) -> Template:
        """A template by its name.

        Args:
            name: The template's name; None for the default one, or the only one.

        Raises:
            ConfigurationError: There is no such template, or there are several and no default.
        """
        name = name or self.default_template
        if name is not None:
            return _lookup(name, self.templates, "template", self.path)
        if len(self.templates) == 1:
            return next(iter(self.templates.values()))
        if not self.templates:
            raise ConfigurationError(
                f"{self.path}: there are no templates: add a [templates.NAME] table"
            )
        raise ConfigurationError(
            f"{self.path}: no default among the templates {', '.join(sorted(self.templates))}: "
            "name one (pytest: --ephemeral-template NAME), or set default-template"
        )

    def recipe(self, name: str) -> Recipe:
        """A recipe by its image's name.

        Raises:
            ConfigurationError: There is no such recipe.
        """
        return _lookup(name, self.images, "image", self.path)

    def promotion(self, name: str) -> Promotion:
        """A promotion by its name.

        Raises:
            ConfigurationError: There is no such promotion.
        """
        return _lookup(name, self.promotions, "promotion", self.path)


def load(path: Path) -> Config:
    """Read and check a configuration.

    Args:
        path: The file: pyproject.toml, or the content of an ephemeral.toml under any name.

    Raises:
        ConfigurationError: The file can't be read, or has an error.
    """
    path = path.absolute()
    document = _parse(path)
    where = ""
    try:
        if path.name == "pyproject.toml":
            where = f"tool.{TOOL}"
            document = _tool_table(document)
        return _config(path, document, where)
    except Problem as problem:
        raise ConfigurationError(f"{path}: {problem}") from None


def _parse(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode().removeprefix("\ufeff"))
    except OSError as error:
        raise ConfigurationError(f"{path}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise ConfigurationError(
            f"{path}: it is not UTF-8 (byte {error.start}), which TOML requires"
        ) from None
    except RecursionError:
        raise ConfigurationError(f"{path}: tables or lists are nested too deeply") from None
    except ValueError as error:  # a TOMLDecodeError, or a number with too many digits
        raise ConfigurationError(f"{path}: it is not valid TOML: {error}") from None


def _tool_table(document: Mapping[str, Any]) -> dict[str, Any]:
    tool = document.get("tool")
    table = tool.get(TOOL) if isinstance(tool, dict) else None
    if not isinstance(table, dict):
        raise Problem("", f"it has no [tool.{TOOL}] table")
    return table


def _config(path: Path, raw: Mapping[str, Any], where: str) -> Config:
    document = read_table(raw, Document, where)
    recipes = _read_recipes(document.images, join(where, "images"))
    templates = _read_templates(document.templates, join(where, "templates"), recipes)
    promotions = {
        name: _promotion(table, join(join(where, "promotion"), name), name)
        for name, table in document.promotion.items()
    }
    default = document.default_template
    if default is not None and default not in templates:
        at = join(where, "default-template")
        raise Problem(at, f"no template {default!r}.{closest(default, templates)}")
    return Config(
        path=path,
        root=path.parent,
        default_template=default,
        store=document.store,
        require_signature=(
            None if document.require_signature is None else path.parent / document.require_signature
        ),
        keep_in_store=document.keep_in_store,
        artifacts_repository=document.artifacts.repository,
        images=recipes,
        templates=templates,
        promotions=promotions,
        publish=tuple(document.publish),
        webhooks=tuple(document.webhook),
    )


def _read_recipes(tables: Tables, where: str) -> dict[str, Recipe]:
    found: dict[str, Recipe] = {}
    for name, table in merge_tables(tables, where, "image").items():
        at = join(where, name)
        if (base := table.get(EXTENDS)) is not None:
            _check_provider(_provider(table["provider"], join(at, "provider")), found[base], at)
        found[name] = _recipe(table, at, name)
    return {name: found[name] for name in tables}


def _read_templates(
    tables: Tables, where: str, recipes: Mapping[str, Recipe]
) -> dict[str, Template]:
    found: dict[str, Template] = {}
    for name, table in merge_tables(tables, where, "template").items():
        at = join(where, name)
        if (base := table.get(EXTENDS)) is not None:
            _check_provider(_provider_of(table, at, recipes), found[base], at)
        found[name] = _template(table, at, name, recipes)
    return {name: found[name] for name in tables}


def _check_provider(provider: Any, base: Recipe | Template, where: str) -> None:
    """Refuse to extend a table of another provider, which has other keys."""
    if provider.name != base.provider:
        raise Problem(
            join(where, EXTENDS),
            f"{base.name!r} is for {base.provider!r}, but this is for {provider.name!r}: "
            "extend one of the same provider",
        )


def _recipe(table: Mapping[str, Any], where: str, name: str) -> Recipe:
    if "provider" not in table:
        raise Problem(join(where, "provider"), f"missing; one of {', '.join(providers.names())}")
    provider = _provider(table["provider"], join(where, "provider"))
    if provider.recipe_type is None:
        raise Problem(
            join(where, "provider"),
            f"the provider {provider.name!r} bakes no images: its templates need none",
        )
    recipe: Recipe = read_table(table, provider.recipe_type, where, name=name)
    if recipe.reference is not None and (recipe.artifact or recipe.install):
        raise Problem(
            join(where, "reference"),
            "it can't be combined with artifact or install: remove one of them",
        )
    return recipe


def _template(
    table: Mapping[str, Any], where: str, name: str, recipes: Mapping[str, Recipe]
) -> Template:
    provider = _provider_of(table, where, recipes)
    template: Template = read_table(table, provider.template_type, where, name=name)
    template_checks.check_template(template, where, recipes)
    image = recipes.get(template.image or "")
    if image is not None and image.provider != provider.name:
        raise Problem(
            join(where, "provider"),
            f"it is {provider.name!r}, but its image {image.name!r} is for {image.provider!r}",
        )
    return msgspec.structs.replace(template, provider=provider.name)


def _provider_of(table: Mapping[str, Any], where: str, recipes: Mapping[str, Recipe]) -> Any:
    """The provider in a template's table, or else the provider of its image."""
    if "provider" in table:
        return _provider(table["provider"], join(where, "provider"))
    if "image" not in table:
        raise Problem(where, "it needs an image or a provider")
    image = read(table["image"], str, join(where, "image"))
    template_checks.check_image(image, recipes, where)
    return _provider(recipes[image].provider, where)


def _promotion(table: Mapping[str, Any], where: str, name: str) -> Promotion:
    promotion = read_table(table, Promotion, where, name=name)
    if promotion.verify is not None:
        template_checks.check_ready(promotion.verify, join(where, "verify"))
    return promotion


def _provider(name: object, where: str) -> Any:
    if not isinstance(name, str):
        raise Problem(where, f"expected a provider's name, got {format_value(name)}")
    try:
        return providers.load(name)
    except ConfigurationError as error:
        raise Problem(where, str(error)) from None


def _lookup(name: str, table: Mapping[str, T], noun: str, path: Path) -> T:
    try:
        return table[name]
    except KeyError:
        tables = noun if noun == "promotion" else f"{noun}s"
        hint = closest(name, table) or f" Define it in [{tables}.{name}]"
        raise ConfigurationError(f"{path}: no {noun} {name!r}.{hint}") from None
