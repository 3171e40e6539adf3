"""The requirements of a promotion: required stages and approval, and the evidence for them."""

from __future__ import annotations

from typing import Final

import msgspec

from pytest_ephemeral.errors import NothingMatchedError, PromotionError
from pytest_ephemeral.images import stages
from pytest_ephemeral.images.stages import Stage
from pytest_ephemeral.models import Environment, Model
from pytest_ephemeral.promotion.approval_records import Approval, Approvals
from pytest_ephemeral.store import Store
from pytest_ephemeral.tables import Promotion

APPROVAL: Final = "approval"


class RequirementEvidence(Model, frozen=True, kw_only=True):
    """The evidence that all requirements are met.

    Attributes:
        stages: The last outcome of each required stage, by the stage's name.
        approval: The approval; None if it is not required.
    """

    stages: dict[str, Stage] = msgspec.field(default_factory=dict)
    approval: Approval | None = None

    @property
    def revision(self) -> str:
        """The commit of the tests of the last stage; empty if there is no stage."""
        latest = max(self.stages.values(), key=lambda stage: stage.finished_at, default=None)
        return latest.revision if latest else ""


def check(store: Store, promotion: Promotion, environment: Environment) -> RequirementEvidence:
    """Check that an environment meets all requirements of a promotion.

    Args:
        store: The store with the stages and approvals.
        promotion: The promotion's table, with ``requires``.
        environment: The environment to promote.

    Returns:
        The evidence.

    Raises:
        PromotionError: A requirement is not met; the message lists all of these, with commands.
    """
    found: dict[str, Stage] = {}
    missing: list[str] = []
    passed = latest_stages(store, environment)
    for name in promotion.requires:
        if name == APPROVAL:
            continue
        if problem := passed[name].problem if name in passed else "has not tested it":
            missing.append(f"stage {name!r} {problem}: pytest --ephemeral-stage {name}")
        else:
            found[name] = passed[name]
    approval = None
    if APPROVAL in promotion.requires:
        approval, problem = _approval(store, environment)
        missing += [problem] if problem else []
    if missing:
        images = " or ".join(f"{image.name} {image.key[:19]}" for image in environment.images)
        what = f"its image {images}" if images else "an environment without image"
        raise PromotionError(
            "\n".join(
                [
                    f"{environment.id} can't be promoted to {promotion.name}: {what} lacks",
                    *(f"  - {one}" for one in missing),
                ]
            )
        )
    return RequirementEvidence(stages=found, approval=approval)


def latest_stages(store: Store, environment: Environment) -> dict[str, Stage]:
    """The last outcome of each stage for an environment's images, by the stage's name.

    With several images, a stage must have tested all of them, and a failure for one image counts.
    """
    found = [stages.latest(store, image) for image in environment.images]
    common = set.intersection(*(set(each) for each in found)) if found else set()
    return {
        name: max((each[name] for each in found), key=lambda stage: bool(stage.problem))
        for name in sorted(common)
    }


def _approval(store: Store, environment: Environment) -> tuple[Approval | None, str]:
    """The approval, and the problem with it; exactly one of them is None or empty."""
    request = f"pytest-ephemeral approval request {environment.id}"
    try:
        found = Approvals(store).get(environment.id)
    except NothingMatchedError:
        return None, f"manual approval, which was not requested: {request}"
    if found.environment != environment.id or found.image != environment.image:
        return None, f"manual approval of exactly this environment: {request}"
    if found.state != "approved":
        state = found if found.state == "pending" else f"was {found}"
        return None, f"manual approval: it {state}"
    return found, ""
