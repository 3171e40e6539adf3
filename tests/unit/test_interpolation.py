"""``{env:NAME}`` and ``{image:NAME}``: filled in where used, and masked in all output."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from urllib.parse import quote, quote_plus

import pytest

from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.interpolation import fill, references
from pytest_ephemeral.masking import bake_secrets, mask
from pytest_ephemeral.models import Image

IMAGE = Image(
    name="shop",
    key="sha256:1",
    provider="local",
    reference="/prefix/1",
    digest="sha256:2",
    baked_at=datetime.now(UTC),
)


def filled(text: str, **environ: str) -> str:
    return fill({"KEY": text}, environ=environ, images={"shop": IMAGE}).variables["KEY"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("{env:TOKEN}", "s3cret"),
        ("postgres://shop:{env:TOKEN}@db/{env:TOKEN}", "postgres://shop:s3cret@db/s3cret"),
        ("{image:shop}/share", "/prefix/1/share"),
        ("${HOME} {} {x} {{x}}", "${HOME} {} {x} {{x}}"),
        ('{"a": {"b": 1}}', '{"a": {"b": 1}}'),
        ('{"token":{env:TOKEN}}', '{"token":s3cret}'),
        ("{{env:TOKEN}}", "{env:TOKEN}"),
        ("{{image:shop}}", "{image:shop}"),
    ],
)
def test_fill_replaces_only_references(text: str, expected: str) -> None:
    """Shell variables, JSON and doubled braces stay unchanged."""
    assert filled(text, TOKEN="s3cret") == expected


def test_filled_in_values_are_not_expanded_again() -> None:
    """A secret that looks like a reference stays unchanged."""
    assert filled("{env:TOKEN}", TOKEN="{env:OTHER}") == "{env:OTHER}"


def test_an_unset_variable_is_reported_with_its_key() -> None:
    """The error has the variable, and the key that refers to it."""
    with pytest.raises(
        ConfigurationError, match=r"templates\.staging\.env\.KEY: .* SHOP_KEY, which is not set"
    ):
        fill({"KEY": "{env:SHOP_KEY}"}, environ={}, images={}, where="templates.staging.env")


def test_an_unknown_image_gets_a_suggestion() -> None:
    """The error names the closest image, as a typing error is likely."""
    with pytest.raises(ConfigurationError, match=r"no image 'ship'. Did you mean 'shop'"):
        filled("{image:ship}")


def test_recorded_values_keep_variable_references() -> None:
    """Without an ``environ``, images are filled in and secrets are not."""
    values = {"KEY": "{env:TOKEN} {image:shop} {{env:TOKEN}}"}
    done = fill(values, environ=None, images={"shop": IMAGE})
    assert done.variables == {"KEY": "{env:TOKEN} /prefix/1 {{env:TOKEN}}"}
    assert done.secrets == ()


def test_only_values_of_environment_variables_are_secrets() -> None:
    """Only the variable's value is a secret, not the text around it."""
    done = fill(
        {"URL": "db:{env:TOKEN}@x", "MODE": "staging"}, environ={"TOKEN": "s3cret"}, images={}
    )
    assert done.secrets == ("s3cret",)
    assert mask("db:s3cret@x s3cret staging", done.secrets) == "db:***@x *** staging"


def test_overlapping_secrets_are_fully_masked() -> None:
    """The longer secret is masked first; otherwise its rest would stay visible."""
    assert mask("password password123", ["password", "password123"]) == "*** ***"


def test_each_line_of_a_secret_is_masked() -> None:
    """Logs are masked line by line, and a PEM key has many lines."""
    done = fill({"KEY": "{env:PEM}"}, environ={"PEM": "-----BEGIN\nabcdef\n-----END"}, images={})
    assert mask("it said abcdef", done.secrets) == "it said ***"


@pytest.mark.parametrize("value", ["", "1", "abc"])
def test_short_values_are_not_masked(value: str) -> None:
    """An empty or short value occurs in too many words."""
    done = fill({"KEY": "{env:FLAG}"}, environ={"FLAG": value}, images={})
    assert done.variables == {"KEY": value}
    assert done.secrets == ()
    assert mask("1 line of abc", [value]) == "1 line of abc"


def test_references_are_listed_by_kind() -> None:
    """A template's needs are known before anything is filled in."""
    text = "{env:A}{image:shop}{{image:no}}{env:B}"
    assert references(text, "env") == ["A", "B"]
    assert references(text, "image") == ["shop"]


@pytest.mark.parametrize(
    "secret", ["swordfish & co", 'a"b\\c/d+e', "pässwörd🔑x", "hunter2hunter2"]
)
@pytest.mark.parametrize("before", ["", "u", "us", "user:"])
def test_encoded_forms_of_a_secret_are_masked(secret: str, before: str) -> None:
    """These are JSON, URL encoding, and base64 at any offset."""
    whole = (before + secret + ":x").encode()
    forms = [
        secret,
        json.dumps(secret),
        json.dumps(secret, ensure_ascii=False),
        quote(secret),
        quote(secret, safe=""),
        quote_plus(secret),
    ]
    for form in forms:
        assert mask(f"<{form}>", [secret]) in {"<***>", '<"***">'}
    for encoded in (base64.b64encode(whole), base64.urlsafe_b64encode(whole)):
        shown = mask(encoded.decode(), [secret])
        assert "***" in shown
        assert len(shown.replace("***", "")) <= len(encoded) - len(secret)


def test_passwords_in_urls_are_secrets_of_a_bake() -> None:
    """Their encoded and their decoded forms are both secrets."""
    environ = {
        "PIP_INDEX_URL": "https://anna:sword%20fish@index/simple https://other/",
        "https_proxy": "http://proxy:3128",
        "REMOTE": "https://ghp_token123@github.com/x",
        "KEY": "passed-on",
        "OTHER": "not-passed-on",
    }
    assert set(bake_secrets(["KEY"], environ)) == {
        "sword%20fish",
        "sword fish",
        "ghp_token123",
        "passed-on",
    }
