"""Provenance of an image: an in-toto statement in SLSA's format, signed if there is a key.

https://slsa.dev/spec/v1.0/provenance
https://github.com/in-toto/attestation/blob/main/spec/v1/statement.md
https://github.com/secure-systems-lab/dsse/blob/master/protocol.md
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import msgspec

from pytest_ephemeral.ci import Build, detect, revision
from pytest_ephemeral.errors import ConfigurationError, ProvenanceError, UnavailableError
from pytest_ephemeral.models import Artifact, Envelope, Image, Signature, to_builtins
from pytest_ephemeral.tables import Recipe

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PAYLOAD_TYPE: Final = "application/vnd.in-toto+json"
STATEMENT: Final = "https://in-toto.io/Statement/v1"
PREDICATE: Final = "https://slsa.dev/provenance/v1"
OURS: Final = "https://pytest-ephemeral.readthedocs.io/provenance"

#: A private Ed25519 key as PEM text, or the path of a PEM file. It signs every new statement.
KEY_VARIABLE: Final = "PYTEST_EPHEMERAL_SIGNING_KEY"


class Making(msgspec.Struct, frozen=True):
    """Facts about a bake that the image's record does not have.

    Attributes:
        artifact: The installed artifact; None if there is none.
        build: The CI build; None outside of CI.
        revision: The commit of the recipe; empty if unknown.
    """

    recipe: Recipe
    artifact: Artifact | None
    build: Build | None
    revision: str


def state(
    image: Image,
    recipe: Recipe,
    artifact: Artifact | None,
    *,
    root: Path,
    environ: Mapping[str, str],
) -> Envelope:
    """Make the provenance of a new image, and sign it if there is a key.

    Args:
        image: The image's complete record, except for its provenance.
        recipe: The recipe.
        artifact: The installed artifact; None if there is none.
        root: The folder of the recipe.
        environ: The environment variables, with the signing key.

    Raises:
        ConfigurationError: The variable has no private key.
        UnavailableError: ``pytest-ephemeral[sign]`` is not installed.
    """
    making = Making(recipe, artifact, detect(environ), revision(root, environ))
    return wrap(statement(image, making), environ.get(KEY_VARIABLE))


def check_key(environ: Mapping[str, str]) -> None:
    """Check before a bake that the signing key can be used, if there is one.

    Raises:
        ConfigurationError: The variable has no private key.
        UnavailableError: ``pytest-ephemeral[sign]`` is not installed.
    """
    if key := environ.get(KEY_VARIABLE):
        _load_key(key, private=True)


def statement(image: Image, making: Making) -> dict[str, Any]:
    """Make the in-toto statement about an image.

    Args:
        image: The image's complete record, except for its provenance.
        making: Further facts about the bake.
    """
    return {
        "_type": STATEMENT,
        "subject": _subjects(image),
        "predicateType": PREDICATE,
        "predicate": {
            "buildDefinition": {
                "buildType": f"{OURS}/bake/v1",
                "externalParameters": {"recipe": _recipe(making.recipe)},
                "internalParameters": _internal_parameters(image),
                "resolvedDependencies": _dependencies(image, making),
            },
            "runDetails": _run(image, making.build),
        },
    }


def wrap(content: Mapping[str, Any], key: str | None) -> Envelope:
    """Put a statement into a DSSE envelope, and sign it.

    Args:
        content: The statement.
        key: A private key as PEM text, or the path of a PEM file; None for no signature.

    Raises:
        ConfigurationError: It is not a private key.
        UnavailableError: ``pytest-ephemeral[sign]`` is not installed.
    """
    payload = json.dumps(content, sort_keys=True, separators=(",", ":")).encode()
    envelope = Envelope(payload_type=PAYLOAD_TYPE, payload=base64.b64encode(payload).decode())
    if not key:
        return envelope
    private = _load_key(key, private=True)
    signature = Signature(
        keyid=_key_id(private.public_key()),
        sig=base64.b64encode(private.sign(_encode_for_signing(PAYLOAD_TYPE, payload))).decode(),
    )
    return msgspec.structs.replace(envelope, signatures=[signature])


def read(image: Image) -> dict[str, Any]:
    """Read the statement about an image, and check that it is about this image.

    Raises:
        ProvenanceError: There is none, it can't be read, or it is about another image.
    """
    if image.provenance is None:
        raise ProvenanceError(
            f"{image.name} ({image.key[:19]}…) has no provenance: it was baked by an older "
            f"version. Bake it again: pytest-ephemeral bake {image.name} --force"
        )
    try:
        found: dict[str, Any] = json.loads(
            base64.b64decode(image.provenance.payload, validate=True)
        )
        about = found["predicate"]["buildDefinition"]["internalParameters"]
        subject = found["subject"]
        differing = sorted(
            name for name, value in _internal_parameters(image).items() if about.get(name) != value
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ProvenanceError(f"the provenance of {image.name} can't be read") from None
    if subject != _subjects(image) or differing:
        raise ProvenanceError(
            f"the provenance of {image.name} ({image.key[:19]}…) belongs to another image"
            f"{''.join(f', {name} differs' for name in differing)}: the record was changed, or "
            "combined from two. Bake it again, or import it again"
        )
    return found


def verify(image: Image, public_key: Path) -> str:
    """Verify that an image's statement is signed with a key.

    Args:
        image: The image with its provenance.
        public_key: A PEM file with the public key.

    Returns:
        The key's id: the SHA-256 of the raw public key, in hexadecimal digits.

    Raises:
        ProvenanceError: It is not signed, or signed with another key.
        ConfigurationError: The file has no public key.
        UnavailableError: ``pytest-ephemeral[sign]`` is not installed.
    """
    read(image)
    envelope = image.provenance
    assert envelope is not None
    if not envelope.signatures:
        raise ProvenanceError(
            f"the provenance of {image.name} ({image.key[:19]}…) is not signed: set "
            f"{KEY_VARIABLE} to a private key where it is baked"
        )
    key = _load_key(str(public_key), private=False)
    for signature in envelope.signatures:
        if envelope.payload_type == PAYLOAD_TYPE and _matches(key, envelope, signature):
            return _key_id(key)
    known = ", ".join(signature.keyid[:16] for signature in envelope.signatures)
    raise ProvenanceError(
        f"the provenance of {image.name} ({image.key[:19]}…) is not signed by {public_key} "
        f"({_key_id(key)[:16]}), but by {known}"
    )


# -- the statement's parts -------------------------------------------------------------------


def _internal_parameters(image: Image) -> dict[str, Any]:
    """All fields of the image's record, so that ``read`` detects a change of any of them."""
    record: dict[str, Any] = to_builtins(image)
    del record["provenance"]
    del record["verified"]  # changes later, and does not describe the content
    return {
        "key": record.pop("key"),
        "inputs": record.pop("inputs"),
        "bakedBy": record.pop("baked_by"),
        "record": record,
    }


