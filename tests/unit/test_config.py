"""The configuration: how it is found and read, and the key that each error names."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

from pytest_ephemeral import config, discovery
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.providers.local.tables import LocalRecipe, LocalTemplate

WHOLE = """\
default-template = "staging"
store = "records"
publish = ["github"]

[artifacts]
repository = "built"

[images.shop]
provider = "local"
artifact = "dist/shop-*.whl"
install = "deploy/install.sh"
verify = ["$PREFIX/bin/shop --version"]
pass-env = ["PIP_INDEX_URL"]

[images.ready-made]
provider = "local"
reference = "/srv/shop"

[templates.staging]
image = "shop"
command = { web = "shop serve", worker = "shop work" }
port = 8080
ready = { http = "/healthz", status = [200, 204], timeout = "90s" }
env = { SHOP_MODE = "staging", SHOP_KEY = "{env:SHOP_KEY}", TREE = "{image:ready-made}" }
seed = "shop load"
health = "report"
ttl = "2h"

[templates.two-ports]
image = "ready-made"
command = "shop serve"
ports = { http = 8080, admin = 9000 }
ready = { tcp = true, port = "admin", log = "listening on [0-9]+" }

[promotion.production]
dns = "route53"
zone = "example.com"
record = "shop.example.com"
verify = { http = "/healthz" }
requires = ["tests", "approval"]

[[webhook]]
url = "https://chat.example.com/hook"
events = ["up"]
"""


def load(tmp_path: Path, text: str, name: str = "ephemeral.toml") -> config.Config:
    file = tmp_path / name
    file.write_text(text)
    return config.load(file)


def complaint(tmp_path: Path, text: str, name: str = "ephemeral.toml") -> str:
    """The message of a configuration error, without the file's path."""
    with pytest.raises(ConfigurationError) as raised:
        load(tmp_path, text, name)
    said = str(raised.value)
    assert said.startswith(f"{tmp_path / name}: ")
    return said.removeprefix(f"{tmp_path / name}: ")


def test_a_full_configuration_is_loaded(tmp_path: Path) -> None:
    """Every table becomes its provider's type, with defaults for missing keys."""
    read = load(tmp_path, WHOLE)
    assert read.root == tmp_path
    assert (read.store, read.artifacts_repository) == ("records", "built")
    assert isinstance(read.images["shop"], LocalRecipe)
    assert read.images["shop"].pass_env == ["PIP_INDEX_URL"]
    staging = read.templates["staging"]
    assert isinstance(staging, LocalTemplate)
    assert (staging.name, staging.provider, staging.ttl) == ("staging", "local", 7200)
    assert list(staging.processes()) == ["web", "worker"]
    assert staging.env["SHOP_KEY"] == "{env:SHOP_KEY}"
    assert read.templates["two-ports"].endpoints() == {"http": 8080, "admin": 9000}
    assert read.promotions["production"].keep_old == Duration(3600)
    assert read.publish == ("github",)
    assert read.webhooks[0].events == ["up"]


def test_an_empty_configuration_has_defaults(tmp_path: Path) -> None:
    """No key is required."""
    read = load(tmp_path, "")
    assert (read.store, read.artifacts_repository) == (".ephemeral", ".ephemeral/artifacts")
    assert read.publish == ("auto",)
    with pytest.raises(ConfigurationError, match="there are no templates"):
        read.template(None)


MINIMAL = """\
[images.shop]
provider = "local"
install = ["true"]

[templates.staging]
image = "shop"
command = "serve"
port = 8080
"""

