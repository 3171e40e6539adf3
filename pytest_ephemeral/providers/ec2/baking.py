"""Bake an AMI.

An instance of the base runs the install script and is stopped. An AMI is made of it, and verified
on a new instance. Every resource gets the key as a tag in the call that creates it, so the next
bake of that key, and ``reap``, find what a killed bake has left.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Final

import msgspec

from pytest_ephemeral import aws, labels
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
    deregistration,
    removal,
    resources,
    run_instances,
)
from pytest_ephemeral.providers.ec2.builders import (
    builder,
    client_of,
    prefix_of,
    recipe_of,
    region_of,
    run_of,
    stop,
    tags_for,
    wait_for_success,
)
from pytest_ephemeral.providers.ec2.errors import translate_errors
from pytest_ephemeral.providers.ec2.tables import Ec2Recipe
from pytest_ephemeral.providers.ec2.tags import (
    KEY,
    QUARANTINED,
    STATE,
    UNRECORDED,
    VERIFIED,
    tags_of,
)
from pytest_ephemeral.providers.protocol import BakeJob
from pytest_ephemeral.tables import Recipe

#: In an image's handle: the AMI was made elsewhere, and is used unchanged.
AS_IT_IS: Final = "as-it-is"


class Ec2Baker:
    """The part of the ec2 provider that bakes images; see ``Baker``."""

    def resolve(self, recipe: Recipe, root: Path) -> Mapping[str, str]:  # noqa: ARG002
        """The AMI that the base stands for today; a reference is checked to exist."""
        wanted, region = recipe_of(recipe), region_of(recipe)
        aws.identity(region)  # if AWS can't be reached, STS fails sooner than EC2
        if wanted.reference is not None:
            _find_reference(wanted)
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
        """No lock on this machine: the claim in the store is enough for an AMI."""
        return contextlib.nullcontext(())

    def adopt(self, job: BakeJob) -> Image | None:
        """The verified AMI of that key, from a bake for another store or an interrupted one."""
        recipe = recipe_of(job.recipe)
        if recipe.reference is not None:
            return None
        with aws.translate_errors():
            found = amis.find_by_key(client_of(recipe), job.key, VERIFIED, UNRECORDED)
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
            found = _find_reference(recipe)
            image = amis.as_image(found, region_of(recipe), "")
            handle = {**image.handle, AS_IT_IS: "yes"}
            return msgspec.structs.replace(image, name=recipe.name, key=job.key, handle=handle)
        self.discard(job)
        base = self.resolve(recipe, job.root)["base"]
        with _translate_errors(job), builder(job, base, installing=True) as built:
            job.say(f"installing on {built.instance}")
            wait_for_success(built, "its install script")
            stop(built)
            # The name is unique to this bake: another store's bake of the key has its own AMI.
            name = f"pytest-ephemeral-{built.id}"
            ami = amis.create(built.client, built.instance, name, tags_for(job, built.id))
            job.say(f"making the AMI {ami} of {built.instance}")
            found = amis.wait(built.client, ami, job.say)
        return amis.as_image(found, region_of(recipe), prefix_of(job.key))

    def verify(self, job: BakeJob, image: Image) -> None:
        """Run ``verify`` on a new instance of the AMI; then tag it as verified, and copy it."""
        recipe = recipe_of(job.recipe)
        if AS_IT_IS in image.handle and not recipe.verify:
            return
        client = client_of(recipe)
        with _translate_errors(job):
            new = run_instances.NEW_IMAGE
            with builder(job, image.reference, installing=False, not_yet=new) as built:
                job.say(f"verifying it on {built.instance}")
                wait_for_success(built, "verifying it")
            if AS_IT_IS in image.handle:
                return
            found = amis.wait(client, image.reference, job.say)
            if tags_of(found).get(STATE) == QUARANTINED:
                amis.verify(client, found)
            amis.copy(found, image.handle["region"], recipe.copy_to, job.say)

    def mark_cataloged(self, image: Image, predecessor: Image | None) -> None:
        """Tag the AMI as cataloged; deregister its predecessor unless it is in use."""
        if AS_IT_IS in image.handle:
            return
        with translate_errors(f"the AMI {image.reference} can't be tagged as recorded"):
            if found := _own(image):
                amis.record(_client_of(image), found)
            replaced = predecessor and predecessor.reference != image.reference
            if predecessor and replaced and (old := _own(predecessor)):
                client = _client_of(predecessor)
                if _users(client, old):
                    deregistration.leave(client, old)
                else:
                    deregistration.remove(client, old)

    def discard(self, job: BakeJob) -> None:
        """Remove the instances, groups, quarantined AMIs and snapshots of failed bakes of a key.

        Only this thread's bakes, and those of processes that are gone: others may be baking the
        same key for another store.
        """
        recipe = recipe_of(job.recipe)
        for region in (recipe.region, *recipe.copy_to):
            _clear(job, region)

    def present(self, image: Image) -> bool:
        """Whether the AMI exists and is available.

        Raises:
            ImageChangedError: It is in another state, or has other snapshots than when baked.
        """
        with aws.translate_errors():
            found = amis.describe(_client_of(image), image.reference)
        if found is None:
            return False
        tags = tags_of(found)
        if tags.get(KEY) == image.key:
            if tags.get(STATE) == QUARANTINED:  # its removal was interrupted
                return False
            if tags.get(STATE) == UNRECORDED:  # mark_cataloged was interrupted
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
        """Write the AMI's id and region to a file: the AMI itself stays in AWS."""
        where = {"reference": image.reference, "region": image.handle["region"]}
        file.write_text(json.dumps(where, sort_keys=True) + "\n")

    def unpack(self, image: Image, file: Path) -> None:
        """Always fail: an AMI can't be restored from the store.

        Raises:
            ImageMissingError: In every case.
        """
        where = json.loads(file.read_text())
        raise ImageMissingError(
            f"the AMI {where['reference']} of the image {image.name!r} is not in "
            f"{where['region']} any more, or not visible to this account. Bake it again with "
            f"`pytest-ephemeral bake {image.name} --force`"
        )

    def remove(self, image: Image) -> None:
        """Deregister the AMI and delete its snapshots, unless it was made elsewhere.

        Raises:
            ImageInUseError: Instances run from it.
            DestroyError: AWS refuses.
        """
        if AS_IT_IS in image.handle:
            return
        client = _client_of(image)
        with translate_errors(f"the image {image.name!r} can't be removed"):
            found = amis.describe(client, image.reference)
            if users := _users(client, found or {"ImageId": image.reference}):
                raise ImageInUseError(
                    f"instances run from the image {image.name!r}: {', '.join(users)}"
                )
            if found is None:  # deregistered by someone else, which leaves its snapshots
                deregistration.remove_snapshots(client, image.key)
            elif tags_of(found).get(KEY) == image.key:
                deregistration.remove(client, found)


