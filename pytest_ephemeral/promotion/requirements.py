"""What an image must have passed before it may become production, and what says that it has."""

from __future__ import annotations

from typing import Final

import msgspec

from pytest_ephemeral.errors import NothingMatchedError, PromotionError
from pytest_ephemeral.images import stages
from pytest_ephemeral.images.stages import Stage
from pytest_ephemeral.models import Environment, Model
from pytest_ephemeral.promotion.approval import Approval, Approvals
from pytest_ephemeral.store import Store
from pytest_ephemeral.tables import Promotion

APPROVAL: Final = "approval"


class Evidence(Model, frozen=True, kw_only=True):
    """What was required, and is there."""

    stages: dict[str, Stage] = msgspec.field(default_factory=dict)
    approval: Approval | None = None

    @property
    def revision(self) -> str:
        """What version control said when the last of the stages ran."""
        latest = max(self.stages.values(), key=lambda stage: stage.finished_at, default=None)
        return latest.revision if latest else ""


def check(store: Store, promotion: Promotion, environment: Environment) -> Evidence:
    """Hold an environment against what its promotion requires.

    Args:
        store: Where stages and approvals are recorded.
        promotion: What requires it.
        environment: What is to become production.

    Raises:
        PromotionError: Something is missing; names all of it, and how to get it.
    """
    found: dict[str, Stage] = {}
    missing: list[str] = []
    passed = latest_stages(store, environment)
    for name in promotion.requires:
        if name == APPROVAL:
            continue
        if problem := passed[name].problem if name in passed else "was never run against it":
            missing.append(f"the stage {name!r} {problem}: pytest --ephemeral-stage {name}")
        else:
            found[name] = passed[name]
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
    return Evidence(stages=found, approval=approval)


def latest_stages(store: Store, environment: Environment) -> dict[str, Stage]:
    """The last run of each stage against an environment's image, by the stage's name."""
    return {} if environment.image is None else stages.latest(store, environment.image)


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