COMPOSE_TEMPLATE = """\
[templates.c]
provider = "compose"
file = "compose.yaml"
service = "web"
endpoints = { db = 5432 }
[templates.staging]
"""


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("install =", "instal =", "images.shop.instal: unknown key. Did you mean 'install'?"),
        ('install = ["true"]', "", "images.shop: it needs install"),
        ('["true"]', '["true", 1]', "images.shop.install[1]: expected a string, got 1"),
        ('["true"]', "7", "images.shop.install: expected a string or a list, each a string, got 7"),
        ('["true"]', '["true"]\nreference = "/x"', "images.shop.reference: it can't be combined"),
        ('["true"]', '["true"]\nartifact = ""', "images.shop.artifact: it is empty: write"),
        ('["true"]', '" "', "images.shop.install: it is empty: write a value"),
        ('install = ["true"]', 'reference = ""', "images.shop.reference: it is empty"),
        ('["true"]', '["true"]\npython = "3"', 'images.shop.python: expected a string such as "3.'),
        ('provider = "local"', "", "images.shop.provider: missing; one of local"),
        ('"local"', '"locla"', "images.shop.provider: no provider 'locla'. Did you mean 'local'?"),
        ('"local"', "1", "images.shop.provider: expected a provider's name, got 1"),
        ("images.shop", "images.Shop", "images.Shop: expected a string of at most 48 lower-case"),
        ("[images.shop]", "[[images.shop]]", "images.shop: expected a table, got a list"),
        ('"shop"', '"shp"', "templates.staging.image: no image 'shp'. Did you mean 'shop'?"),
        ('image = "shop"', "", "templates.staging: it needs an image or a provider"),
        ('image = "shop"', "image = 1", "templates.staging.image: expected a string, got 1"),
        ('"shop"', '"shop"\nname = "x"', "templates.staging.name: unknown key."),
        ('command = "serve"', "", "templates.staging.command: missing; expected a string or a"),
        ('"serve"', '""', "templates.staging.command: it is empty: write a value, or remove"),
        ('"serve"', '"serve"\nuser = ""', "templates.staging.user: it is empty: write a value"),
        ('"serve"', '"serve"\nready = { log = "" }', "templates.staging.ready.log: it is empty"),
        ('"serve"', "{}", "templates.staging: its command is empty"),
        ('"serve"', '{ "../x" = "y" }', 'templates.staging.command."../x": expected a string of'),
        ('"serve"', '"a\\u0000b"', "templates.staging.command: must not contain a NUL character"),
        ("port = 8080", "", "templates.staging: needs port = NUMBER, or ports"),
        ("8080", '8080\nenv = { A = "{evn:B}" }', "templates.staging.env.A: {evn:B} is no placeh"),
        ("8080", '8080\nenv = { A = "{ENV:B}" }', "templates.staging.env.A: {ENV:B} is no placeh"),
        ("[images", '[webhook]\nurl = "x"\n[images', "webhook: expected a list of tables: write"),
        ("[images", 'publish = ["githb"]\n[images', 'publish[0]: expected one of "auto", "gi'),
        ("8080", "8080\nports = { a = 1 }", "templates.staging: port and ports can't be combined"),
        ("8080", '"8080"', 'templates.staging.port: expected a whole number from 1 to 65535'),
        ("8080", "true", "templates.staging.port: expected a whole number from 1 to 65535"),
        ("8080", "65536", "templates.staging.port: expected a whole number from 1 to 65535"),
        ("8080", "0", "templates.staging.port: expected a whole number from 1 to 65535"),
        ("8080", "0x" + "f" * 500, "templates.staging.port: expected a whole number"),
        ("port = 8080", "ports = { a = 0 }", "templates.staging.ports.a: expected a whole number"),
        ("8080", "8080\nttl = 60", 'templates.staging.ttl: expected a duration such as "90s"'),
        ("8080", '8080\nttl = "5m\\n"', 'templates.staging.ttl: expected a duration such as "90s"'),
        ("8080", '8080\nttl = "0s"', "templates.staging.ttl: expected more than 0"),
        ("8080", '8080\nttl = "9999999d"', "templates.staging.ttl: expected at most 36500d"),
        ("8080", '8080\nhealth = "ok"', 'templates.staging.health: expected "fail" or "report"'),
        ("8080", '8080\nprovider = "ec2"\nhibernate = true', "templates.staging.hibernate: inst"),
        ("8080", "8080\nready = 3", "templates.staging.ready: expected a table with any of http, "),
        ("[templates.staging]", COMPOSE_TEMPLATE,
            "templates.c.endpoints.db: expected a table with service and port, got 5432"),
        ("8080", "8080\nready = { tmeout = 1 }", "templates.staging.ready.tmeout: unknown key."),
        ("8080", '8080\nready = { timeout = "1"}', "templates.staging.ready.timeout: expected a"),
        ("8080", '8080\nready = { http = "x" }', "templates.staging.ready.http: expected a string"),
        ("8080", '8080\nready = { log = "(" }', "templates.staging.ready.log: not a regular"),
        ("8080", '8080\nready = { port = "x" }', "templates.staging.ready.port: no port 'x'."),
        ("8080", "8080\nenv = { A = 1 }", "templates.staging.env.A: expected a string, got 1"),
        ("8080", '8080\nenv = { "A=B" = "" }', 'templates.staging.env."A=B": expected a string'),
        ("8080", '8080\nenv = { A = "{env:B C}" }', "templates.staging.env.A: expected a"),
        ('"shop"', '"postgres:16"', "templates.staging.image: no image 'postgres:16'. An image"),
        ("8080", '8080\nenv = { A = "{image:sh}" }', "templates.staging.env.A: no image 'sh'."),
        ("[images", 'default-template = "x"\n[images', "default-template: no template 'x'."),
        ("[images", 'defaul-template = ""\n[images', "defaul-template: unknown key."),
        ("[images", "images = 1\n[webhook", "images: expected a table"),
        ("[images", 'promotion.p = { dns = 1 }\n[images', "promotion.p.dns: expected"),
        ("[images", '[promotion.p]\ndns = "hosts"\nrecord = "*.x.test"\n[images',
            "promotion.p: *.x.test: a hosts file has no wildcards"),
        ("[images", "[[webhook]]\nurl = 1\n[images", "webhook[0].url: expected a string, got 1"),
        ("[images", "artifacts = []\n[images", "artifacts: expected a table with repository"),
    ],
)  # fmt: skip
def test_an_error_names_its_key(tmp_path: Path, old: str, new: str, said: str) -> None:
    """The message has the file, the key's path, and the expected value or closest name."""
    assert old in MINIMAL
    assert complaint(tmp_path, MINIMAL.replace(old, new, 1)).startswith(said)


