"""All errors that users can see, with their exit statuses.

A message has three parts: what happened, the likely cause, and the next command to run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

#: What stands before the last lines of a log in a message.
BEFORE_LOG: Final = "It printed last:"

#: What helps where threads can't be started; Python says only that (``_thread.start_new_thread``).
NO_THREADS: Final = (
    "no more threads can be started here. Raise the limit on processes (ulimit -u, or the "
    "container's --pids-limit), or use fewer workers (-n)"
)


class EphemeralError(Exception):
    """The base of all errors.

    Attributes:
        exit_status: The exit status of the command line (docs/reference/command-line.md).
        usage: Whether pytest reports it as a usage error, with its exit status 4.
    """

    exit_status: int = 1
    usage: bool = False


class ConfigurationError(EphemeralError):
    """The configuration, an option or a marker is wrong. Nothing was done."""

    exit_status = 2
    usage = True


class NothingMatchedError(EphemeralError):
    """Nothing has the given name."""

    exit_status = 3


class EndpointMissingError(NothingMatchedError, KeyError):
    """An environment has no endpoint of the given name."""

    __str__ = Exception.__str__


class UnavailableError(ConfigurationError):
    """Something that a provider needs is missing: an engine, an extra, credentials, a platform."""


class ArtifactError(EphemeralError):
    """An artifact is missing, ambiguous, changed, or would replace another."""

    usage = True


class UnlistedError(ArtifactError):
    """This kind of artifact repository can't be listed; artifacts are found by name."""


class BakeError(EphemeralError):
    """An image could not be baked, or its ``verify`` failed. It is not in the catalog."""


class ImageMissingError(EphemeralError):
    """An image is not baked, and ``--ephemeral-bake never`` forbids baking."""

    exit_status = 3
    usage = True


class ImageChangedError(EphemeralError):
    """The content of a sealed image has changed since it was baked."""


class ProvenanceError(EphemeralError):
    """An image's provenance is missing, not signed by the given key, or of another image."""


class ImageInUseError(EphemeralError):
    """An image can't be replaced or removed: an environment runs from it."""


class LaunchError(EphemeralError):
    """An environment could not be brought up. Its resources were destroyed."""


class ReadinessError(LaunchError):
    """An environment was up but not ready in time."""

    exit_status = 5


class EnvironmentDiedError(EphemeralError):
    """An environment that was up has stopped by itself."""


class EnvironmentGoneError(EphemeralError):
    """A request was made to an environment that no longer runs."""

    exit_status = 3


class OwnerLostError(EphemeralError):
    """The owner process of this run's environments has ended, or can't be reached."""


class HookError(Exception):
    """A user's hook failed in another process. The message has the hook's own error."""


class DestroyError(EphemeralError):
    """Something of an environment remains after it was destroyed.

    Code that catches this must report it, because the remains are a leak.
    """

    exit_status = 6


class TamperedRecordError(DestroyError):
    """A record can't be read, or does not match its resources: damaged, copied or forged.

    The resources were not touched, because they may belong to others.
    """


class ElsewhereError(DestroyError):
    """An environment is on a machine, account or engine that this process can't reach.

    Nothing was removed, and its record remains.
    """


class UnverifiedDestroyError(DestroyError):
    """All resources that were found are destroyed, but there may be others that can't be found.

    Raised only once: another attempt would find nothing.
    """


class RejectedError(EphemeralError):
    """A person rejected an environment."""

    exit_status = 4


class UnansweredError(EphemeralError):
    """Nobody responded to a request for approval in time, which counts as a rejection."""

    exit_status = 5


class DecidedError(EphemeralError):
    """A request for approval already has the opposite decision, which can't be changed."""


class PromotionError(EphemeralError):
    """A promotion failed. The production name points to the same environment as before."""


class SupersededError(PromotionError):
    """Another process has taken a promotion over, so this process stops."""


class DnsError(EphemeralError):
    """A name server or DNS service refused a request."""


class DnsUnavailableError(DnsError):
    """A name server did not respond, or refused a request temporarily. A retry may succeed."""


class NameChangedError(DnsError):
    """A DNS record was changed by others. It was not touched."""


class StoreError(EphemeralError):
    """The store can't be read or written."""


class RecordExistsError(StoreError):
    """A record could not be created, because it exists."""


class RecordMissingError(StoreError):
    """A record does not exist."""


class RecordConflictError(StoreError):
    """Another process changed a record after this one read it, so it was not replaced."""


def closest(name: str, known: Iterable[str]) -> str:
    """A hint for an unknown name, to append to a message.

    Args:
        name: The unknown name.
        known: All valid names.

    Returns:
        The closest name as ``" Did you mean 'staging'?"``, with a space at the start; or all
        names, if none is close; or empty, if there are none.
    """
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""


def missing_endpoint(name: str, known: Mapping[str, object]) -> EphemeralError:
    """The error for an endpoint that an environment does not have."""
    hint = closest(name, known)
    if name.startswith("/") and known:
        hint = f' A path comes second: url_for("{next(iter(known))}", "{name}")'
    return EndpointMissingError(f"there is no endpoint {name!r}.{hint}")


def describe_error(error: BaseException) -> str:
    """Describe an error of other code: its type and its message."""
    return str(error) if isinstance(error, HookError) else f"{type(error).__name__}: {error}"
