"""The models that modules exchange: frozen, slotted, plain data.

They are msgspec structs instead of dataclasses, because msgspec converts them from and to the
ledger's JSON. The types of the configuration are in ``tables``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, TypeVar

import msgspec

from pytest_ephemeral import urls
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.errors import missing_endpoint
from pytest_ephemeral.text import check_argv, one_line

if TYPE_CHECKING:
    import subprocess

T = TypeVar("T")

#: The states of an environment, in order. ``standby`` is a machine that is kept for later ones.
State = Literal[
    "planned",
    "launching",
    "ready",
    "failed",
    "destroying",
    "destroyed",
    "kept",
    "standby",
    "attached",
    "leaked",
]

#: The outcomes of an environment for hooks. One that ``died`` is then destroyed.
Outcome = Literal["destroyed", "destroying", "kept", "died", "leaked"]

#: ``\Z`` instead of ``$``, which also matches before a line feed at the end.
ID_PATTERN: Final = r"\A[a-z0-9][a-z0-9-]{0,78}\Z"
DIGEST_PATTERN: Final = r"\Asha256:[0-9a-f]{64}\Z"
NAME_PATTERN: Final = r"\A[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?\Z"

#: An environment's id. It is part of paths and names, so decoding refuses other characters.
Id = Annotated[str, msgspec.Meta(pattern=ID_PATTERN)]
#: ``sha256:`` and 64 hexadecimal digits: an image's key, or the digest of bytes.
Digest = Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)]
#: The name of an image, a template or a stage.
RecordedName = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]

#: The event that publishers send about an environment: it is up, or how it ended.
Announcement = Literal["up", Outcome]


def decode_hook(kind: type, value: Any) -> Any:
    """Decode the types of this package that msgspec does not know."""
    if kind is Duration:
        return Duration.parse(value)
    raise NotImplementedError(f"no reading of {kind!r}")


def encode_hook(value: Any) -> Any:
    """Encode the types of this package that msgspec does not know."""
    if isinstance(value, Duration):
        return str(value)
    raise NotImplementedError(f"no writing of {type(value)!r}")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """Data that this program writes and reads. Unknown fields, of later versions, are ignored."""


class Artifact(Model, frozen=True, kw_only=True):
    """A built, versioned file in the artifact repository.

    Attributes:
        digest: The digest of its content, by which it is identified.
        size: The size in bytes.
    """

    name: str
    version: str
    filename: str
    digest: Digest
    size: int
    pushed_at: datetime


class Signature(Model, frozen=True, kw_only=True):
    """A signature of a statement, in base64. ``keyid`` is only a hint for finding the key."""

    keyid: str
    sig: str


class Envelope(Model, frozen=True, kw_only=True, rename="camel"):
    """A statement, in base64, with its signatures (DSSE, github.com/secure-systems-lab/dsse)."""

    payload_type: str
    payload: str
    signatures: list[Signature] = []


class Image(Model, frozen=True, kw_only=True):
    """A baked image, as the catalog records it.

    Attributes:
        name: The recipe's name.
        key: The digest of all of its inputs.
        provider: The provider's name.
        reference: The provider's own name for it: a folder, an image id, an AMI.
        digest: The digest of its content.
        artifact: The artifact's digest; None if it has no artifact.
        inputs: The inputs of its key, by name.
        archive: The digest of the archive in the store with its content; None if there is none.
        size: The size of its content, in bytes.
        seconds: The duration of the bake.
        baked_by: The user and machine of the bake, ``user@host``.
        provenance: The signed statement of its inputs, its baker and its build.
        handle: Further data that the provider needs to find it.
        verified: The ``verify`` commands that succeeded on it.
    """

    name: RecordedName
    key: Digest
    provider: str
    reference: str
    digest: Digest
    artifact: Digest | None = None
    inputs: dict[str, str] = {}
    archive: Digest | None = None
    size: int = 0
    seconds: float = 0.0
    baked_at: datetime
    baked_by: str = ""
    provenance: Envelope | None = None
    verified: list[str] = []
    handle: dict[str, str] = {}


class Endpoint(Model, frozen=True, kw_only=True):
    """One host and port at which an environment responds."""

    host: str
    port: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Its URL, such as ``http://127.4.9.3:8080/``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/"


class Owner(Model, frozen=True, kw_only=True):
    """The process that launched an environment; see ``machine`` for how it is identified.

    Attributes:
        host: The machine's host name, for people; it may not be unique.
        boot: The kernel's id of the boot.
        machine: The machine's id; empty in records of older versions.
        pid_namespace: The namespace of ``pid``; see ``machine.pid_namespace``.
        started: The start time of the process, in the system's unit.
        uptime: Seconds since the boot when this was recorded.
    """

    user: str
    host: str
    boot: str
    machine: str = ""
    pid_namespace: str = ""
    pid: int
    started: str
    run: str
    uptime: float = 0.0

    def __str__(self) -> str:
        return one_line(f"{self.user}@{self.host}:{self.pid}")


class ImageReference(Model, frozen=True, kw_only=True):
    """The image of an environment.

    Attributes:
        key: The digest of its inputs; two bakes with one key may have different content.
        digest: The digest of its content, to which stages, approvals and promotions refer.
    """

    name: RecordedName
    key: Digest
    reference: str
    digest: Digest | None = None
    artifact: Digest | None = None

    @classmethod
    def to(cls, image: Image) -> ImageReference:
        """Make the reference to an image of the catalog."""
        return cls(**{field: getattr(image, field) for field in cls.__struct_fields__})


class Endpoints(dict[str, Endpoint]):
    """Endpoints by name. A missing one raises an ``EndpointMissingError``."""

    def __missing__(self, name: str) -> Endpoint:
        __tracebackhide__ = True  # pytest shows the line of the test instead
        raise missing_endpoint(name, self)


class Environment(Model, frozen=True, kw_only=True):
    """One running copy of a template: plain data that can be pickled and sent over xdist.

    Attributes:
        id: The id, such as ``staging-7f3k2q``.
        template: The template's name.
        provider: The provider's name.
        image: The image that it runs; None if its template needs no baked image.
        more_images: Further images: those of a Compose file's other services.
        url: The first endpoint's URL; empty if it has no endpoint.
        endpoints: The endpoints, by name.
        created_at: The time of its creation, in UTC.
        expires_at: The expiry, in UTC; None if it never expires (production).
        owner: The process that brought it up.
        labels: The labels of its resources.
        state: The state; see ``State``.
        kept: Whether it stays up after its owner has ended, until it expires.
        production: The promotion whose name points to it; None if none does.
        problem: Why the last attempt to destroy it failed; otherwise empty.
        handle: The data that its provider needs to find it.
    """

    id: Id
    template: str
    provider: str
    image: ImageReference | None = None
    more_images: list[ImageReference] = []
    url: str = ""
    endpoints: dict[str, Endpoint] = {}
    created_at: datetime
    expires_at: datetime | None
    owner: Owner
    labels: dict[str, str] = {}
    state: State = "launching"
    kept: bool = False
    production: str | None = None
    problem: str = ""
    handle: dict[str, str] = {}

    def __post_init__(self) -> None:
        """Convert ``endpoints``, so that a missing one raises an error with its name."""
        msgspec.structs.force_setattr(self, "endpoints", Endpoints(self.endpoints))

    @property
    def images(self) -> list[ImageReference]:
        """All baked images that it runs, ``image`` first."""
        return [*([self.image] if self.image else []), *self.more_images]

    def url_for(self, name: str, path: str = "") -> str:
        """The URL of an endpoint, or of a page below it.

        Args:
            name: The endpoint's name, as in the template's ``ports``.
            path: The path, such as ``/hello`` or ``hello``; may have a query.

        Raises:
            EndpointMissingError: It has no such endpoint.
        """
        __tracebackhide__ = True
        return urls.join(self.endpoints[name].url, path)

    def logs(self) -> str:
        """The output of its processes, as far as it is still kept.

        Raises:
            EphemeralError: The environment is gone, or its provider can't be reached.
        """
        return _actor(self).logs(self)

    def run(
        self, argv: Sequence[str], timeout: float | None = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside the environment, and wait until it ends.

        Args:
            argv: The command and its arguments, in a list (a string is a TypeError); no shell.
            timeout: Seconds after which it is killed; None for no limit.

        Returns:
            Its exit status and its output, as text. A failing command raises no error.

        Raises:
            subprocess.TimeoutExpired: The command took longer, and was killed.
            EphemeralError: The environment is gone.
        """
        __tracebackhide__ = True
        return _actor(self).run(self, check_argv(argv), timeout=timeout)


class Actor(Protocol):
    """Acts on an environment: its provider, or a client of the owner process."""

    def logs(self, environment: Environment) -> str:
        """See ``Environment.logs``."""

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """See ``Environment.run``."""


#: By environment id: clients of the owner process. They work even with pyfakefs' file system.
actors: dict[str, Actor] = {}


def _actor(environment: Environment) -> Actor:
    """The actor of an environment. This is the only import of a higher layer in this module."""
    from pytest_ephemeral.providers import load

    return actors.get(environment.id) or load(environment.provider)


def to_builtins(value: Any) -> Any:
    """Convert a model to JSON values: dicts, lists, strings, numbers."""
    return msgspec.to_builtins(value, enc_hook=encode_hook)


def encode(value: Any) -> bytes:
    """Encode a model as indented JSON, for a file that people may read."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=encode_hook), indent=2) + b"\n"


def decode(data: bytes, kind: type[T]) -> T:
    """Decode a model from its JSON.

    Raises:
        msgspec.ValidationError: The data is valid JSON, but does not match ``kind``.
        msgspec.DecodeError: The data is not valid JSON.
    """
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=decode_hook)
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8: {error}") from None
