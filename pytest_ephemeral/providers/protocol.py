"""The protocols of providers and bakers, and the data that they take and return."""

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

#: In an environment's handle, if it costs something: US dollars an hour.
HOURLY: Final = "dollars-an-hour"

#: In an environment's handle: why it was booted, though its template has ``warm = true``.
COLD_BOOT: Final = "cold-boot"

#: In an environment's handle: the saved memory that it was resumed from.
RESUMED: Final = "resumed-from"

#: In an environment's handle: once it is ready and seeded, its memory is to be saved.
TO_FREEZE: Final = "to-freeze"

#: In an environment's handle: its memory is from after the seed, which is not run again.
SEEDED: Final = "seeded"

#: In an environment's handle: its baseline is from before the seed, which is run again.
UNSEEDED: Final = "unseeded"

#: In an environment's handle, if its machine is to be kept: the text by which orders fit it, how
#: many machines are kept at most, and for how many seconds. See ``SupportsStandby``.
STANDBY_FITS: Final = "standby-fits"
STANDBY_COUNT: Final = "standby-count"
STANDBY_SECONDS: Final = "standby-seconds"

#: In the handle of a machine on standby: the id of the environment that uses it.
CLAIMED_BY: Final = "claimed-by"

#: An input that ``Baker.resolve`` can't determine now, such as the digest of a base that this
#: machine does not have, while the registry is down. An image with the same other inputs is used.
UNKNOWN: Final = "?"


class Order(msgspec.Struct, frozen=True):
    """A request for one environment, with everything that a provider needs.

    Attributes:
        environment: The environment's id, labels, owner and expiry; already in the ledger.
        template: The template: ``{image:…}`` is filled in, ``{env:…}`` is not, so that it can be
            recorded.
        images: The baked images by name, including the template's ``image``.
        variables: The template's ``env``, all filled in. Secret: must not be recorded.
        headers: The headers of its readiness check, all filled in. Secret, too.
        secrets: The values from ``{env:…}``, to mask in every log.
        settle: The command that closes the ledger's record; for a guard whose owner has died.
        root: The folder of the configuration file, to which the template's paths are relative.
        tell: Called with a line of progress while an outside service fails.
        warn: Called with a warning, which is shown again at the end of the run.
        cancelled: Set when the environment is no longer needed: a launch may then stop waiting.
        journal: Records an environment's ``handle`` in the ledger during a launch. To be called
            before a request whose response may be lost, and after each response.
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
        """The image of the template, or None if it has none."""
        return None if self.template.image is None else self.images[self.template.image]


class Status(msgspec.Struct, frozen=True):
    """The state of an environment.

    Attributes:
        state: ``running``; ``exited`` if any part of it has stopped by itself; ``gone`` if it
            does not exist any more.
        detail: Which part stopped, its exit status or signal, and when; for people.
    """

    state: Literal["running", "exited", "gone"]
    detail: str = ""

    def stop_reason(self) -> str:
        """Why it stopped, for people; empty while it is running."""
        return "" if self.state == "running" else self.detail or "it is gone"


class Owned(msgspec.Struct, frozen=True):
    """A resource with our labels, whether or not a ledger records it.

    Attributes:
        id: The environment's id.
        labels: The labels read from the resource, without those that can't be read.
        detail: A description, for people.
        abandoned: Whether its owner and its guard are known to be gone, so that it must be
            destroyed even before its expiry.
        region: Its region, if its provider has several.
        seen_at: The time of its platform's clock when it was read; None if the platform has no
            clock of its own.
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
    """One line of ``doctor``: a requirement, whether it is met, and a hint if it is not."""

    name: str
    ok: bool
    detail: str
    hint: str = ""


