"""What passes through the house: frozen, slotted, plain data.

msgspec structs rather than dataclasses, because the same types read the configuration
strictly, make its JSON Schema, and go to and from the ledger's JSON.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec

if TYPE_CHECKING:
    import subprocess

    from pytest_ephemeral.providers import Provider

NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$"
VARIABLE_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"

#: The name of an image, a template, an endpoint, a process: it goes into ids and file names.
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Variable = Annotated[str, msgspec.Meta(pattern=VARIABLE_PATTERN)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
UrlPath = Annotated[str, msgspec.Meta(pattern="^/")]

T = TypeVar("T")

State = Literal["launching", "ready", "destroying"]
Health = Literal["fail", "report"]

#: What publishers tell of an environment: it is up, or what became of it.
Outcome = Literal["up", "kept", "destroyed", "destroying", "died", "leaked"]

#: Who can be told. ``auto`` is the CI that this runs in, or ``json`` in one that is not known.
Audience = Literal[
    "auto",
    "github",
    "gitlab",
    "jenkins",
    "buildkite",
    "azure",
    "teamcity",
    "circleci",
    "bitbucket",
    "woodpecker",
    "drone",
    "tekton",
    "travis",
    "json",
]


class Duration(float):
    """A length of time in seconds, written ``"90s"``, ``"5m"`` or ``"2h"``."""

    __slots__ = ()
    PATTERN: Final = r"^[0-9]+(\.[0-9]+)?(ms|s|m|h|d)$"
    #: A hundred years. What is longer is a slip, and no date can be told from it.
    LONGEST: Final = 36500 * 86400.0
    _SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}

    @classmethod
    def parse(cls, text: str) -> Duration:
        """Read a duration as people write it.

        Args:
            text: A number and a unit: ms, s, m, h or d.

        Raises:
            ValueError: It is not one; the message shows what one looks like.
        """
        found = re.fullmatch(cls.PATTERN, text) if isinstance(text, str) else None
        if found is None:
            raise ValueError(f'expected a duration such as "90s", "5m" or "2h", got {text!r}')
        unit = found[2]
        seconds = float(text.removesuffix(unit)) * cls._SECONDS[unit]
        if seconds > cls.LONGEST:
            raise ValueError(f"expected at most {cls(cls.LONGEST)}, got {text!r}")
        return cls(seconds)

    def __str__(self) -> str:
        for unit in ("d", "h", "m", "s"):
            count = self / self._SECONDS[unit]
            if count >= 1 and count == int(count):
                return f"{int(count)}{unit}"
        return f"{self * 1000:g}ms" if self < 1 else f"{float(self):g}s"


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
    """What this program wrote and reads again: tolerant of fields that a later version adds."""


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """What people write in ``ephemeral.toml``: every key is known, or an error."""

    def check(self) -> None:
        """Hold keys against each other; called once, when the configuration is read.

        Raises:
            ValueError: They can't go together; says what to change.
        """


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
    digest: str
    size: int
    pushed_at: datetime


class Recipe(Table, frozen=True, kw_only=True):
    """How an image is baked: ``[images.NAME]``. Each provider adds keys of its own.

    Attributes:
        name: The table's name; not a key of it.
        provider: Which provider bakes it, and runs it.
        artifact: A glob of files, ``name@version`` or ``sha256:…``.
        install: A script's path, or a list of shell commands. Sees ``$PREFIX``, ``$ARTIFACT``.
        verify: Shell commands that must succeed on a fresh copy of the image.
        reference: An image made elsewhere, taken as it is and pinned; nothing is baked.
        pass_env: Names of variables the install script may see besides the usual ones.
    """

    name: str = ""
    provider: str
    artifact: str | None = None
    install: str | list[str] | None = None
    verify: list[str] = []
    reference: str | None = None
    pass_env: list[Variable] = []


class Signature(Model, frozen=True, kw_only=True):
    """Who vouches for a statement, in base64; ``keyid`` only helps to find the key."""

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
        key: ``sha256:…`` over all that went into it (design decision 6).
        provider: What runs it.
        reference: Where it is: a prefix, an image id, an AMI.
        digest: ``sha256:…`` of its content, byte for byte.
        artifact: The artifact's digest; None when it was made from none.
        inputs: What went into the key, by name: what the image was made from.
        archive: The digest-named archive in the store that holds its content, if one does.
        size: Bytes of its content.
        seconds: How long the bake took.
        baked_by: ``user@host``.
        provenance: Who says what it was made from, by whom, in which build.
        handle: What else the provider needs to find it again.
    """

    name: str
    key: str
    provider: str
    reference: str
    digest: str
    artifact: str | None = None
    inputs: dict[str, str] = {}
    archive: str | None = None
    size: int = 0
    seconds: float = 0.0
    baked_at: datetime
    baked_by: str = ""
    provenance: Envelope | None = None
    handle: dict[str, str] = {}


