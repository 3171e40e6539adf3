"""Property tests: any configuration is read or refused, never with a traceback."""

from __future__ import annotations

import contextlib
import io
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pytest_ephemeral import cli, config
from pytest_ephemeral.errors import ConfigurationError

VALID: dict[str, Any] = {
    "default-template": "staging",
    "store": "records",
    "artifacts": {"repository": "built"},
    "publish": ["auto"],
    "images": {
        "shop": {
            "provider": "local",
            "artifact": "dist/shop-*.whl",
            "install": ["true"],
            "verify": ["true"],
            "pass-env": ["HOME"],
        },
        "ready-made": {"provider": "local", "reference": "/srv/shop"},
    },
    "templates": {
        "staging": {
            "image": "shop",
            "command": {"web": "serve", "worker": "work"},
            "port": 8080,
            "ready": {"http": "/", "status": [200], "headers": {"X-Key": "{env:KEY}"}},
            "env": {"MODE": "staging", "TREE": "{image:ready-made}"},
            "seed": "load",
            "health": "report",
            "ttl": "2h",
        },
        "other": {
            "image": "ready-made",
            "command": "serve",
            "ports": {"http": 8080, "admin": 9000},
            "ready": {"tcp": True, "port": "admin", "log": "[0-9]+", "timeout": "5m"},
        },
    },
    "promotion": {
        "production": {"dns": "hosts", "record": "shop.example.com", "verify": {"http": "/"}}
    },
    "webhook": [{"url": "https://example.com", "events": ["up"], "headers": {"A": "b"}}],
}

#: All values of TOML, and words that have a meaning elsewhere in the file.
words = st.sampled_from(
    ["shop", "local", "staging", "http", "{env:", "{image:x}", "{env:A B}", "1h", "(", "[[a", "/"]
)
texts = st.one_of(words, st.text(st.characters(exclude_categories=["Cs"]), max_size=12))
scalars = st.one_of(texts, st.booleans(), st.integers(), st.floats(), st.just(10**400))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)


def places(table: Any, above: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of every value in a document."""
    entries = table.items() if isinstance(table, dict) else enumerate(table)
    for key, value in entries:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from places(value, (*above, key))


@st.composite
def mutated(draw: st.DrawFn) -> dict[str, Any]:
    """The valid configuration, with some values dropped, renamed, replaced or inserted."""
    document: dict[str, Any] = json.loads(json.dumps(VALID))
    for _ in range(draw(st.integers(1, 3))):
        every = list(places(document))
        if not every:
            break
        *above, key = draw(st.sampled_from(every))
        table: Any = document
        for step in above:
            table = table[step]
        match draw(st.sampled_from(["drop", "rename", "replace", "insert"])):
            case "drop":
                del table[key]
            case "rename" if isinstance(table, dict):
                table[draw(texts)] = table.pop(key)
            case "insert" if isinstance(table, dict):
                table[draw(texts)] = draw(values)
            case _:
                table[key] = draw(values)
    return document


def toml(value: Any) -> str:
    """A value as TOML; tables are inline, which means the same and is easier to write."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    return quoted(value) if isinstance(value, str) else str(value)


def quoted(text: str) -> str:
    return '"' + "".join(f"\\U{ord(letter):08x}" for letter in text) + '"'


def document(table: dict[str, Any]) -> bytes:
    return "".join(f"{quoted(key)} = {toml(value)}\n" for key, value in table.items()).encode()


@st.composite
def garbled(draw: st.DrawFn) -> bytes:
    """The valid file with some bytes overwritten."""
    data = bytearray(document(VALID))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data) - 1))
        data[at : at + draw(st.integers(0, 5))] = draw(st.binary(max_size=5))
    return bytes(data)


contents = st.one_of(mutated().map(document), garbled(), st.binary(max_size=40))


@contextlib.contextmanager
def written(data: bytes) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "ephemeral.toml"
        file.write_bytes(data)
        yield file


def test_the_unmutated_configuration_is_valid() -> None:
    """Otherwise the mutations would test almost nothing."""
    with written(document(VALID)) as file:
        assert config.load(file).template(None).name == "staging"


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contents)
@example(b"")
@example(b"\xff\xfe")
@example(b"[images.shop]\nprovider = 'local'\ninstall = 1979-05-27T07:32:00Z\n")
@example(b"images = {a = {provider = 'local', reference = 'x'}, b = [1]}\n")
def test_load_returns_a_config_or_raises_configuration_error(data: bytes) -> None:
    """The error names the file, and no other exception is raised."""
    with written(data) as file:
        try:
            read = config.load(file)
        except ConfigurationError as error:
            assert str(file) in str(error)  # noqa: PT017 - not raising it is right as well
        else:
            assert isinstance(read, config.Config)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contents)
def test_the_command_line_reports_invalid_configurations(data: bytes) -> None:
    """The exit status is 2, and the error names the file, without a traceback."""
    said, talked = io.StringIO(), io.StringIO()
    with (
        written(data) as file,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(talked),
    ):
        status = cli.main(["bake", "no-such-image", "--config", str(file)])
    assert status == 2
    assert talked.getvalue().startswith(f"error: {file}")
    assert "Traceback" not in talked.getvalue()
    assert said.getvalue() == ""
