"""The models that modules exchange: frozen, slotted, plain data.

msgspec structs rather than dataclasses, because they go to and from the ledger's JSON by
themselves. What people write has types of its own, in ``tables``.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Protocol, TypeVar

import msgspec

from pytest_ephemeral import urls
from pytest_ephemeral.durations import Duration
from pytest_ephemeral.text import check_argv, one_line

if TYPE_CHECKING:
    import subprocess

T = TypeVar("T")

#: The states of an environment, in order; the machine of one on ``standby`` is kept for others.
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

#: The outcomes of an environment that hooks receive; one that ``died`` is destroyed.
Outcome = Literal["destroyed", "destroying", "kept", "died", "leaked"]

#: ``\Z`` and not ``$``, which matches before a last line feed too.
ID_PATTERN: Final = r"\A[a-z0-9][a-z0-9-]{0,78}\Z"
DIGEST_PATTERN: Final = r"\Asha256:[0-9a-f]{64}\Z"
NAME_PATTERN: Final = r"\A[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?\Z"

#: An environment's id. It becomes part of paths and names, so decoding refuses anything else.
Id = Annotated[str, msgspec.Meta(pattern=ID_PATTERN)]
#: ``sha256:`` and 64 hexadecimal digits: an image's key, or the digest of bytes.
Digest = Annotated[str, msgspec.Meta(pattern=DIGEST_PATTERN)]
#: The name of an image, a template or a stage.
RecordedName = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]

#: What publishers send about an environment: it is up, or how it ended.
Announcement = Literal["up", Outcome]


def decode_hook(kind: type, value: Any) -> Any:
    """Read the types of ours that msgspec does not know."""
    if kind is Duration:
        return Duration.parse(value)
    raise NotImplementedError(f"no reading of {kind!r}")


def encode_hook(value: Any) -> Any:
    """Write the types of ours that msgspec does not know."""
    if isinstance(value, Duration):
        return str(value)
    raise NotImplementedError(f"no writing of {type(value)!r}")


class Model(msgspec.Struct, frozen=True, kw_only=True):
    """Data that this program writes and reads: fields that a later version adds are ignored."""


# -- what is built and baked ---------------------------------------------------------------


class Artifact(Model, frozen=True, kw_only=True):
    """A built, versioned file in the artifact repository.

    Attributes:
        digest: ``sha256:`` and 64 hexadecimal digits; this is what names it.
        size: Bytes.
    """

    name: str
    version: str
    filename: str
    digest: Digest
    size: int
    pushed_at: datetime


class Signature(Model, frozen=True, kw_only=True):
    """A signature of a statement, in base64; ``keyid`` only helps to find the key."""

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
        key: ``sha256:…`` over all of its inputs.
        provider: What runs it.
        reference: Where it is: a prefix, an image id, an AMI.
        digest: ``sha256:…`` of its content, byte for byte.
        artifact: The artifact's digest; None when it has no artifact.
        inputs: The inputs of its key, by name.
        archive: The digest-named archive in the store that holds its content, if one does.
        size: Bytes of its content.
        seconds: How long the bake took.
        baked_by: ``user@host``.
        provenance: The statement of its inputs, its baker and its build.
        handle: What else the provider needs to find it again.
        verified: The ``verify`` commands that have succeeded on it.
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


# -- what is brought up --------------------------------------------------------------------


class Endpoint(Model, frozen=True, kw_only=True):
    """One host and port at which an environment responds."""

    host: str
    port: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Its address, such as ``http://127.4.9.3:8080/``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/"


class Owner(Model, frozen=True, kw_only=True):
    """The process that launched an environment, recognisable from any other.

    Attributes:
        host: The machine's name, for people: machines may share one.
        boot: The kernel's id of this boot.
        machine: The machine's own id; empty in records of older versions.
        pid_namespace: Where ``pid`` means something; empty where the system has none.
        started: When the process started, in the system's own terms.
        uptime: Seconds since the boot when this was written, by a clock that nobody can set.
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
    """Which image an environment runs.

    Attributes:
        key: The key of its inputs; two bakes of one key may give different bytes.
        digest: The digest of its bytes, to which stages, approvals and promotions refer.
    """

    name: RecordedName
    key: Digest
    reference: str
    digest: Digest | None = None
    artifact: Digest | None = None

    @classmethod
    def to(cls, image: Image) -> ImageReference:
        """The reference to an image of the catalog."""
        return cls(**{field: getattr(image, field) for field in cls.__struct_fields__})