def _subjects(image: Image) -> list[dict[str, Any]]:
    """The statement's subjects: the image's content, and its archive."""
    subjects = [_describe_resource(image.name, image.digest)]
    if image.archive is not None:
        subjects.append(_describe_resource(f"{image.name} archive", image.archive))
    return subjects


def _recipe(recipe: Recipe) -> dict[str, Any]:
    written: dict[str, Any] = to_builtins(recipe)
    return {key: value for key, value in written.items() if value not in (None, "", [], {})}


def _dependencies(image: Image, making: Making) -> list[dict[str, Any]]:
    """The inputs of the image that have a digest, its base, and the commit of the recipe."""
    found = []
    for name, value in sorted(image.inputs.items()):
        described = _describe_resource(name, value)
        if name == "artifact" and making.artifact is not None:
            artifact = making.artifact
            described["name"] = artifact.filename
            described["annotations"] = {"name": artifact.name, "version": artifact.version}
        if "digest" in described:
            found.append(described)
        elif name in {"base", "reference"}:
            found.append({"name": name, "uri": value})
    if making.revision:
        commit, _, dirty = making.revision.partition("-")
        source: dict[str, Any] = {"name": "source", "digest": {"gitCommit": commit}}
        found.append(source | ({"annotations": {"dirty": True}} if dirty else {}))
    return found


def _run(image: Image, build: Build | None) -> dict[str, Any]:
    """The details of the bake: the provider, the version, the CI build and the times."""
    started = image.baked_at - timedelta(seconds=image.seconds)
    times = {"startedOn": _time(started), "finishedOn": _time(image.baked_at)}
    invocation = {"invocationId": build.url} if build and build.url else {}
    return {
        "builder": {
            "id": f"{OURS}/builders/{image.provider}",
            "version": {"pytest-ephemeral": metadata.version("pytest-ephemeral")},
        },
        "metadata": {**invocation, **times},
    }


def _describe_resource(name: str, digest: str) -> dict[str, Any]:
    """A resource in in-toto's format, with its digest if it has one."""
    algorithm, separator, digits = digest.partition(":")
    if (
        not separator
        or not digits
        or not algorithm.isalnum()
        or set(digits) - set("0123456789abcdef")
    ):
        return {"name": name}
    return {"name": name, "digest": {algorithm: digits}}


def _time(moment: datetime) -> str:
    return f"{moment:%Y-%m-%dT%H:%M:%SZ}"


# -- signatures ------------------------------------------------------------------------------


def _encode_for_signing(payload_type: str, payload: bytes) -> bytes:
    """The bytes to sign: the type and the payload, each with its length (DSSE's PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _matches(key: Ed25519PublicKey, envelope: Envelope, signature: Signature) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        payload = base64.b64decode(envelope.payload, validate=True)
        key.verify(
            base64.b64decode(signature.sig), _encode_for_signing(envelope.payload_type, payload)
        )
    except (InvalidSignature, ValueError):
        return False
    return True


def _key_id(key: Ed25519PublicKey) -> str:
    import hashlib

    return hashlib.sha256(key.public_bytes_raw()).hexdigest()


def _load_key(key: str, *, private: bool) -> Any:
    """Load an Ed25519 key from PEM text or a PEM file. Error messages never contain the key."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError:
        raise UnavailableError(
            "signatures need the cryptography package: pip install 'pytest-ephemeral[sign]'"
        ) from None
    where = KEY_VARIABLE if private else key
    try:
        pem = key.encode() if key.startswith("-----BEGIN") else Path(key).read_bytes()
        if private:
            found: Any = serialization.load_pem_private_key(pem, password=None)
        else:
            found = serialization.load_pem_public_key(pem)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigurationError(
            f"{where}: no key can be read from it ({type(error).__name__}): expected PEM without a "
            "password, such as `openssl genpkey -algorithm ed25519` makes"
        ) from None
    if not isinstance(found, ed25519.Ed25519PrivateKey | ed25519.Ed25519PublicKey):
        raise ConfigurationError(
            f"{where}: it is not an Ed25519 key: openssl genpkey -algorithm ed25519"
        )
    return found
