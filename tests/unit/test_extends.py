"""``extends``: a table has only the differences from another image or template."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest

from pytest_ephemeral import config, schema
from pytest_ephemeral.errors import ConfigurationError
from pytest_ephemeral.images import key
from pytest_ephemeral.providers.docker.tables import DockerRecipe, DockerTemplate
from pytest_ephemeral.providers.local.tables import LocalTemplate

BASE = """\
[images.shop]
provider = "docker"
context = "."
build-args = { MODE = "plain", LEVEL = "1" }

[images.tree]
provider = "local"
reference = "/srv/shop"

[templates.staging]
image = "shop"
port = 8080
ready = { http = "/healthz", timeout = "90s" }
env = { SHOP_MODE = "staging", SHOP_LEVEL = "1" }
memory = "512M"

[templates.here]
image = "tree"
command = "shop serve"
port = 8080
"""


def load(tmp_path: Path, more: str) -> config.Config:
    (tmp_path / "ephemeral.toml").write_text(BASE + more)
    return config.load(tmp_path / "ephemeral.toml")


def is_valid(more: str) -> bool:
    """Whether the configuration is valid for editors that use the JSON Schema."""
    document = json.loads(json.dumps(schema.schema()))
    return jsonschema.Draft7Validator(document).is_valid(tomllib.loads(BASE + more))


def test_extending_a_template_merges_tables_and_replaces_values(tmp_path: Path) -> None:
    """Tables may be in any order, and may extend over several steps."""
    more = (
        '[templates.a-third]\nextends = "other"\nports = { web = 80, admin = 81 }\n'
        '[templates.other]\nextends = "staging"\nmemory = "1G"\n'
        'env = { SHOP_MODE = "other" }\nready = { timeout = "5s" }\n'
    )
    read = load(tmp_path, more)
    staging, other, third = (read.template(name) for name in ("staging", "other", "a-third"))
    assert isinstance(other, DockerTemplate)
    assert isinstance(third, DockerTemplate)
    assert staging.env == {"SHOP_MODE": "staging", "SHOP_LEVEL": "1"}
    assert other.env == {"SHOP_MODE": "other", "SHOP_LEVEL": "1"}
    assert other.ready is not None
    assert (other.ready.http, float(other.ready.timeout)) == ("/healthz", 5.0)
    assert (other.image, other.port, other.provider) == ("shop", 8080, "docker")
    assert (third.port, third.ports, third.memory) == (None, {"web": 80, "admin": 81}, "1G")
    assert (other.name, other.extends, staging.extends) == ("other", "staging", None)
    assert list(read.templates) == ["staging", "here", "a-third", "other"]
    assert is_valid(more)


def test_images_extend_images(tmp_path: Path) -> None:
    """The key does not depend on ``extends``: the same recipe in full has the same key."""
    more = (
        '[images.loud]\nextends = "shop"\nbuild-args = { MODE = "loud" }\n'
        '[images.same]\nprovider = "docker"\ncontext = "."\n'
        'build-args = { MODE = "loud", LEVEL = "1" }\n'
        '[images.taken]\nextends = "loud"\nreference = "shop@sha256:0"\n'
        '[templates.local]\nextends = "here"\nseed = "shop load"\n'
    )
    read = load(tmp_path, more)
    loud, same, taken = (read.recipe(name) for name in ("loud", "same", "taken"))
    assert isinstance(taken, DockerRecipe)
    assert (taken.context, taken.reference) == (None, "shop@sha256:0")
    keys = [key.inputs(each, tmp_path, artifact=None, resolved={}) for each in (loud, same)]
    assert keys[0] == keys[1]
    local = read.template("local")
    assert isinstance(local, LocalTemplate)
    assert (local.command, local.seed) == ("shop serve", "shop load")
    assert is_valid(more)


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (
            '[templates.other]\nextends = "stagin"\n',
            "templates.other.extends: no template 'stagin'. Did you mean 'staging'?",
        ),
        (
            '[images.other]\nextends = "staging"\n',
            "images.other.extends: no image 'staging'",
        ),
        (
            '[templates.other]\nextends = "other"\n',
            "templates.other.extends: it extends itself: other → other",
        ),
        (
            '[templates.a]\nextends="b"\n[templates.b]\nextends="c"\n[templates.c]\nextends="b"',
            "templates.c.extends: it extends itself: b → c → b",
        ),
        (
            '[templates.other]\nextends = "staging"\nprovider = "local"\nimage = "tree"\n',
            "templates.other.extends: 'staging' is for 'docker', but this is for 'local'",
        ),
        (
            '[templates.other]\nextends = "staging"\nimage = "tree"\n',
            "templates.other.extends: 'staging' is for 'docker', but this is for 'local'",
        ),
        (
            '[images.other]\nextends = "shop"\nprovider = "local"\n',
            "images.other.extends: 'shop' is for 'docker', but this is for 'local'",
        ),
        (
            "[templates.other]\nextends = 1\n",
            "templates.other.extends: expected a string",
        ),
        (
            '[templates.other]\nextends = "staging"\nmemorx = "1G"\n',
            "templates.other.memorx: unknown key. Did you mean 'memory'?",
        ),
        (
            '[templates.a]\nextends = "b"\n[templates.b]\nimage = "shop"\nprot = 1\n',
            "templates.b.prot: unknown key. Did you mean 'port'?",
        ),
    ],
)
def test_invalid_extends_are_reported_at_their_table(tmp_path: Path, more: str, said: str) -> None:
    """There is one message, with the path of the table to correct."""
    with pytest.raises(ConfigurationError) as caught:
        load(tmp_path, more)
    assert str(caught.value).startswith(f"{tmp_path}/ephemeral.toml: {said}")
    assert "\n" not in str(caught.value)
