"""The JSON Schema in the package agrees with the reader of the configuration."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from validate_pyproject.api import Validator
from validate_pyproject.errors import ValidationError

from pytest_ephemeral import config, schema
from pytest_ephemeral.errors import ConfigurationError

FILE = Path(schema.__file__).with_name("ephemeral.schema.json")

#: A configuration with the local provider and a promotion.
EXAMPLE = """\
default-template = "staging"
store = ".ephemeral"

[artifacts]
repository = ".ephemeral/artifacts"

[images.shop]
provider = "local"
artifact = "dist/shop-*.whl"
install = "deploy/install.sh"
verify = ["$PREFIX/bin/shop --version"]

[templates.staging]
image = "shop"
command = "$PREFIX/bin/shop serve --host $HOST --port $PORT"
port = 8080
ready = { http = "/healthz", timeout = "60s" }
env = { SHOP_MODE = "staging", SHOP_KEY = "{env:SHOP_KEY}" }
seed = "$PREFIX/bin/shop load-demo-data"
health = "fail"
ttl = "2h"

[templates.staging-worker]
image = "shop"
command = { web = "$PREFIX/bin/shop serve --port $PORT", worker = "$PREFIX/bin/shop work" }
port = 8080

[promotion.production]
dns = "route53"
zone = "example.com"
record = "shop.example.com"
record-ttl = "30s"
verify = { http = "/healthz" }
requires = ["tests", "approval"]
drain = "60s"
keep-old = "1h"
"""


@pytest.fixture(scope="module")
def validator() -> Any:
    """A validator with the schema, as in an editor."""
    document = json.loads(FILE.read_text())
    jsonschema.Draft7Validator.check_schema(document)
    return jsonschema.Draft7Validator(document)


def test_the_schema_file_is_up_to_date() -> None:
    """``pytest-ephemeral schema > pytest_ephemeral/ephemeral.schema.json`` updates it."""
    assert FILE.read_text() == schema.format_schema(schema.schema())


def test_the_example_is_valid_for_reader_and_schema(tmp_path: Path, validator: Any) -> None:
    """The reader loads it, and an editor marks no errors."""
    file = tmp_path / "ephemeral.toml"
    file.write_text(EXAMPLE)
    assert config.load(file).template(None).name == "staging"
    assert list(validator.iter_errors(tomllib.loads(EXAMPLE))) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("artifact =", "artefact ="),
        ('provider = "local"', ""),
        ('provider = "local"', 'provider = "lokal"'),
        ('install = "deploy/install.sh"', "install = 1"),
        ('install = "deploy/install.sh"', 'reference = "/srv/shop"'),
        ("[images.shop]", "[images.Shop]"),
        ('image = "shop"', 'image = "shop"\nname = "staging"'),
        ("port = 8080", "port = 80800"),
        ("port = 8080", ""),
        ("port = 8080", "port = 8080\nports = { http = 8080 }"),
        ('"/healthz"', '"healthz"'),
        ('timeout = "60s"', 'timeout = "60"'),
        ('timeout = "60s"', "timeout = 60"),
        ("SHOP_MODE =", '"SHOP MODE" ='),
        ('health = "fail"', 'health = "failed"'),
        ("web =", '"../web" ='),
        ('record = "shop.example.com"', ""),
        ("keep-old", "keep_old"),
        ("[artifacts]", "[artefacts]"),
    ],
)
def test_reader_and_schema_refuse_the_same_errors(
    tmp_path: Path, validator: Any, old: str, new: str
) -> None:
    """An editor marks what the reader refuses."""
    assert old in EXAMPLE
    text = EXAMPLE.replace(old, new, 1)
    file = tmp_path / "ephemeral.toml"
    file.write_text(text)
    with pytest.raises(ConfigurationError):
        config.load(file)
    assert list(validator.iter_errors(tomllib.loads(text)))


def test_every_key_has_a_description() -> None:
    """Editors show it when the user points at a key."""
    document = schema.schema()
    unexplained = [
        f"{name}.{key}"
        for name, table in document["$defs"].items()
        for key, entry in table["properties"].items()
        if "$ref" not in entry and not entry.get("description")
    ]
    assert unexplained == []


def test_validate_pyproject_uses_the_schema() -> None:
    """It finds the schema by its entry point if both packages are installed."""
    validate = Validator()
    tool: dict[str, Any] = {"pytest-ephemeral": tomllib.loads(EXAMPLE)}
    document = {"project": {"name": "shop", "version": "1"}, "tool": tool}
    validate(document)
    tool["pytest-ephemeral"]["templates"]["staging"]["port"] = "8080"
    with pytest.raises(ValidationError, match="pytest-ephemeral"):
        validate(document)
