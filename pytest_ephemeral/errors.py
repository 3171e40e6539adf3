"""Every error a user can see, with its exit status beside it.

A message says three things: what happened, the likely cause, and the next command to run.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: What helps where threads can't be started; Python says only that (``_thread.start_new_thread``).
NO_THREADS: Final = (
    "no more threads can be started here. Raise the limit on processes (ulimit -u, or the "
    "container's --pids-limit), or use fewer workers (-n)"
)


class EphemeralError(Exception):
    """The base of all errors.

    Attributes:
        exit_status: What the command line exits with (the contract's §4).
        usage: Whether pytest reports it as a usage error (its exit status 4).
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
    """What a provider needs (an engine, an extra, a credential, a platform) is missing."""


class ArtifactError(EphemeralError):
    """An artifact is missing, ambiguous, changed, or would replace another."""

    usage = True


class UnlistedError(ArtifactError):
    """This kind of artifact repository can't be listed; artifacts are found by name."""


class BakeError(EphemeralError):
    """An image could not be baked, or did not verify. Nothing entered the catalog."""


class ImageMissingError(EphemeralError):
    """No such image is baked, and baking was not allowed (``--ephemeral-bake never``)."""

    exit_status = 3
    usage = True


class ImageChangedError(EphemeralError):
    """A sealed image is no longer, byte for byte, what was baked."""


class ProvenanceError(EphemeralError):
    """An image's provenance is missing, not signed by that key, or about another image."""


class ImageInUseError(EphemeralError):
    """An image can't be replaced or removed: an environment runs from it."""


class LaunchError(EphemeralError):
    """An environment did not come up. What it had started was destroyed."""


class ReadinessError(LaunchError):
    """An environment was up but not ready in time."""

    exit_status = 5


class EnvironmentDiedError(EphemeralError):
    """An environment that was up has stopped by itself."""


class EnvironmentGoneError(EphemeralError):
    """A request was made to an environment that no longer runs."""

    exit_status = 3


class OwnerLostError(EphemeralError):
    """The process that owns this run's environments is gone, or can't be reached from here."""


class HookError(Exception):
    """A hook of the user's has failed, in another process; names the error that it raised."""


class DestroyError(EphemeralError):
    """Something of an environment is still there after destroying it.

    Whoever catches this must report it: what remains is a leak.
    """

    exit_status = 6


class TamperedRecordError(DestroyError):
    """A record can't be read, or does not fit what it names: damaged, copied or forged.

    What it names was left alone: it may be someone else's.
    """


class ElsewhereError(DestroyError):
    """An environment is on another machine, account or engine, where this process can't look.

    Nothing was removed, and its record stays.
    """


class UnverifiedDestroyError(DestroyError):
    """All that can be found of an environment is gone, and there may be more that can't be found.

    Raised once, since nothing more can be done here: doing it again would find nothing.
    """


class RejectedError(EphemeralError):
    """A person rejected an environment."""

    exit_status = 4


class UnansweredError(EphemeralError):
    """Nobody responded to a request for approval in time, which counts as a rejection."""

    exit_status = 5


class DecidedError(EphemeralError):
    """Someone decided otherwise before. A decision can't be changed."""


class PromotionError(EphemeralError):
    """A promotion failed, and the production name points where it did before."""


class SupersededError(PromotionError):
    """Another process has taken over a promotion; this one stops."""


class DnsError(EphemeralError):
    """A name server or DNS service refuses a request."""


class DnsUnavailableError(DnsError):
    """A name server does not respond, or can't just now: trying again may help."""


class NameChangedError(DnsError):
    """Someone else changed a DNS record. It was left alone."""


class StoreError(EphemeralError):
    """The store can't be read or written."""


class RecordExistsError(StoreError):
    """A record that was to be created exists already."""


class RecordMissingError(StoreError):
    """A record does not exist."""


class RecordConflictError(StoreError):
    """A record was changed by someone else between reading and replacing it."""


def closest(name: str, known: Iterable[str]) -> str:
    """Say which known name was probably meant.

    Args:
        name: What was written.
        known: The names that would have been right.

    Returns:
        ``" Did you mean 'staging'?"``, or what there is when nothing is close, with a space in
        front; empty when nothing is known at all.
    """
    import difflib

    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    if near:
        return f" Did you mean {near[0]!r}?"
    return f" Known: {', '.join(names)}." if names else ""


def describe_error(error: BaseException) -> str:
    """An error that is not ours, for people: its type, and what it says."""
    return str(error) if isinstance(error, HookError) else f"{type(error).__name__}: {error}"
