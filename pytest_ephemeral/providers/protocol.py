"""The protocols of providers and bakers, and the data that they receive and return."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import datetime
from pathlib import Path
from typing import ClassVar, Final, Literal, Protocol, runtime_checkable

import msgspec

from pytest_ephemeral.models import Environment, Image
from pytest_ephemeral.tables import Recipe, Template

#: In an environment's handle, where it costs something: dollars an hour.
HOURLY: Final = "dollars-an-hour"

#: In an environment's handle: why it was booted, though its template asks for memory to resume.
COLD_BOOT: Final = "cold-boot"

#: In an environment's handle: the memory that it resumes from.
RESUMED: Final = "resumed-from"

#: In an environment's handle: once it is ready and seeded, it is to be frozen for those after it.
TO_FREEZE: Final = "to-freeze"

#: In an environment's handle: it resumes from seeded memory, and is not seeded again.
SEEDED: Final = "seeded"

#: In an environment's handle: what it is put back to is from before its seed, which is run again.
UNSEEDED: Final = "unseeded"

#: In an environment's handle, if its machine is to be kept for others: what those must fit, how
#: many are kept at most, and for how many seconds. See ``SupportsStandby``.
STANDBY_FITS: Final = "standby-fits"
STANDBY_COUNT: Final = "standby-count"
STANDBY_SECONDS: Final = "standby-seconds"

#: In the handle of a machine on standby: the environment that it is, or becomes, the machine of.
CLAIMED_BY: Final = "claimed-by"

#: Stands for what ``Baker.resolve`` can't ask for now, such as the digest of a base that neither
#: this machine has nor a registry gives. An image baked from the same is good all the same.
UNKNOWN: Final = "?"


class Order(msgspec.Struct, frozen=True):
    """A request for one environment, with everything that a provider needs.

    Attributes:
        environment: Its id, labels, owner and expiry; already in the ledger.
        template: With ``{image:…}`` filled in and ``{env:…}`` not, as it may be recorded.
        images: The baked images by name, the template's ``image`` among them.
        variables: The template's ``env`` with everything filled in. Not to be recorded.
        headers: Those of its readiness check, filled in. Not to be recorded either.
        secrets: The values that came from ``{env:…}``, to be masked in every log.
        settle: The command that closes the ledger's record, for a guard whose owner has died.
        root: The folder of the configuration file, for paths in the template.
        tell: Called with a line when an outside service fails for a while.
        warn: Called with a warning, which is shown again at the end of the run.
        cancelled: Set once it is no longer needed: a launch that waits may give up.
        journal: Puts an environment's ``handle`` into the ledger in the middle of launching:
            before a request whose answer may be lost, and as soon as there is one.
    """

    environment: Environment
    template: Template
    images: Mapping[str, Image] = msgspec.field(default_factory=dict)
    variables: Mapping[str, str] = msgspec.field(default_factory=dict)
    headers: Mapping[str, str] = msgspec.field(default_factory=dict)
    secrets: Sequence[str] = ()
    settle: Sequence[str] = ()
    root: Path = Path()
    journal: Callable[[Environment], None] = lambda _: None
    tell: Callable[[str], None] = lambda _: None
    warn: Callable[[str], None] = lambda _: None
    cancelled: threading.Event = msgspec.field(default_factory=threading.Event)

    @property
    def image(self) -> Image | None:
        """The image that the template names, if it names one."""
        return None if self.template.image is None else self.images[self.template.image]


class Status(msgspec.Struct, frozen=True):
    """The state of an environment.

    Attributes:
        state: ``running``; ``exited`` when any part of it has stopped by itself; ``gone`` when
            nothing of it is there.
        detail: For people: which part, its exit status or signal, and when.
    """

    state: Literal["running", "exited", "gone"]
    detail: str = ""

    def stop_reason(self) -> str:
        """Why it stopped, for people; empty while it runs."""
        return "" if self.state == "running" else self.detail or "it is gone"


class Owned(msgspec.Struct, frozen=True):
    """A resource with our labels, whether or not a ledger records it.

    Attributes:
        id: The environment's.
        labels: As they are read from the resource; those that can't be read are missing.
        detail: What it is, for people.
        abandoned: Its owner and whatever guarded it are known to be gone, so that nobody else
            will ever end it, though its time may not be over.
        region: Where it is, if its provider has more than one region.
        seen_at: When it was seen by the clock of where it is; None when there is only ours.
        image: The ``reference`` of a finished image that may not be in a catalog yet.
    """

    id: str
    labels: Mapping[str, str]
    detail: str = ""
    abandoned: bool = False
    region: str = ""
    seen_at: datetime | None = None
    image: str = ""


class Check(msgspec.Struct, frozen=True):
    """One requirement of a provider, and whether it is met (``doctor``)."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


class BakeJob(msgspec.Struct, frozen=True):
    """What is to be baked.

    Attributes:
        recipe: The recipe, its paths still relative to ``root``.
        key: The image's key, ``sha256:…``.
        root: The folder of the configuration file.
        artifact: The artifact's file, checked; None when the recipe has none.
        log: Where everything the install script prints goes, from its first byte.
        say: Receives progress, one line for each call.
        live: Given each line that is printed, after the seconds it took to come.
        descriptors: What ``exclusive`` gave: they hold the image too.
    """

    recipe: Recipe
    key: str
    root: Path
    artifact: Path | None
    log: Path
    say: Callable[[str], None]
    live: Callable[[str], None] | None = None
    descriptors: Sequence[int] = ()


