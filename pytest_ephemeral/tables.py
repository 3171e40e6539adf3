"""The types of tables in ``ephemeral.toml``: recipes, templates and promotions.

``reading`` converts the configuration to these types, and ``schema`` makes its JSON Schema.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, ClassVar, Final, Literal

import msgspec

from pytest_ephemeral.durations import Duration

#: ``(?!\n)``, because ``$`` also matches before a line feed at the end in Python.
NAME_PATTERN: Final = r"^[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?$(?!\n)"
VARIABLE_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
PYTHON_PATTERN: Final = r"^3\.\d+$(?!\n)"

#: The key that names the recipe or template from which a table inherits keys.
EXTENDS: Final = "extends"

#: The name of an image, a template, an endpoint or a process; it is part of ids and file names.
Name = Annotated[str, msgspec.Meta(pattern=NAME_PATTERN)]
Variable = Annotated[str, msgspec.Meta(pattern=VARIABLE_PATTERN)]
Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
#: A URL's scheme (RFC 3986, section 3.1).
Scheme = Annotated[str, msgspec.Meta(pattern=r"^[a-z][a-z0-9+.-]*$(?!\n)")]
UrlPath = Annotated[str, msgspec.Meta(pattern="^/")]
PythonVersion = Annotated[str, msgspec.Meta(pattern=PYTHON_PATTERN)]

Health = Literal["fail", "report"]

#: When an environment is put back to its baseline: before every test, or after a failed one.
Rollback = Literal["each", "failed"]

#: Which images are baked when they are needed: missing ones, all, or none.
BakeMode = Literal["missing", "always", "never"]

#: Which images have their content in the store: those that other engines may need, all, or none.
KeepInStore = Literal["auto", "always", "never"]

#: The publishers. ``auto`` is the one for the current CI server, or ``json`` on an unknown one.
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


class Table(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """A table of ``ephemeral.toml``: an unknown key is an error.

    Attributes:
        unsupported: Keys that users may expect, but that don't exist on purpose, each with the
            reason and the alternative, for the error message.
    """

    unsupported: ClassVar[Mapping[str, str]] = {}

    def check(self) -> None:
        """Check combinations of keys. Called once, when the configuration is read.

        Raises:
            ValueError: Keys can't be combined. The message says what to change.
        """


class Recipe(Table, frozen=True, kw_only=True):
    """How an image is baked: ``[images.NAME]``. Each provider adds keys of its own.

    Attributes:
        name: The table's name; not a key in it.
        extends: The image from which it inherits all keys that it does not have itself.
        provider: The provider that bakes and runs it.
        artifact: The file to install: a glob, a folder, ``name@version`` or ``sha256:…``.
        build: A shell command that makes the artifact's file; run when its sources have changed.
        sources: Files, folders and globs that ``build`` reads.
        install: A script's path, or a list of shell commands; with ``$PREFIX`` and ``$ARTIFACT``.
        files: Globs of files and folders to copy into the install script's folder.
        python: The version of ``python3`` for the install script, such as ``3.13``.
        verify: Shell commands that must succeed on a fresh copy of the image.
        reference: An existing image to use instead; it is pinned, and nothing is baked.
        pass_env: Names of environment variables to pass to the install script.
    """

    name: str = ""
    extends: Name | None = None
    provider: str
    artifact: str | None = None
    build: str | None = None
    sources: list[str] = []
    install: str | list[str] | None = None
    files: list[str] = []
    python: PythonVersion | None = None
    verify: list[str] = []
    reference: str | None = None
    pass_env: list[Variable] = []

    def check(self) -> None:
        """See ``Table.check``."""
        if self.build is not None and not (self.artifact and self.sources):
            raise ValueError(
                'build needs the artifact it makes, and its sources, such as sources = ["src"]'
            )
        if self.sources and self.build is None:
            raise ValueError("sources need the build command that reads them")
        for name, value in (("files", self.files), ("python", self.python)):
            if value and not self.install:
                raise ValueError(f"{name} is for an install script: give install, or remove {name}")


class Ready(Table, frozen=True, kw_only=True):
    """When an environment is ready: every probe in it must succeed.

    Attributes:
        http: A path; ready when the response has an accepted status.
        status: The accepted statuses; by default any from 200 to 399.
        headers: Headers that are sent with the request; ``{env:…}`` works here.
        tcp: Ready when the port accepts a connection.
        log: A regular expression that the output must match.
        command: A shell command, run inside the environment, that must succeed.
        port: The name of the port that http and tcp probe; by default the URL's.
        timeout: The time limit for all probes together.
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
        name: The table's name; not a key in it.
        extends: The template from which it inherits all keys that it does not have itself.
        provider: The provider; by default its image's.
        image: The image's name.
        port: Its only port; the endpoint is called ``http``.
        ports: Several ports by name; the first one is the URL's.
        scheme: The scheme of the URL, such as ``postgresql`` or ``udp``; by default ``http`` or
            ``https``.
        ready: When it is ready; by default when its ports accept connections.
        env: Environment variables. ``{env:NAME}`` and ``{image:NAME}`` are filled in.
        seed: A shell command that is run once inside it when it is ready, before the first test.
        rollback: When it is put back to its baseline: before every test (``each``), or after a
            test that failed (``failed``).
        reset: A shell command, run inside it, that replaces the rollback by its provider.
        spares: How many to bring up in advance, for tests that need an environment of their own;
            at least one for each worker.
        health: Whether a crash fails the run even if no test failed.
        ttl: The time until it expires and is destroyed.
    """

    #: Whether every template of this type must have a port.
    needs_port: ClassVar[bool] = True

    name: str = ""
    extends: Name | None = None
    provider: str = ""
    image: str | None = None
    port: Port | None = None
    ports: dict[Name, Port] = {}
    scheme: Scheme | None = None
    ready: Ready | None = None
    env: dict[Variable, str] = {}
    seed: str | None = None
    rollback: Rollback | None = None
    reset: str | None = None
    spares: Annotated[int, msgspec.Meta(ge=0, le=100)] = 0
    health: Health = "fail"
    ttl: Duration = Duration(7200)

    def endpoints(self) -> dict[str, int]:
        """Its ports by endpoint name, the URL's first."""
        return {"http": self.port} if self.port is not None else dict(self.ports)

    def images(self) -> Sequence[str]:
        """The names of its images."""
        return [] if self.image is None else [self.image]


