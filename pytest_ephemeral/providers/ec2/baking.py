"""Baking an AMI: an instance of the base installs, is stopped, imaged, and booted fresh to verify.

Everything carries the key from its creation on, so that whatever a bake leaves that was killed,
at whichever point, is found by the next one of that key, and by ``reap``.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from pytest_ephemeral import aws, machine
from pytest_ephemeral.errors import (
    BakeError,
    ConfigurationError,
    ImageChangedError,
    ImageInUseError,
    ImageMissingError,
)
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers.ec2 import (
    amis,
    belongings,
    deregistering,
    launching,
    refusals,
    sweeping,
)
from pytest_ephemeral.providers.ec2.builders import (
    builder,
    client_of,
    marks_of,
    prefix_of,
    recipe_of,
    region_of,
    steps_of,
    stop,
    succeed,
)
from pytest_ephemeral.providers.ec2.environments import asked
from pytest_ephemeral.providers.ec2.tables import Ec2Recipe
from pytest_ephemeral.providers.ec2.tagging import (
    KEY,
    QUARANTINED,
    STATE,
    UNRECORDED,
    VERIFIED,
    tags_of,
)
from pytest_ephemeral.providers.protocol import BakeJob
from pytest_ephemeral.tables import Recipe

#: In an image's handle: it was baked elsewhere, and is taken as it is.
AS_IT_IS: Final = "as-it-is"


class Ec2Baker:
    """The part of the ec2 provider that makes images; see ``Baker`` for what is promised."""

    def resolve(self, recipe: Recipe, root: Path) -> Mapping[str, str]:  # noqa: ARG002
        """What the base is now; or whether what was baked elsewhere is there."""
        wanted, region = recipe_of(recipe), region_of(recipe)
        if wanted.reference is not None:
            _taken(wanted)
            return {"region": region, "reference": wanted.reference}
        if wanted.base is None:
            raise ConfigurationError(f"the image {recipe.name!r} has no base")
        resolved = _bases.get((region, repr(wanted.base)))
        if resolved is None:
            resolved = amis.resolve(wanted.base, wanted.region)
            _bases[region, repr(wanted.base)] = resolved
        return {"region": region, "base": resolved}

    def exclusive(
        self,
        key: str,  # noqa: ARG002
        what: str,  # noqa: ARG002
        say: Callable[[str], None],  # noqa: ARG002
    ) -> AbstractContextManager[Sequence[int]]:
        """Nothing of this machine is held: an AMI is made under a claim in the store."""
        return contextlib.nullcontext(())

    def adopt(self, job: BakeJob) -> Image | None:
        """The verified AMI of that key, if another store's bake, or one cut short, has made it."""
        recipe = recipe_of(job.recipe)
        if recipe.reference is not None:
            return None
        with aws.explained():
            found = amis.of_key(client_of(recipe), job.key, VERIFIED, UNRECORDED)
        available = [one for one in found if one["State"] == "available"]
        return (
            amis.as_image(available[0], region_of(recipe), prefix_of(job.key))
            if available
            else None
        )

    def bake(self, job: BakeJob) -> Image:
        """Install on an instance of the base, stop it, and make an AMI of it."""
        recipe = recipe_of(job.recipe)
        if recipe.reference is not None:
            found = _taken(recipe)
            image = amis.as_image(found, region_of(recipe), "")
            handle = {**image.handle, AS_IT_IS: "yes"}
            return msgspec.structs.replace(image, name=recipe.name, key=job.key, handle=handle)
        _jobs[job.key, threading.get_ident()] = job
        self.discard(job.key)
        base = self.resolve(recipe, job.root)["base"]
        with _explained(job), builder(job, base, steps_of(job), job.artifact) as built:
            job.say(f"installing on {built.instance}")
            succeed(built, "its install script")
            stop(built)
            # By the bake's own id: another of the same key, for another store, is another AMI.
            name = f"pytest-ephemeral-{built.id}"
            ami = amis.create(built.client, built.instance, name, marks_of(job, built.id))
            job.say(f"making the AMI {ami} of {built.instance}")
            found = amis.wait(built.client, ami, job.say)
        return amis.as_image(found, region_of(recipe), prefix_of(job.key))

    def verify(self, job: BakeJob, image: Image) -> None:
        """Boot it fresh and run ``verify`` there; then let it out of quarantine, and copy it."""
        recipe = recipe_of(job.recipe)
        if AS_IT_IS in image.handle and not recipe.verify:
            return
        _jobs[job.key, threading.get_ident()] = job
        client = client_of(recipe)
        with _explained(job):
            made = launching.NEW_IMAGE
            with builder(job, image.reference, recipe.verify, None, young=made) as built:
                job.say(f"verifying it on {built.instance}")
                succeed(built, "verifying it")
            if AS_IT_IS in image.handle:
                return
            found = amis.wait(client, image.reference, job.say)
            if tags_of(found).get(STATE) == QUARANTINED:
                amis.verify(client, found)
            amis.copy(found, image.handle["region"], recipe.copy_to, job.say)

    def mark_cataloged(self, image: Image, predecessor: Image | None) -> None:
        """Mark the AMI as cataloged; deregister its predecessor unless it is in use."""
        if AS_IT_IS in image.handle:
            return
        with asked(f"the AMI {image.reference} can't be told that it is recorded"):
            if found := _own(image):
                amis.record(_client_of(image), found)
            replaced = predecessor and predecessor.reference != image.reference
            if predecessor and replaced and (old := _own(predecessor)):
                client = _client_of(predecessor)
                if _users(client, old):
                    deregistering.leave(client, old)
                else:
                    deregistering.remove(client, old)

    def discard(self, key: str) -> None:
        """Remove builders, groups, quarantined AMIs and snapshots that bakes of that key left.

        Of this process, or of one that is gone: elsewhere, the same may be baked for another store.
        """
        job = _jobs.get((key, threading.get_ident()))
        recipe = None if job is None else recipe_of(job.recipe)
        for region in (None,) if recipe is None else (recipe.region, *recipe.copy_to):
            _clear(key, region)

    def present(self, image: Image) -> bool:
        """Whether the AMI is there and available."""
        with aws.explained():
            found = amis.described(_client_of(image), image.reference)
        if found is None:
            return False
        marks = tags_of(found)
        if marks.get(KEY) == image.key:
            if marks.get(STATE) == QUARANTINED:  # its removal was cut short
                return False
            if marks.get(STATE) == UNRECORDED:  # its recording was
                self.mark_cataloged(image, None)
        content = amis.as_image(found, image.handle["region"], "").digest
        if found["State"] != "available" or content != image.digest:
            raise ImageChangedError(
                f"the AMI {image.reference} of the image {image.name!r} is {found['State']}, or "
                f"made of other snapshots than when it was baked. Bake it again with "
                f"`pytest-ephemeral bake {image.name} --force`"
            )
        return True

    def pack(self, image: Image, file: Path) -> None:
        """AMIs stay in AWS: what goes into the store says where."""
        where = {"reference": image.reference, "region": image.handle["region"]}
        file.write_text(json.dumps(where, sort_keys=True) + "\n")

    def unpack(self, image: Image, file: Path) -> None:
        """An AMI that is not there can't be brought from anywhere."""
        where = json.loads(file.read_text())
        raise ImageMissingError(
            f"the AMI {where['reference']} of the image {image.name!r} is not in "
            f"{where['region']} any more, or this account may not see it. Bake it again with "
            f"`pytest-ephemeral bake {image.name} --force`"
        )

    def remove(self, image: Image) -> None:
        """Deregister the AMI and delete its snapshots, unless it was taken as it is."""
        if AS_IT_IS in image.handle:
            return
        client = _client_of(image)
        with asked(f"the image {image.name!r} can't be removed"):
            found = amis.described(client, image.reference)
            if users := _users(client, found or {"ImageId": image.reference}):
                raise ImageInUseError(
                    f"instances run from the image {image.name!r}: {', '.join(users)}"
                )
            if found is None:  # someone else has deregistered it, which leaves its snapshots
                deregistering.remove_snapshots(client, image.key)
            elif tags_of(found).get(KEY) == image.key:
                deregistering.remove(client, found)