class Provider(Protocol):
    """Runs environments.

    Made by ``load`` without arguments: whatever is needed to find an environment again stands in
    its ``handle``, so that any process of the same machine (or account) can act on it.

    Attributes:
        name: As users write it.
        template_type: The keys a template of this provider has.
        recipe_type: The keys of its recipes; None when it bakes no images.
        forwards_ports: Whether a port of its environments accepts connections though nobody
            listens behind it, as a container engine's does.
    """

    name: ClassVar[str]
    template_type: ClassVar[type[Template]]
    recipe_type: ClassVar[type[Recipe] | None]
    forwards_ports: ClassVar[bool]

    def doctor(self) -> Sequence[Check]:
        """What it needs, and whether that is here. Never raises, never changes anything."""

    def launch(self, order: Order) -> Environment:
        """Launch it, and return as soon as its endpoints are known, ready or not.

        Everything carries ``order.environment.labels`` from its creation on. If it raises,
        ``destroy`` removes whatever had been made.

        Raises:
            LaunchError: It can't be brought up; the message has the reason and its last lines.
        """

    def status(self, environment: Environment) -> Status:
        """Its current state. Cheap: asked before every test. Never raises for one that is gone."""

    def logs(
        self,
        environment: Environment,
        *,
        since: str | None = None,
        until: str | None = None,
        tail: int | None = None,
    ) -> str:
        """Its output; between two marks, or only the last lines.

        Args:
            environment: Which.
            since: A mark that ``log_mark`` gave.
            until: The mark to stop at: following a log misses and repeats nothing.
            tail: A number of lines.
        """

    def log_mark(self, environment: Environment) -> str:
        """Where its log ends now, in the provider's own terms. Cheap: asked before every test."""

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        """Its output by process or service: what ``--ephemeral-logs`` writes."""

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside it. See ``Environment.run``."""

    def hint(self, environment: Environment) -> str:
        """Why it may not answer, in one line (it listens elsewhere?); empty when nothing is odd."""

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        """Move the expiry of everything it is made of; None disarms it for good."""

    def keep(self, environment: Environment) -> None:
        """Let it outlive its owner, until its expiry."""

    def destroy(self, environment: Environment) -> None:
        """Remove all of it, without grace. It may be gone already, or incomplete.

        The handle only says where to look. Before anything is removed, the resource itself (its
        labels, tags, name) must say that it is this environment's.

        Raises:
            DestroyError: Something remains; says what.
            TamperedRecordError: What the handle names is not this environment's.
            ElsewhereError: It is on another machine, account or engine than can be seen from here.
        """

    def list_owned(self) -> Iterator[Owned]:
        """All resources with our labels, of any owner and any ledger."""

    def sweep(self, owned: Owned) -> None:
        """Remove a resource from ``list_owned`` that no ledger describes.

        Raises:
            DestroyError: It remains.
        """


@runtime_checkable
class Baker(Protocol):
    """A provider that also makes images."""

    def resolve(self, recipe: Recipe, root: Path) -> Mapping[str, str]:
        """The inputs besides recipe text, scripts and artifact, as exact values.

        Such as the digest a base's tag points to now. Goes into the key, under these names. What
        can't be told for now, though it may have been before, is ``UNKNOWN``.

        Raises:
            ConfigurationError: The recipe can't be right.
            UnavailableError: What is needed to find out is missing.
        """

    def exclusive(
        self, key: str, what: str, say: Callable[[str], None]
    ) -> AbstractContextManager[Sequence[int]]:
        """Hold an image of this machine alone, while it is baked, brought or replaced.

        Args:
            key: Which.
            what: What is done meanwhile, for those who wait: ``baking shop``.
            say: Receives who is waited for.

        Returns:
            A context; it gives the open files that hold the image too, for a process that acts
            in this one's place.

        Raises:
            ImageInUseError: An environment runs from it.
        """

    def adopt(self, job: BakeJob) -> Image | None:
        """The image of that key, if a bake for another store left it here complete."""

    def bake(self, job: BakeJob) -> Image:
        """Make the image and seal it. It is not in the catalog yet.

        Raises:
            BakeError: With the last lines and the log's path.
        """

    def verify(self, job: BakeJob, image: Image) -> None:
        """Run ``recipe.verify`` on a fresh copy.

        Raises:
            BakeError: With the last lines and the log's path.
        """

    def discard(self, job: BakeJob) -> None:
        """Remove whatever failed or killed bakes of its key left."""

    def present(self, image: Image) -> bool:
        """Whether it is here, unchanged.

        Raises:
            ImageChangedError: It is here, but not as it was baked; says what differs.
        """

    def pack(self, image: Image, file: Path) -> None:
        """Write its content into one file; the same content gives the same bytes."""

    def unpack(self, image: Image, file: Path) -> None:
        """Bring it here from such a file.

        Raises:
            ImageChangedError: What comes out is not ``image.digest``.
        """

    def remove(self, image: Image) -> None:
        """Remove its content from here.

        Raises:
            EphemeralError: An environment still runs from it.
        """