class Endpoints(dict[str, Endpoint]):
    """Endpoints by name. A missing one raises an ``EndpointMissingError``."""

    def __missing__(self, name: str) -> Endpoint:
        from pytest_ephemeral.errors import EndpointMissingError, closest

        raise EndpointMissingError(f"there is no endpoint {name!r}.{closest(name, self)}")


class Environment(Model, frozen=True, kw_only=True):
    """One running copy of a template: plain data that pickles and goes over xdist unchanged.

    Attributes:
        id: Such as ``staging-7f3k2q``.
        template: The template's name.
        provider: The provider's name.
        image: The image it runs; None when its template needs no baked image.
        more_images: Further images: those of a Compose file's other services.
        url: The first endpoint's URL; empty when it has none.
        endpoints: By name.
        created_at: In UTC.
        expires_at: When it may be reaped; None when never (production).
        owner: The process that brought it up.
        labels: What its resources are tagged with.
        state: See ``State``.
        kept: Whether it outlives its owner, until it expires.
        production: The promotion whose name points to it; None when none does.
        problem: Why it could not be removed when that was last tried; empty otherwise.
        handle: What its provider needs to find it again.
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
        """Make a missing endpoint an error that names it."""
        msgspec.structs.force_setattr(self, "endpoints", Endpoints(self.endpoints))

    @property
    def images(self) -> list[ImageReference]:
        """All baked images that it runs, the one of its URL first."""
        return [*([self.image] if self.image else []), *self.more_images]

    def url_for(self, name: str, path: str = "") -> str:
        """The URL of one endpoint, or of a page on it.

        Args:
            name: The endpoint's name, as in the template's ``ports``.
            path: Such as ``/hello``, with or without the slash; may have a query.

        Raises:
            EndpointMissingError: It has no endpoint of that name.
        """
        return urls.join(self.endpoints[name].url, path)

    def logs(self) -> str:
        """Everything its processes have printed that is still kept, as text.

        Raises:
            EphemeralError: The environment is gone, or its provider can't be reached.
        """
        return _actor(self).logs(self)

    def run(
        self, argv: Sequence[str], timeout: float | None = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside it, and wait for it.

        Args:
            argv: The command and its arguments, in a list (a string is a TypeError); no shell.
            timeout: Seconds after which it is killed; None for no limit.

        Returns:
            Its exit status and what it printed, as text. A failing command is not an error.

        Raises:
            subprocess.TimeoutExpired: It took longer, and was killed.
            EphemeralError: The environment is gone.
        """
        return _actor(self).run(self, check_argv(argv), timeout=timeout)


class Actor(Protocol):
    """Who can act on an environment: its provider, or a client of the process that owns it."""

    def logs(self, environment: Environment) -> str:
        """See ``Environment.logs``."""

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """See ``Environment.run``."""


#: By id: who acts on what was lent to this process, whose own file system tests may have replaced.
lent: dict[str, Actor] = {}


def _actor(environment: Environment) -> Actor:
    """Who can act on it: the only import here of a layer above."""
    from pytest_ephemeral.providers import load

    return lent.get(environment.id) or load(environment.provider)


def to_builtins(value: Any) -> Any:
    """Convert a model to what JSON can hold."""
    return msgspec.to_builtins(value, enc_hook=encode_hook)


def encode(value: Any) -> bytes:
    """Encode a model as indented JSON, for a file that people may read."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=encode_hook), indent=2) + b"\n"


def decode(data: bytes, kind: type[T]) -> T:
    """Decode a model from its JSON.

    Raises:
        msgspec.ValidationError: It is JSON, but not of that kind.
        msgspec.DecodeError: It is not JSON.
    """
    try:
        return msgspec.json.decode(data, type=kind, dec_hook=decode_hook)
    except RecursionError:
        raise msgspec.DecodeError("it is nested too deeply") from None
    except UnicodeDecodeError as error:
        raise msgspec.DecodeError(f"it is not UTF-8: {error}") from None