#: The AMI of each base, resolved once in a process: key and bake must use the same AMI.
_bases: dict[tuple[str, str], str] = {}


def _clear(job: BakeJob, region: str | None) -> None:
    with aws.translate_errors():
        client = aws.client("ec2", region)
        found = resources.list_owned(client, KEY, [job.key])
        own = {one.id for one in found if one.labels.get(labels.RUN) == run_of(job)}
        left = {one.id for one in found if (one.abandoned or one.id in own) and not one.image}
        removals = removal.remove(client, left)
    for error in filter(None, removals.values()):
        raise error


def _own(image: Image) -> Mapping[str, Any] | None:
    """EC2's description of an image's AMI; None if it is gone, or has another key."""
    found = amis.describe(_client_of(image), image.reference)
    return found if found is not None and tags_of(found).get(KEY) == image.key else None


def _users(client: Any, found: Mapping[str, Any]) -> list[str]:
    """The ids of the instances that run from an AMI or from a copy of it."""
    users = resources.find_running_from(client, found["ImageId"])
    for there, copied in amis.copies_of(found):
        users += resources.find_running_from(there, copied["ImageId"])
    return users


def _translate_errors(job: BakeJob) -> AbstractContextManager[None]:
    return translate_errors(f"the image {job.recipe.name!r} could not be baked", BakeError)


def _find_reference(recipe: Ec2Recipe) -> Mapping[str, Any]:
    """EC2's description of the AMI that a recipe's ``reference`` names."""
    with aws.translate_errors():
        found = amis.describe(client_of(recipe), recipe.reference or "")
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
