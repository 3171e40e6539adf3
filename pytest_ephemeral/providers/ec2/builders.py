"""The instance of a bake: launched, listened to, stopped, and gone afterwards, however it ends."""

from __future__ import annotations

import random
import secrets
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import msgspec

from pytest_ephemeral import aws, files, labels, machine
from pytest_ephemeral.errors import BakeError, ConfigurationError
from pytest_ephemeral.providers.bake_log import BakeLog, passed_variables
from pytest_ephemeral.providers.ec2 import (
    amis,
    belongings,
    console,
    groups,
    guest,
    launching,
    sweeping,
    transfers,
)
from pytest_ephemeral.providers.ec2.fleet import state
from pytest_ephemeral.providers.ec2.tables import Ec2Recipe
from pytest_ephemeral.providers.ec2.tagging import (
    KEY,
    PROCESS,
    RECIPE,
    TRANSFER,
    as_tags,
)
from pytest_ephemeral.providers.ec2.transfers import MARGIN, Transfer
from pytest_ephemeral.providers.protocol import BakeJob
from pytest_ephemeral.tables import Recipe

#: Seconds between looks at a bake.
POLL: Final = 2.0
#: Seconds in which an instance stops.
STOPPING: Final = 600.0
#: Seconds between looks at an instance's console: EC2 counts those calls closely.
CONSOLE_POLL: Final = 5.0
#: And where the outcome is expected in a bucket.
SECOND_LOOK: Final = 15.0


class Built(msgspec.Struct, frozen=True):
    """An instance of a bake, and how to hear from it."""

    client: Any
    job: BakeJob
    recipe: Ec2Recipe
    id: str
    instance: str
    transfer: Transfer | None


@contextmanager
def builder(
    job: BakeJob,
    image: str,
    steps: str | Sequence[str],
    artifact: Path | None,
    *,
    young: Collection[str] = (),
) -> Iterator[Built]:
    """An instance that runs some steps; it and its group are gone afterwards, however it ends.

    Args:
        job: The bake.
        image: What the instance is launched from.
        steps: What it runs.
        artifact: What it gets.
        young: See ``launching.Wanted``.
    """
    recipe = recipe_of(job.recipe)
    client = client_of(recipe)
    id = f"bake-{recipe.name}-{digits(job.key)[:6]}-{secrets.token_hex(3)}"
    marks = marks_of(job, id)
    seconds = int(recipe.timeout) + MARGIN
    transfer = None if recipe.bucket is None else transfers.opened(recipe, id, seconds)
    if transfer is not None:
        marks[TRANSFER] = transfer.url
    try:
        group = groups.ensure(client, id, as_tags(marks), _vpc(client, recipe.subnet), ())
        script = _script(job, recipe, steps, artifact, transfer)
        wanted = launching.Wanted(
            id=id,
            image=image,
            types=[recipe.instance_type],
            subnets=[] if recipe.subnet is None else [recipe.subnet],
            groups=[group],
            marks=marks,
            user_data=script,
            young=(launching.NEW_GROUP, *young),
            more=_profile(recipe),
        )
        launched = launching.run(client, wanted, lambda _: None)
        instance = launched[0]["InstanceId"]
        yield Built(client, job, recipe, id, instance, transfer)
    finally:
        sweeping.remove_one(client, id, images=False)