class Promotion(Table, frozen=True, kw_only=True):
    """A production name: ``[promotion.NAME]``. Each DNS backend uses some of the keys.

    Attributes:
        name: The table's name; not a key in it.
        dns: The DNS backend: ``hosts``, ``rfc2136``, ``route53``, or a third party's.
        zone: The zone that the name is in; for Route 53, also a hosted zone's id.
        record: The name, such as ``shop.example.com``.
        record_ttl: The record's TTL.
        server: rfc2136: the server that accepts updates, ``host`` or ``host:port``.
        servers: rfc2136: the servers that must return the new record; by default the zone's
            name servers.
        key: rfc2136: the TSIG key's file, as ``tsig-keygen`` writes it, or ``{env:NAME}``.
        set_identifier: route53: which of several weighted records to change.
        file: hosts: the file, by default ``.ephemeral/hosts``.
        verify: How the new environment is checked, directly and then through the name; by
            default its port must accept connections.
        requires: Stages that its image must have passed; ``approval`` is manual approval.
        drain: How long the previous environment stays in use after the DNS change.
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

    @property
    def host(self) -> str:
        """The name that requests use: the record's; of a wildcard, ``www`` in its place.

        A wildcard (RFC 4592) is the first label of a record, and no host name in a URL.
        """
        return f"www.{self.record[2:]}" if self.record.startswith("*.") else self.record

    def check(self) -> None:
        """See ``Table.check``."""
        if self.dns in {"route53", "rfc2136"} and self.zone is None:
            raise ValueError(f'dns = "{self.dns}" needs the zone that {self.record} is in')
        if self.dns == "hosts" and self.record.startswith("*."):
            raise ValueError(f"{self.record}: a hosts file has no wildcards; name one host")
        if self.dns == "rfc2136" and self.server is None:
            raise ValueError('dns = "rfc2136" needs the server that accepts updates')