#: What bases mean, for as long as this process lives: its key and its bake must mean the same.
_bases: dict[tuple[str, str], str] = {}
#: What this process bakes, by key and thread: one key may be baked for two stores.
_jobs: dict[tuple[str, int], BakeJob] = {}


def _clear(key: str, region: str | None) -> None:
    # What another thread makes meanwhile, for another store, is this process's too.
    alone = {thread for baked, thread in list(_jobs) if baked == key} == {threading.get_ident()}
    me = machine.process_of(machine.this_owner("bake")) if alone else None
    with aws.explained():
        client = aws.client("ec2", region)
        found = belongings.owned(client, KEY, [key], lambda one: one == me or machine.is_gone(one))
        left = {one.id for one in found if one.abandoned and not one.image}
        errors = sweeping.remove(client, left)
    for error in filter(None, errors.values()):
        raise error


def _own(image: Image) -> Mapping[str, Any] | None:
    """The AMI of an image that was baked here; None if it is gone."""
    found = amis.described(_client_of(image), image.reference)
    return found if found is not None and tags_of(found).get(KEY) == image.key else None


def _users(client: Any, found: Mapping[str, Any]) -> list[str]:
    """The instances that run from an AMI, or from a copy of it."""
    users = belongings.running_from(client, found["ImageId"])
    for there, copied in amis.copies_of(found):
        users += belongings.running_from(there, copied["ImageId"])
    return users


@contextmanager
def _explained(job: BakeJob) -> Iterator[None]:
    """Turn what AWS refuses into our error."""
    from botocore.exceptions import ClientError

    try:
        with aws.explained():
            yield
    except ClientError as error:
        raise BakeError(
            f"the image {job.recipe.name!r} was not baked: {refusals.told(error)}"
        ) from error


def _taken(recipe: Ec2Recipe) -> Mapping[str, Any]:
    """The AMI that a recipe takes as it is."""
    with aws.explained():
        found = amis.described(client_of(recipe), recipe.reference or "")
    if found is None or found["State"] != "available":
        state = "not there" if found is None else found["State"]
        raise ConfigurationError(
            f"the image {recipe.name!r}: the AMI {recipe.reference} is {state} in "
            f"{region_of(recipe)}, for this account. See `aws ec2 describe-images --image-ids "
            f"{recipe.reference}`, and region in images.{recipe.name}"
        )
    return found


def _client_of(image: Image) -> Any:
    return aws.client("ec2", image.handle["region"])
