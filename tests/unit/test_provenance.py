"""Provenance of images: the statements, their signatures and their verification."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from pytest_ephemeral.ci import Build
from pytest_ephemeral.cli import main
from pytest_ephemeral.errors import ConfigurationError, ImageChangedError, ProvenanceError
from pytest_ephemeral.images import provenance
from pytest_ephemeral.images.provenance import KEY_VARIABLE, Making
from pytest_ephemeral.models import Artifact, Image
from pytest_ephemeral.providers.local.tables import LocalRecipe
from support import processes
from support.keys import make_keys
from support.machines import Machine

DIGEST = "sha256:" + "ab" * 32
ARTIFACT = "sha256:" + "cd" * 32
WHEN = datetime(2026, 5, 4, 10, 0, 30, tzinfo=UTC)

IMAGE = Image(
    name="shop",
    key="sha256:" + "01" * 32,
    provider="local",
    reference="/var/tmp/x",
    digest=DIGEST,
    artifact=ARTIFACT,
    inputs={
        "format": "2",
        "artifact": ARTIFACT,
        "install": "sha256:" + "ef" * 32,
        "base": "debian",
    },
    archive="sha256:" + "23" * 32,
    seconds=30.0,
    baked_at=WHEN,
    baked_by="anna@box",
)

MAKING = Making(
    LocalRecipe(name="shop", provider="local", artifact="dist/*.whl", install="deploy/install.sh"),
    Artifact(
        name="shop",
        version="1.4.2",
        filename="shop-1.4.2-py3-none-any.whl",
        digest=ARTIFACT,
        size=7,
        pushed_at=WHEN,
    ),
    Build(ci="github", url="https://ci/7", revision="c0ffee"),
    "c0ffee-dirty",
)


#: Exactly as in-toto and SLSA define it, without the version of the builder.
STATEMENT = {
    "_type": "https://in-toto.io/Statement/v1",
    "subject": [
        {"name": "shop", "digest": {"sha256": "ab" * 32}},
        {"name": "shop archive", "digest": {"sha256": "23" * 32}},
    ],
    "predicateType": "https://slsa.dev/provenance/v1",
    "predicate": {
        "buildDefinition": {
            "buildType": "https://pytest-ephemeral.readthedocs.io/provenance/bake/v1",
            "externalParameters": {
                "recipe": {
                    "name": "shop",
                    "provider": "local",
                    "artifact": "dist/*.whl",
                    "install": "deploy/install.sh",
                }
            },
            "internalParameters": {
                "key": IMAGE.key,
                "inputs": IMAGE.inputs,
                "bakedBy": "anna@box",
                "record": {
                    "name": "shop",
                    "provider": "local",
                    "reference": "/var/tmp/x",
                    "digest": DIGEST,
                    "artifact": ARTIFACT,
                    "archive": IMAGE.archive,
                    "size": 0,
                    "seconds": 30.0,
                    "baked_at": "2026-05-04T10:00:30Z",
                    "handle": {},
                },
            },
            "resolvedDependencies": [
                {
                    "name": "shop-1.4.2-py3-none-any.whl",
                    "digest": {"sha256": "cd" * 32},
                    "annotations": {"name": "shop", "version": "1.4.2"},
                },
                {"name": "base", "uri": "debian"},
                {"name": "install", "digest": {"sha256": "ef" * 32}},
                {
                    "name": "source",
                    "digest": {"gitCommit": "c0ffee"},
                    "annotations": {"dirty": True},
                },
            ],
        },
        "runDetails": {
            "builder": {
                "id": "https://pytest-ephemeral.readthedocs.io/provenance/builders/local",
            },
            "metadata": {
                "invocationId": "https://ci/7",
                "startedOn": "2026-05-04T10:00:00Z",
                "finishedOn": "2026-05-04T10:00:30Z",
            },
        },
    },
}


def test_the_statement_follows_in_toto_and_slsa() -> None:
    """Every field is compared, except the version of the builder."""
    said = provenance.statement(IMAGE, MAKING)
    version = said["predicate"]["runDetails"]["builder"].pop("version")
    assert list(version) == ["pytest-ephemeral"]
    assert said == STATEMENT


# -- signatures ------------------------------------------------------------------------------


def attest(image: Image, key: str | None) -> Image:
    envelope = provenance.wrap(provenance.statement(image, MAKING), key)
    return msgspec.structs.replace(image, provenance=envelope)


def test_a_signature_is_valid_only_for_its_key(keys: tuple[Path, Path], tmp_path: Path) -> None:
    """The private key may be a path or the key itself, as CI servers provide secrets."""
    private, public = keys
    for key in (str(private), private.read_text()):
        assert len(provenance.verify(attest(IMAGE, key), public)) == 64
    _, other = make_keys(tmp_path, "other")
    with pytest.raises(ProvenanceError, match=r"is not signed by .*other\.pub"):
        provenance.verify(attest(IMAGE, str(private)), other)


def test_openssl_verifies_a_signature(keys: tuple[Path, Path], tmp_path: Path) -> None:
    """It verifies the bytes that the DSSE protocol defines for signatures."""
    private, public = keys
    envelope = attest(IMAGE, str(private)).provenance
    assert envelope is not None
    payload = base64.b64decode(envelope.payload)
    signed = b"DSSEv1 28 application/vnd.in-toto+json %d %s" % (len(payload), payload)
    (tmp_path / "signed").write_bytes(signed)
    (tmp_path / "sig").write_bytes(base64.b64decode(envelope.signatures[0].sig))
    files = ["-inkey", public, "-in", tmp_path / "signed", "-sigfile", tmp_path / "sig"]
    done = processes.run("openssl", "pkeyutl", "-verify", "-rawin", "-pubin", *files)
    assert "Verified Successfully" in done.stdout, done.stderr


def test_changes_to_a_signed_statement_are_detected(keys: tuple[Path, Path]) -> None:
    """The signature includes the statement and its type."""
    private, public = keys
    image = attest(IMAGE, str(private))
    assert image.provenance is not None
    said = json.loads(base64.b64decode(image.provenance.payload))
    said["predicate"]["runDetails"]["metadata"]["invocationId"] = "https://ci/8"
    changed = base64.b64encode(json.dumps(said).encode()).decode()
    for changes in ({"payload": changed}, {"payload_type": "text/plain"}):
        envelope = msgspec.structs.replace(image.provenance, **changes)
        with pytest.raises(ProvenanceError, match="is not signed by"):
            provenance.verify(msgspec.structs.replace(image, provenance=envelope), public)


@pytest.mark.parametrize(
    "changes",
    [
        {"digest": DIGEST[:-1] + "0"},
        {"key": IMAGE.key[:-1] + "2"},
        {"archive": None},
        {"reference": "/somewhere/else"},
        {"artifact": "sha256:" + "ff" * 32},
        {"inputs": {**IMAGE.inputs, "base": "debian:other"}},
        {"baked_by": "mallory@box"},
        {"baked_at": WHEN.replace(year=2027)},
        {"provider": "docker"},
        {"name": "other"},
        {"handle": {"pull": "registry/other@sha256:" + "ff" * 32}},
        {"seconds": 1.0},
        {"size": 1},
    ],
)
def test_a_statement_is_valid_only_for_its_image(
    keys: tuple[Path, Path], changes: dict[str, Any]
) -> None:
    """A valid statement that is copied to another image's record is refused."""
    other = msgspec.structs.replace(attest(IMAGE, str(keys[0])), **changes)
    with pytest.raises(ProvenanceError, match="belongs to another image"):
        provenance.verify(other, keys[1])