def test_a_template_needs_the_provider_of_its_image(tmp_path: Path, monkeypatch) -> None:
    """A container image can't run as local processes, for example."""
    other = tmp_path / "elsewhere.py"
    other.write_text(
        "from pytest_ephemeral.providers.local import LocalProvider\n"
        "class Elsewhere(LocalProvider):\n"
        '    name = "elsewhere"\n'
    )
    monkeypatch.syspath_prepend(tmp_path)
    table = dict(config.providers.TABLE) | {"elsewhere": ("elsewhere:Elsewhere", None)}
    monkeypatch.setattr(config.providers, "TABLE", table)
    text = MINIMAL.replace('image = "shop"', 'image = "shop"\nprovider = "elsewhere"')
    assert complaint(tmp_path, text) == (
        "templates.staging.provider: it is 'elsewhere', but its image 'shop' is for 'local'"
    )


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"a = = 1\n", "it is not valid TOML: Invalid value (at line 1, column 5)"),
        (b"\n[images", "it is not valid TOML: Expected ']' at the end of a table declaration (at"),
        (b"a = '\xff'\n", "it is not UTF-8 (byte 5)"),
        (b"a = " + b"[" * 5000, "tables or lists are nested too deeply"),
        (b"a = " + b"9" * 5000, "it is not valid TOML: Exceeds the limit"),
    ],
)
def test_invalid_toml_is_reported_with_its_place(tmp_path: Path, content: bytes, said: str) -> None:
    """The message has the line and column, or says that the file is not UTF-8."""
    file = tmp_path / "ephemeral.toml"
    file.write_bytes(content)
    with pytest.raises(ConfigurationError) as raised:
        config.load(file)
    assert str(raised.value).startswith(f"{file}: {said}")


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    """Editors on Windows write one."""
    file = tmp_path / "ephemeral.toml"
    file.write_bytes(b"\xef\xbb\xbf" + MINIMAL.encode())
    assert list(config.load(file).templates) == ["staging"]


