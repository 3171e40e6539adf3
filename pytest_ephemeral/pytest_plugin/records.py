"""What a run leaves behind on purpose: its report, and its outcome against each image."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from pytest_ephemeral import ci
from pytest_ephemeral.images import stages
from pytest_ephemeral.images.stages import Stage
from pytest_ephemeral.models import Environment
from pytest_ephemeral.project import Project
from pytest_ephemeral.pytest_plugin.entries import Entry

OUTCOMES = ("passed", "failed", "skipped")


def report(run: str, entries: Sequence[Entry]) -> bytes:
    """The JSON document of all that was brought up; ``report.schema.json`` describes it.

    Args:
        run: The run's id.
        entries: All that was asked for; what never came up is left out.
    """
    environments = [
        _described(entry, entry.environment) for entry in entries if entry.environment is not None
    ]
    document = {"version": 1, "run": run, "environments": environments}
    return json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"


def _described(entry: Entry, environment: Environment) -> dict[str, Any]:
    image = environment.image
    state = environment.state if entry.fate is None else entry.fate.word
    return {
        "id": environment.id,
        "template": environment.template,
        "provider": environment.provider,
        "image": image
        and {
            "name": image.name,
            "key": image.key,
            "reference": image.reference,
            "artifact": image.artifact,
        },
        "url": environment.url,
        "endpoints": {name: one.url for name, one in environment.endpoints.items()},
        "state": state,
        "kept": state == "kept",
        "seconds": {phase: round(seconds, 3) for phase, seconds in entry.seconds.items()},
        "tests": {outcome: entry.counts[outcome] for outcome in OUTCOMES},
    }


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
    used = [entry for entry in entries if entry.used and _image_key(entry)]
    if not used:
        return
    build = ci.detect(os.environ)
    for key in dict.fromkeys(_image_key(entry) for entry in used):
        tested = [entry for entry in used if _image_key(entry) == key]
        outcome = Stage(
            stage=stage,
            run=run,
            image=key,
            digest=_image_digest(tested[0]),
            environments=[one.environment.id for one in tested if one.environment],
            tests={name: sum(one.counts[name] for one in tested) for name in OUTCOMES},
            exit_status=exit_status,
            finished_at=datetime.now(UTC).replace(microsecond=0),
            revision=revision(),
            ci=build.ci if build else "",
            ci_url=build.url if build else "",
            report=report,
        )
        stages.record(project.store, outcome)


def _image_key(entry: Entry) -> str:
    environment = entry.environment
    return "" if environment is None or environment.image is None else environment.image.key


def _image_digest(entry: Entry) -> str:
    environment = entry.environment
    return (environment and environment.image and environment.image.digest) or ""