def _script(
    job: BakeJob,
    recipe: Ec2Recipe,
    steps: str | Sequence[str],
    artifact: Path | None,
    transfer: Transfer | None,
) -> str:
    """The user data of a bake; what does not fit goes through the bucket."""
    delivery = None
    if artifact is not None:
        digest = files.digest_of(files.chunks(artifact))
        if transfer is not None:
            url = transfer.give(artifact.name, artifact)
            delivery = guest.Delivery(artifact.name, digest, url=url)
        elif artifact.stat().st_size < guest.USER_DATA_LIMIT:
            delivery = guest.Delivery(artifact.name, digest, content=artifact.read_bytes())
        else:
            raise _too_large(recipe, f"{artifact.name} has {artifact.stat().st_size} bytes")
    script = guest.bake_script(
        steps,
        prefix=prefix_of(job.key),
        artifact=delivery,
        variables=passed_variables(recipe),
        result_url="" if transfer is None else transfer.taking("result"),
        minutes=int(recipe.timeout // 60) + MARGIN // 60,
    )
    if len(script.encode()) <= guest.USER_DATA_LIMIT:
        return script
    if transfer is None:
        raise _too_large(recipe, f"with it, its user data has {len(script.encode())} bytes")
    return guest.fetching(transfer.give("boot", script.encode()))


def _too_large(recipe: Ec2Recipe, said: str) -> ConfigurationError:
    return ConfigurationError(
        f"the image {recipe.name!r} can't be installed by user data alone, of which EC2 takes "
        f"{guest.USER_DATA_LIMIT} bytes: {said}. Give images.{recipe.name} a bucket, which takes "
        "it there"
    )


def succeed(built: Built, what: str) -> None:
    """Wait until an instance has said how it went, showing what it prints.

    Raises:
        BakeError: It went wrong, took too long, or the instance ended.
    """
    with BakeLog(built.job) as log:
        _wait_for_success(built, what, log)


def _wait_for_success(built: Built, what: str, log: BakeLog) -> None:
    started, shown = time.monotonic(), _Shown(log)
    while True:
        status = _outcome(built, shown)
        if status == "0":
            return
        if status:
            raise log.failure(f"{what} exited with status {status}")
        if time.monotonic() - started > built.recipe.timeout:
            raise log.failure(f"{what} had not ended after {built.recipe.timeout}")
        found = _described(built)
        if found is not None and state(found) not in {"pending", "running"}:
            shown.console(console.output(built.client, built.instance))
            reason = found.get("StateReason", {}).get("Message", "no reason given")
            raise log.failure(f"{built.instance} is {state(found)} by itself: {reason}")
        time.sleep(
            (POLL if built.transfer else CONSOLE_POLL) * random.SystemRandom().uniform(1, 1.2)
        )


def _outcome(built: Built, shown: _Shown) -> str:
    """The exit status it has told; empty while it has not.

    Through the bucket, with the whole log; on the console, too, as what can't reach the bucket (its
    URLs end with the credentials they were made with) must not be waited for in vain.
    """
    if built.transfer is None:
        return shown.console(console.output(built.client, built.instance))
    if not (result := built.transfer.taken("result")) and shown.is_due():
        said = shown.console(console.output(built.client, built.instance))
        if not said or not (result := built.transfer.taken("result")):
            return said
    return shown.whole(result) if result else ""


class _Shown:
    """What a bake has printed: logged, and shown once."""

    def __init__(self, log: BakeLog) -> None:
        self._log = log
        self._number = 0
        self._looked = time.monotonic()

    def is_due(self) -> bool:
        """Whether the console was not looked at for a while, where it is not all there is."""
        due = time.monotonic() - self._looked > SECOND_LOOK
        self._looked = time.monotonic() if due else self._looked
        return due

    def whole(self, result: str) -> str:
        """Show what is new in a whole log; the outcome that stands before it."""
        head, _, log = result.partition("\n")
        status, _, total = head.partition(" ")
        new = max(0, int(total or 0) - self._number)
        for line in log.splitlines()[-new:] if new else ():
            self._log.write_line(line)
        return status

    def console(self, text: str) -> str:
        """Show what is new on a console; the outcome, if it says so."""
        new = [
            line for line in guest.lines(text) if line.part == "bake" and line.number > self._number
        ]
        if new:
            self._number = new[-1].number
            for line in new:
                self._log.write_line(line.text)
        return guest.last_words(text)


def stop(built: Built) -> None:
    """Stop it to be imaged, and see to it that its own shutdown does not destroy it."""
    client, id = built.client, built.instance
    client.modify_instance_attribute(
        InstanceId=id, InstanceInitiatedShutdownBehavior={"Value": "stop"}
    )
    client.stop_instances(InstanceIds=[id])
    deadline = time.monotonic() + STOPPING
    while (found := _described(built)) is None or state(found) != "stopped":
        if time.monotonic() > deadline:
            raise BakeError(f"{id} has not stopped after {STOPPING:g} s")
        if found is not None and state(found) in {"shutting-down", "terminated"}:
            raise BakeError(f"{id} was terminated while it was being stopped")
        time.sleep(POLL * random.SystemRandom().uniform(1, 1.2))


def _described(built: Built) -> Mapping[str, Any] | None:
    """The instance as EC2 has it; None while that can't be told."""
    from botocore.exceptions import ClientError

    try:
        return next(iter(belongings.described(built.client, [built.instance])), None)
    except ClientError as error:
        if aws.code(error) in aws.THROTTLED:
            return None
        raise


def marks_of(job: BakeJob, id: str) -> dict[str, str]:
    """What all that a bake makes is tagged with."""
    owner = machine.this_owner("bake")
    lifetime = timedelta(seconds=recipe_of(job.recipe).timeout + amis.PENDING + MARGIN)
    return {
        **labels.for_environment(
            id=id,
            template=job.recipe.name,
            run=f"bake-{digits(job.key)}",
            owner=str(owner),
            expires_at=datetime.now(UTC) + lifetime,
            image=job.key,
        ),
        KEY: job.key,
        RECIPE: job.recipe.name,
        PROCESS: machine.process_of(owner),
        "Name": id,
    }


def steps_of(job: BakeJob) -> str | list[str]:
    """The script's text, or the commands."""
    install = job.recipe.install
    if isinstance(install, str):
        return (job.root / install).read_text()
    return install or []


def _profile(recipe: Ec2Recipe) -> dict[str, Any]:
    if recipe.instance_profile is None:
        return {}
    return {"IamInstanceProfile": {"Name": recipe.instance_profile}}


def _vpc(client: Any, subnet: str | None) -> str | None:
    return None if subnet is None else belongings.vpc_of(client, subnet)[0]


def client_of(recipe: Ec2Recipe) -> Any:
    return aws.client("ec2", recipe.region)


def region_of(recipe: Recipe) -> str:
    return str(client_of(recipe_of(recipe)).meta.region_name)


def recipe_of(recipe: Recipe) -> Ec2Recipe:
    if not isinstance(recipe, Ec2Recipe):
        raise ConfigurationError(f"recipe {recipe.name!r} is not an AMI recipe")
    return recipe


def prefix_of(key: str) -> str:
    return f"{guest.PREFIX}/{digits(key)}"


def digits(key: str) -> str:
    """As much of a key as names need."""
    return key.removeprefix("sha256:")[:24]