def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path) -> None:
    """The message has the file's path and the system's reason."""
    with pytest.raises(ConfigurationError, match=r"none\.toml: can't be read: No such file"):
        config.load(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="can't be read: Is a directory"):
        config.load(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="as root, any file can be read")
def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    """The message has the system's reason, "Permission denied"."""
    file = tmp_path / "ephemeral.toml"
    file.touch(mode=0)
    with pytest.raises(ConfigurationError, match="can't be read: Permission denied"):
        config.load(file)


def test_errors_in_a_pyproject_name_its_table(tmp_path: Path) -> None:
    """The schema is the same, and the message has the key's full path."""
    text = re.sub(r"^\[", "[tool.pytest-ephemeral.", MINIMAL, flags=re.MULTILINE)
    assert "staging" in load(tmp_path, text, "pyproject.toml").templates
    said = complaint(tmp_path, text.replace("8080", "0"), "pyproject.toml")
    assert said.startswith("tool.pytest-ephemeral.templates.staging.port: expected")
    said = complaint(tmp_path, "[tool.other]", "pyproject.toml")
    assert said == "it has no [tool.pytest-ephemeral] table"


def test_the_nearest_configuration_is_found(tmp_path: Path) -> None:
    """The search goes upwards, and skips pyproject files without our table."""
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    (tmp_path / "ephemeral.toml").touch()
    (tmp_path / "a" / "pyproject.toml").write_text('[project]\ndependencies = ["pytest-ephemeral"]')
    (inner / "pyproject.toml").write_text("[tool.other]")
    assert discovery.find(inner) == tmp_path / "ephemeral.toml"


def test_ephemeral_toml_takes_precedence_over_pyproject(tmp_path: Path) -> None:
    """A file of its own is more specific than a table in a shared file."""
    (tmp_path / "pyproject.toml").write_text("[tool.pytest-ephemeral]")
    assert discovery.find(tmp_path) == tmp_path / "pyproject.toml"
    (tmp_path / "ephemeral.toml").touch()
    assert discovery.find(tmp_path) == tmp_path / "ephemeral.toml"


def test_find_returns_a_broken_pyproject_with_our_table(tmp_path: Path) -> None:
    """The search must not skip the file, or its syntax error would never be reported."""
    (tmp_path / "pyproject.toml").write_text("[tool.pytest-ephemeral]\na = = 1")
    assert discovery.find(tmp_path) == tmp_path / "pyproject.toml"


def test_find_returns_none_without_a_configuration(tmp_path: Path) -> None:
    """This is no error, because the plugin runs without a configuration."""
    found = discovery.find(tmp_path)
    assert found is None or not found.is_relative_to(tmp_path)


def test_the_default_template_is_the_named_or_only_one(tmp_path: Path) -> None:
    """With several templates and no default, the error lists them."""
    assert load(tmp_path, WHOLE).template(None).name == "staging"
    assert load(tmp_path, WHOLE).template("two-ports").name == "two-ports"
    assert load(tmp_path, MINIMAL).template(None).name == "staging"
    two = load(tmp_path, WHOLE.replace('default-template = "staging"', ""))
    with pytest.raises(ConfigurationError, match=r"staging, two-ports.*--ephemeral-template"):
        two.template(None)


def test_unknown_template_and_image_names_get_a_suggestion(tmp_path: Path) -> None:
    """The error names the closest template or image."""
    read = load(tmp_path, WHOLE)
    with pytest.raises(ConfigurationError, match=r"no template 'stagin'. Did you mean 'staging'"):
        read.template("stagin")
    with pytest.raises(ConfigurationError, match=r"no image 'shp'. Did you mean 'shop'"):
        read.recipe("shp")
