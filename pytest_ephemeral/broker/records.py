"""The records of a run: its report, its summary, and its outcome for each image."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

import msgspec

from pytest_ephemeral import ci, machine, urls
from pytest_ephemeral.broker.entries import Entry
from pytest_ephemeral.broker.protocol import Summary
from pytest_ephemeral.environments import reaper
from pytest_ephemeral.environments.removal import describe_problem
from pytest_ephemeral.errors import EphemeralError, RecordMissingError
from pytest_ephemeral.images import stages
from pytest_ephemeral.images.stages import Stage
from pytest_ephemeral.models import Environment, ImageReference
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.protocol import HOURLY

OUTCOMES = ("passed", "failed", "skipped")


def report(run: str, entries: Sequence[Entry]) -> bytes:
    """The report as JSON, in the format of ``report.schema.json``.

    Args:
        run: The run's id.
        entries: The run's environments. Those that did not come up are left out.
    """
    environments = [
        _describe(entry, entry.environment) for entry in entries if entry.environment is not None
    ]
    document = {"version": 1, "run": run, "environments": environments}
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _describe(entry: Entry, environment: Environment) -> dict[str, Any]:
    images = [_describe_image(image) for image in environment.images]
    return {
        "id": environment.id,
        "template": environment.template,
        "provider": environment.provider,
        "image": images[0] if images else None,
        "images": images,
        "url": urls.hide_password(environment.url),
        "endpoints": {name: one.url for name, one in environment.endpoints.items()},
        "state": entry.state,
        "kept": entry.state == "kept",
        "seconds": {phase: round(seconds, 3) for phase, seconds in entry.seconds.items()},
        "rollbacks": entry.rollbacks,
        "tests": {outcome: entry.counts[outcome] for outcome in OUTCOMES},
    }


def _describe_image(image: ImageReference) -> dict[str, Any]:
    return {name: getattr(image, name) for name in ("name", "key", "reference", "artifact")}


def summary(entry: Entry, *, crashed: bool) -> Summary:
    """Summarize one environment, for the end of a run.

    Args:
        entry: The environment.
        crashed: Whether it stopped by itself, and that makes the run fail.
    """
    environment = entry.environment
    if environment is None:
        problem = entry.problem or "it was still starting"
        return Summary("", entry.key.template, ("", ""), "", entry.state, {}, problem=problem)
    image = environment.image
    expires = environment.expires_at
    return Summary(
        id=environment.id,
        template=environment.template,
        image=(image.name, image.key) if image else ("", ""),
        url=environment.url,
        state=entry.state,
        seconds=dict(entry.seconds),
        detail=entry.detail,
        problem=entry.problem or entry.missed_problem,
        unnoticed=entry.is_unnoticed(),
        crashed=crashed,
        cost=_cost(environment, datetime.now(UTC)),
        expires="" if expires is None else f"{expires:%Y-%m-%d %H:%M} UTC",
    )


def _cost(environment: Environment, until: datetime) -> float | None:
    """The upper limit of an environment's cost in US dollars; None if it has no price."""
    if HOURLY not in environment.handle:
        return None
    hours = (until - environment.created_at).total_seconds() / 3600
    return float(environment.handle[HOURLY]) * hours


def rollbacks(project: Project | None) -> dict[str, str]:
    """The setting ``rollback``, by the names of the templates that have it."""
    templates = {} if project is None else project.config.templates
    return {name: one.rollback for name, one in templates.items() if one.rollback}


def remove_earlier_leaks(project: Project) -> Iterator[str]:
    """Try again to destroy the environments that earlier runs could not.

    Yields:
        A message for each that is still there.

    Raises:
        StoreError: The ledger can't be read.
    """
    for one in project.ledger.entries():
        if not one.problem or machine.is_alive(one.owner) is not False:
            continue
        problem = one.problem
        try:
            if reaper.remove_if_overdue(project.ledger, one.id):
                continue
        except RecordMissingError:
            continue  # another process has removed it
        except EphemeralError as error:
            problem = str(error)
        yield (
            f"from an earlier run: {describe_problem(one.id, problem)}. "
            "Try again: pytest-ephemeral reap"
        )


def revision(project: Project) -> Callable[[], str]:
    """Start to find the commit of the tests, in a thread.

    Args:
        project: The project whose work tree has the tests.

    Returns:
        A function that waits for the result and returns it; see ``ci.revision``.
    """
    found: list[str] = []
    thread = threading.Thread(
        target=lambda: found.append(ci.revision(project.config.root, os.environ)),
        name="ephemeral revision",
        daemon=True,
    )
    thread.start()

    def result() -> str:
        thread.join()
        return "".join(found)

    return result


def record_stage(
    project: Project,
    *,
    stage: str,
    run: str,
    entries: Sequence[Entry],
    exit_status: int,
    report: str,
    revision: Callable[[], str],
) -> None:
    """Record the outcome of a run for every image that it tested.

    Args:
        project: The project of the images.
        stage: The stage's name.
        run: The run's id.
        entries: The run's environments.
        exit_status: pytest's exit status.
        report: The digest of the run's report.
        revision: Returns the commit of the tests.

    Raises:
        StoreError: The store can't be written.
    """
    tested: dict[str, list[Entry]] = {}
    digests: dict[str, str] = {}
    for entry in entries:
        for image in entry.environment.images if entry.used and entry.environment else ():
            tested.setdefault(image.key, []).append(entry)
            digests.setdefault(image.key, image.digest or "")
    for key, of_image in tested.items():
        outcome = _stage(key, of_image, stage=stage, run=run, exit_status=exit_status)
        outcome = msgspec.structs.replace(
            outcome, digest=digests[key], revision=revision(), report=report
        )
        stages.record(project.store, outcome)


def _stage(key: str, tested: Sequence[Entry], *, stage: str, run: str, exit_status: int) -> Stage:
    build = ci.detect(os.environ)
    return Stage(
        stage=stage,
        run=run,
        image=key,
        environments=[one.environment.id for one in tested if one.environment],
        tests={name: sum(one.counts[name] for one in tested) for name in OUTCOMES},
        exit_status=exit_status,
        finished_at=datetime.now(UTC).replace(microsecond=0),
        ci=build.ci if build else "",
        ci_url=build.url if build else "",
    )
