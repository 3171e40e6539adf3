"""What an image must have passed before it may become production, and what says that it has."""

from __future__ import annotations

from datetime import datetime
from typing import Final

import msgspec

from pytest_ephemeral.errors import NothingMatchedError, PromotionError, RecordMissingError
from pytest_ephemeral.models import Environment, Model, Promotion, decode
from pytest_ephemeral.promotion.approval import Approval, Approvals
from pytest_ephemeral.store import Store

APPROVAL: Final = "approval"


class Stage(Model, frozen=True, kw_only=True):
    """How one test run came out for one image, as ``--ephemeral-stage`` records it.

    Attributes:
        tests: Counts by outcome.
        exit_status: pytest's.
        revision: What version control said of the tests' folder, where it said something.
    """

    stage: str
    run: str
    tests: dict[str, int] = msgspec.field(default_factory=dict)
    exit_status: int
    finished_at: datetime
    revision: str = ""

    @property
    def problem(self) -> str:
        """Why it has not passed; empty when it has."""
        if self.exit_status:
            return f"failed (run {self.run}, exit status {self.exit_status})"
        return "" if self.tests.get("passed") else f"ran no test that passed (run {self.run})"


class Evidence(Model, frozen=True, kw_only=True):
    """What was required, and is there."""

    stages: dict[str, Stage] = msgspec.field(default_factory=dict)
    approval: Approval | None = None

    @property
    def revision(self) -> str:
        """What version control said when the last of the stages ran."""
        stages = sorted(self.stages.values(), key=lambda stage: stage.finished_at)
        return stages[-1].revision if stages else ""


def check(store: Store, promotion: Promotion, environment: Environment) -> Evidence:
    """Hold an environment against what its promotion requires.

    Args:
        store: Where stages and approvals are recorded.
        promotion: What requires it.
        environment: What is to become production.

    Raises:
        PromotionError: Something is missing; names all of it, and how to get it.
    """
    stages: dict[str, Stage] = {}
    missing: list[str] = msgspec.field(default_factory=list)
    passed = latest_stages(store, environment)
    for name in promotion.requires:
        if name == APPROVAL:
            continue
        if problem := passed[name].problem if name in passed else "was never run against it":
            missing.append(f"the stage {name!r} {problem}: pytest --ephemeral-stage {name}")
        else:
            stages[name] = passed[name]
    approval = None
    if APPROVAL in promotion.requires:
        approval, problem = _approval(store, environment)
        missing += [problem] if problem else []
    if missing:
        image = environment.image
        what = f"its image {image.name} {image.key[:19]}" if image else "it has no image, and"
        raise PromotionError(
            "\n".join(
                [
                    f"{environment.id} can't become {promotion.name}: {what} lacks",
                    *(f"  - {one}" for one in missing),
                ]
            )
        )
    return Evidence(stages=stages, approval=approval)


def latest_stages(store: Store, environment: Environment) -> dict[str, Stage]:
    """The last run of each stage against an environment's image: a later failure counts."""
    latest: dict[str, Stage] = {}
    if environment.image is None:
        return latest
    for path in store.paths(f"stages/{environment.image.key.rpartition(':')[2]}/"):
        try:
            found = decode(store.read(path).data, Stage)
        except (RecordMissingError, msgspec.MsgspecError):
            continue
        known = latest.get(found.stage)
        if known is None or known.finished_at <= found.finished_at:
            latest[found.stage] = found
    return latest


def _approval(store: Store, environment: Environment) -> tuple[Approval | None, str]:
    """A person's yes, or what there is instead."""
    ask = f"pytest-ephemeral approval request {environment.id}"
    try:
        found = Approvals(store).get(environment.id)
    except NothingMatchedError:
        return None, f"a person's yes, for which nobody has asked: {ask}"
    if found.environment != environment.id or found.image != environment.image:
        return None, f"a person's yes to this very environment: {ask}"
    if found.state != "approved":
        return None, f"a person's yes: it {found if found.state == 'pending' else f'was {found}'}"
    return found, ""