# -- what is brought up --------------------------------------------------------------------


class Ready(Table, frozen=True, kw_only=True):
    """When an environment is ready: every probe that is given must succeed.

    Attributes:
        http: A path; ready when it answers with ``status``.
        status: The accepted statuses; by default any from 200 to 399.
        headers: Sent with the request; ``{env:…}`` works here.
        tcp: Ready when the port accepts a connection.
        log: A regular expression to be found in the log.
        command: A shell command run inside the environment, to succeed.
        port: The endpoint's name that http and tcp look at; by default the URL's.
        timeout: How long all of it may take.
    """

    http: UrlPath | None = None
    status: int | list[int] | None = None
    headers: dict[str, str] = {}
    tcp: bool = False
    log: str | None = None
    command: str | None = None
    port: str | None = None
    timeout: Duration = Duration(60)


class Template(Table, frozen=True, kw_only=True):
    """What an environment looks like: ``[templates.NAME]``. Each provider adds keys of its own.

    Attributes:
        name: The table's name; not a key of it.
        provider: What runs it; by default what its image was baked for.
        image: The image's name.
        port: The one port it answers on; the endpoint is called ``http``.
        ports: Several, by name; the first is the URL's.
        ready: When it is up; by default when its ports accept connections.
        env: Variables of the application. ``{env:NAME}`` and ``{image:NAME}`` are filled in.
        seed: A shell command run once inside it, when it answers, before the first test.
        health: Whether a crash that no test noticed fails the run.
        ttl: How long it may live.
    """

    name: str = ""
    provider: str = ""
    image: str | None = None
    port: Port | None = None
    ports: dict[Name, Port] = {}
    ready: Ready | None = None
    env: dict[Variable, str] = {}
    seed: str | None = None
    health: Health = "fail"
    ttl: Duration = Duration(7200)

    def endpoints(self) -> dict[str, int]:
        """Its ports by name, the URL's first."""
        return {"http": self.port} if self.port is not None else dict(self.ports)

    def images(self) -> Sequence[str]:
        """The names of the images it is made of."""
        return [] if self.image is None else [self.image]


class Endpoint(Model, frozen=True, kw_only=True):
    """One place where an environment answers."""

    host: str
    port: int
    scheme: str = "http"

    @property
    def url(self) -> str:
        """Its address, such as ``http://127.4.9.3:8080/``."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}/"


class Owner(Model, frozen=True, kw_only=True):
    """The process that brought an environment up, recognisable from any other."""

    user: str
    host: str
    boot: str
    pid: int
    started: str
    run: str

    def __str__(self) -> str:
        return f"{self.user}@{self.host}:{self.pid}"


class ImageReference(Model, frozen=True, kw_only=True):
    """Which image an environment runs."""

    name: str
    key: str
    reference: str
    artifact: str | None = None

    @classmethod
    def to(cls, image: Image) -> ImageReference:
        """The reference to an image of the catalog."""
        return cls(
            name=image.name, key=image.key, reference=image.reference, artifact=image.artifact
        )


class Environment(Model, frozen=True, kw_only=True):
    """One running copy of a template: plain data that pickles and goes over xdist unchanged.

    Attributes:
        id: Such as ``staging-7f3k2q``.
        template: The template's name.
        provider: The provider's name.
        image: What it runs; None where the template says so itself.
        url: The first endpoint's URL; empty when it has none.
        endpoints: By name.
        created_at: In UTC.
        expires_at: When it may be reaped; None when never (production).
        owner: The process that brought it up.
        labels: What its resources are tagged with.
        state: Where it is in its life.
        kept: It outlives its owner, until it expires.
        production: The promotion whose name points to it; None when none does.
        handle: What its provider needs to find it again.
    """

    id: str
    template: str
    provider: str
    image: ImageReference | None = None
    url: str = ""
    endpoints: dict[str, Endpoint] = {}
    created_at: datetime
    expires_at: datetime | None
    owner: Owner
    labels: dict[str, str] = {}
    state: State = "launching"
    kept: bool = False
    production: str | None = None
    handle: dict[str, str] = {}

    def url_for(self, name: str) -> str:
        """The URL of one endpoint.

        Args:
            name: The endpoint's name, as in the template's ``ports``.

        Raises:
            NothingMatchedError: It has no endpoint of that name.
        """
        from pytest_ephemeral.errors import NothingMatchedError, closest

        try:
            return self.endpoints[name].url
        except KeyError:
            raise NothingMatchedError(
                f"{self.id} has no endpoint {name!r}.{closest(name, self.endpoints)}"
            ) from None

    def logs(self) -> str:
        """Everything its processes have printed that is still kept, as text.

        Raises:
            EphemeralError: The environment is gone, or its provider can't be reached.
        """
        return _provider(self).logs(self)

    def run(
        self, argv: Sequence[str], timeout: float | None = 60.0
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside it, and wait for it.

        Args:
            argv: The command and its arguments; no shell is put between.
            timeout: Seconds it may take; None for as long as it likes.

        Returns:
            Its exit status and what it printed, as text. A failing command is not an error.

        Raises:
            subprocess.TimeoutExpired: It took longer, and was killed.
            EphemeralError: The environment is gone.
        """
        return _provider(self).run(self, argv, timeout=timeout)


