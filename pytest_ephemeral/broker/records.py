"""What a run records: its report, its outcome against each image, its summary."""

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
from pytest_ephemeral.errors import EphemeralError, RecordMissingError
from pytest_ephemeral.images import stages
from pytest_ephemeral.images.stages import Stage
from pytest_ephemeral.models import Environment, ImageReference
from pytest_ephemeral.project import Project
from pytest_ephemeral.providers.protocol import HOURLY

OUTCOMES = ("passed", "failed", "skipped")


def report(run: str, entries: Sequence[Entry]) -> bytes:
    """The JSON document of all that was brought up; ``report.schema.json`` describes it.

    Args:
        run: The run's id.
        entries: All that was asked for; what never came up is left out.
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
    return {
        "name": image.name,
        "key": image.key,
        "reference": image.reference,
        "artifact": image.artifact,
    }


def summary(entry: Entry, *, crashed: bool) -> Summary:
    """What became of one environment, for the end of a run.

    Args:
        entry: Which.
        crashed: That it stopped by itself is a failure of the run.
    """
    environment = entry.environment
    if environment is None:
        problem = entry.problem or "it was still coming up"
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
        problem=entry.problem or entry.lost,
        unnoticed=entry.is_unnoticed(),
        crashed=crashed,
        cost=_cost(environment, datetime.now(UTC)),
        expires="" if expires is None else f"{expires:%Y-%m-%d %H:%M} UTC",
    )


def _cost(environment: Environment, until: datetime) -> float | None:
    """What an environment that has a price has cost at most, in dollars."""
    if HOURLY not in environment.handle:
        return None
    hours = (until - environment.created_at).total_seconds() / 3600
    return float(environment.handle[HOURLY]) * hours


def rollbacks(project: Project | None) -> dict[str, str]:
    """When environments are put back, by the templates that say so."""
    templates = {} if project is None else project.config.templates
    return {name: one.rollback for name, one in templates.items() if one.rollback}


def remove_earlier_leaks(project: Project) -> Iterator[str]:
    """Try once more to remove what earlier runs could not; a line for each that remains.

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
            continue  # someone else has removed it
        except EphemeralError as error:
            problem = str(error)
        yield (
            f"{one.id} of an earlier run could not be removed: {problem.splitlines()[0]} "
            "Try again: pytest-ephemeral reap"
        )


def revision(project: Project) -> Callable[[], str]:
    """The commit that the tests are taken from, looked up while other things go on.

    Args:
        project: Whose work tree.

    Returns:
        Gives it, and waits for it if need be; see ``ci.revision``.
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
    """Record how a run came out against every image that it tested.

    Args:
        project: Whose images they are.
        stage: The stage's name.
        run: The run's id.
        entries: All that was asked for.
        exit_status: pytest's.
        report: The digest of the run's report.
        revision: Gives the commit that the tests were taken from.

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