def test_a_missing_statement_or_signature_is_an_error(keys: tuple[Path, Path]) -> None:
    """The message has the remedy."""
    with pytest.raises(ProvenanceError, match="pytest-ephemeral bake shop --force"):
        provenance.read(IMAGE)
    with pytest.raises(ProvenanceError, match=f"is not signed: set {KEY_VARIABLE}"):
        provenance.verify(attest(IMAGE, None), keys[1])


def test_an_invalid_key_is_a_configuration_error(tmp_path: Path) -> None:
    """The message has nothing of the given value, which may be a secret."""
    file = tmp_path / "key.pem"
    file.write_text("-----BEGIN swordfish-----\n")
    for key in (str(file), file.read_text(), str(tmp_path / "none")):
        with pytest.raises(ConfigurationError, match=KEY_VARIABLE) as caught:
            provenance.check_key({KEY_VARIABLE: key})
        assert "swordfish" not in str(caught.value)
    processes.run("openssl", "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", file)
    with pytest.raises(ConfigurationError, match="it is not an Ed25519 key"):
        provenance.check_key({KEY_VARIABLE: str(file)})


# -- with real bakes -------------------------------------------------------------------------


def test_a_bake_records_and_signs_its_provenance(
    here: Machine, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exported and imported image keeps its provenance."""
    monkeypatch.setenv(KEY_VARIABLE, str(keys[0]))
    image = here.obtain()
    assert provenance.verify(image, keys[1])
    said = provenance.read(image)
    assert said["subject"][0]["digest"] == {"sha256": image.digest.removeprefix("sha256:")}
    here.images.export(image, here.folder / "image")
    here.images.catalog.forget(image)
    assert provenance.verify(here.images.import_(here.folder / "image"), keys[1])


def test_a_wrong_key_is_found_before_the_bake(
    here: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bake can take minutes, so the key is checked first."""
    monkeypatch.setenv(KEY_VARIABLE, "/nowhere.pem")
    with pytest.raises(ConfigurationError, match="no key can be read from it"):
        here.obtain()
    assert not here.baked


def test_images_verify_detects_damaged_content(
    here: Machine,
    keys: tuple[Path, Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Before the damage, the signature is valid, and ``images show`` prints the statement."""
    monkeypatch.setenv(KEY_VARIABLE, str(keys[0]))
    image = here.obtain(name="shop")
    (here.folder / "ephemeral.toml").write_text("")
    config = ["--config", str(here.folder / "ephemeral.toml")]
    store = here.images._store
    monkeypatch.setattr("pytest_ephemeral.project.open_store", lambda *_: store)
    assert main(["images", "verify", "shop", "--key", str(keys[1]), *config]) == 0
    assert "matches its record; signed by" in capsys.readouterr().out
    assert main(["images", "show", "shop", "--provenance", *config]) == 0
    assert json.loads(capsys.readouterr().out) == provenance.read(image)
    assert image.archive is not None
    blob = next(Path(store.url).rglob(image.archive.removeprefix("sha256:")))
    blob.chmod(0o600)
    blob.write_bytes(blob.read_bytes()[:-1])
    assert main(["images", "verify", "shop", *config]) == ImageChangedError.exit_status
    assert "is now sha256:" in capsys.readouterr().err