def _provider(environment: Environment) -> Provider:
    """The one late look upwards in the house: plain data finds who can act on it."""
    from pytest_ephemeral.providers import load

    return load(environment.provider)


# -- what is decided -------------------------------------------------------------------------


class Promotion(Table, frozen=True, kw_only=True):
    """Where a production name points: ``[promotion.NAME]``. Each DNS backend reads its part.

    Attributes:
        name: The table's name; not a key of it.
        dns: What serves the name: ``hosts``, ``rfc2136``, ``route53``, or a third party's.
        zone: The zone that the name is in; Route 53 takes a hosted zone's id as well.
        record: The name, such as ``shop.example.com``.
        record_ttl: How long resolvers may remember where it points.
        server: rfc2136: where updates go, ``host`` or ``host:port``.
        servers: rfc2136: the servers that must answer with the new record; by default those
            that the zone itself names.
        key: rfc2136: the TSIG key's file, as ``tsig-keygen`` writes it, or ``{env:NAME}``.
        set_identifier: route53: which of several weighted records is the one to switch.
        file: hosts: the file, by default ``.ephemeral/hosts``.
        verify: How the new environment is checked, directly and then through the name; by
            default its port must accept connections.
        requires: Stages its image must have passed; ``approval`` is a person's yes.
        drain: How long the old one still serves after the name has moved.
        keep_old: How long rollback stays possible after that.
    """

    name: str = ""
    dns: str
    zone: str | None = None
    record: str
    record_ttl: Duration = Duration(30)
    server: str | None = None
    servers: list[str] = []
    key: str | None = None
    set_identifier: str | None = None
    file: str | None = None
    verify: Ready | None = None
    requires: list[str] = []
    drain: Duration = Duration(60)
    keep_old: Duration = Duration(3600)

    def check(self) -> None:
        """Hold keys against each other."""
        if self.dns in {"route53", "rfc2136"} and self.zone is None:
            raise ValueError(f'dns = "{self.dns}" needs the zone that {self.record} is in')
        if self.dns == "rfc2136" and self.server is None:
            raise ValueError('dns = "rfc2136" needs the server that takes updates')


def to_builtins(value: Any) -> Any:
    """Any model as what JSON can hold."""
    return msgspec.to_builtins(value, enc_hook=encode_hook)


def encode(value: Any) -> bytes:
    """Any model as indented JSON, for a file that people may read."""
    return msgspec.json.format(msgspec.json.encode(value, enc_hook=encode_hook), indent=2) + b"\n"


def decode(data: bytes, kind: type[T]) -> T:
    """A model from its JSON.

    Raises:
        msgspec.ValidationError: It is JSON, but not of that kind.
        msgspec.DecodeError: It is not JSON.
    """
    return msgspec.json.decode(data, type=kind, dec_hook=decode_hook)


def endpoints_at(host: str, ports: Mapping[str, int]) -> dict[str, Endpoint]:
    """Endpoints that all stand on one host.

    Args:
        host: A name or an address.
        ports: By endpoint name; ``https``, 443 and 8443 are taken to speak TLS.
    """
    return {
        name: Endpoint(host=host, port=port, scheme="https" if _is_tls(name, port) else "http")
        for name, port in ports.items()
    }


def _is_tls(name: str, port: int) -> bool:
    return name == "https" or port in {443, 8443}