class BakeJob(msgspec.Struct, frozen=True):
    """One bake of an image.

    Attributes:
        recipe: The recipe; its paths are relative to ``root``.
        key: The image's key, ``sha256:…``.
        root: The folder of the configuration file.
        artifact: The artifact's file, its digest verified; None if the recipe has none.
        log: The file for all output of the install script.
        say: Called with each line of progress.
        live: Called with each line of output, after the seconds since the bake began.
        descriptors: The file descriptors from ``Baker.exclusive``, which hold the lock.
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

    ``load`` makes one without arguments. The ``handle`` of an environment has everything that is
    needed to find it again, so that any process of the same machine or account can act on it.

    Attributes:
        name: The name in the configuration.
        template_type: The type of its templates, with their keys.
        recipe_type: The type of its recipes, with their keys; None if it bakes no images.
        forwards_ports: Whether a port of an environment may accept connections while no process
            listens behind it, as with a container engine.
    """

    name: ClassVar[str]
    template_type: ClassVar[type[Template]]
    recipe_type: ClassVar[type[Recipe] | None]
    forwards_ports: ClassVar[bool]

    def doctor(self) -> Sequence[Check]:
        """Check the provider's requirements on this machine. Never raises, changes nothing."""

    def launch(self, order: Order) -> Environment:
        """Launch an environment. Returns when its endpoints are known; it may not be ready yet.

        All its resources have ``order.environment.labels`` from their creation on. After an
        error, the caller calls ``destroy``, which removes all that was created.

        Raises:
            LaunchError: It can't be launched. The message has the reason and the last output.
        """

    def status(self, environment: Environment) -> Status:
        """Its current state. Called before every test, so it must be fast. May be ``gone``."""

    def logs(
        self,
        environment: Environment,
        *,
        since: str | None = None,
        until: str | None = None,
        tail: int | None = None,
    ) -> str:
        """Its output: all of it, the part between two marks, or only the last lines.

        Args:
            environment: The environment.
            since: A mark from ``log_mark``: only output after it.
            until: A mark from ``log_mark``: only output before it. Reading from mark to mark
                misses and repeats nothing.
            tail: Only this number of lines, the last ones.
        """

    def log_mark(self, environment: Environment) -> str:
        """The current end of its log, for ``logs``. Called before every test: must be fast."""

    def log_files(self, environment: Environment) -> Mapping[str, str]:
        """Its output by process or service, for ``--ephemeral-logs``."""

    def run(
        self, environment: Environment, argv: Sequence[str], *, timeout: float | None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command inside an environment. See ``Environment.run``."""

    def hint(self, environment: Environment) -> str:
        """A likely reason for not being ready, such as another port, in one line; or empty."""

    def extend(self, environment: Environment, expires_at: datetime | None) -> None:
        """Change the expiry of all its resources; None removes the expiry."""

    def keep(self, environment: Environment) -> None:
        """Keep it up after its owner has ended, until its expiry."""

    def destroy(self, environment: Environment) -> None:
        """Remove all resources of an environment, which may be incomplete or gone already.

        The handle only has the places to look at. A resource is removed only if its own labels,
        tags or name show that it belongs to this environment.

        Raises:
            DestroyError: Some resources remain; they are named.
            TamperedRecordError: A resource in the handle does not belong to this environment.
            ElsewhereError: It is on a machine, account or engine that can't be reached from here.
        """

    def list_owned(self) -> Iterator[Owned]:
        """All resources with labels of pytest-ephemeral, of any owner and any ledger."""

    def sweep(self, owned: Owned) -> None:
        """Remove a resource from ``list_owned`` that no ledger records.

        Raises:
            DestroyError: It remains.
        """


@runtime_checkable
class Baker(Protocol):
    """A provider that also bakes images."""

    def resolve(self, recipe: Recipe, root: Path) -> Mapping[str, str]:
        """The exact values of the inputs besides the recipe's text, scripts and artifact.

        One example is the digest of the base that a tag now points to. They are part of the key,
        under these names. An input that can't be determined now is ``UNKNOWN``.

        Raises:
            ConfigurationError: The recipe is wrong.
            UnavailableError: Something that is needed to determine them is missing.
        """

    def exclusive(
        self, key: str, what: str, say: Callable[[str], None]
    ) -> AbstractContextManager[Sequence[int]]:
        """Lock an image of this machine while it is baked, unpacked or replaced.

        Args:
            key: The image's key.
            what: What the lock is for, shown to processes that wait for it: ``baking shop``.
            say: Called with a line about the process that holds the lock.

        Returns:
            A context manager. It yields file descriptors that hold the lock, too: a process that
            inherits them keeps it after this process has ended.

        Raises:
            ImageInUseError: An environment runs from it.
        """

    def adopt(self, job: BakeJob) -> Image | None:
        """The complete image with that key that was baked here for another store, or None."""

    def bake(self, job: BakeJob) -> Image:
        """Bake the image and seal it. The caller adds it to the catalog.

        Raises:
            BakeError: The bake failed. The message has the last output and the log's path.
        """

    def verify(self, job: BakeJob, image: Image) -> None:
        """Run the commands of ``recipe.verify`` on a fresh copy of the image.

        Raises:
            BakeError: One failed. The message has the last output and the log's path.
        """

    def discard(self, job: BakeJob) -> None:
        """Remove all remains of failed or killed bakes with this key."""

    def present(self, image: Image) -> bool:
        """Whether the image is on this machine or account, unchanged.

        Raises:
            ImageChangedError: It is there, but was changed. The message has the difference.
        """

    def pack(self, image: Image, file: Path) -> None:
        """Write the image's content to one file. The same content gives the same bytes."""

    def unpack(self, image: Image, file: Path) -> None:
        """Restore the image from a file that ``pack`` wrote.

        Raises:
            ImageChangedError: The restored content does not have the digest ``image.digest``.
        """

    def remove(self, image: Image) -> None:
        """Remove the image's content from this machine or account.

        Raises:
            EphemeralError: An environment still runs from it.
        """
