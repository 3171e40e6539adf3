"""The instance of a bake: launch it, follow its output, stop it, and always remove it."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import msgspec

from pytest_ephemeral import aws, files, labels, machine
from pytest_ephemeral.errors import BakeError, ConfigurationError
from pytest_ephemeral.providers import install_files, install_script, waiting
from pytest_ephemeral.providers.bake_log import BakeLog, passed_variables
from pytest_ephemeral.providers.ec2 import (
    amis,
    console,
    removal,
    resources,
    run_instances,
    security_groups,
    transfers,
    user_data,
)
from pytest_ephemeral.providers.ec2.instance_watcher import state
from pytest_ephemeral.providers.ec2.tables import Ec2Recipe
from pytest_ephemeral.providers.ec2.tags import (
    KEY,
    PROCESS,
    RECIPE,
    TRANSFER,
    to_tags,
)
from pytest_ephemeral.providers.ec2.transfers import MARGIN, Transfer
from pytest_ephemeral.providers.protocol import BakeJob
from pytest_ephemeral.tables import Recipe

#: Seconds between checks of a bake's state.
POLL: Final = 2.0
#: Seconds that an instance may take to stop.
STOPPING: Final = 600.0
#: Seconds between reads of an instance's console: EC2 throttles these calls early.
CONSOLE_POLL: Final = 5.0
#: The same where the bake reports to a bucket.
SECOND_LOOK: Final = 15.0


class BakeInstance(msgspec.Struct, frozen=True):
    """An instance of a bake, and the bucket that it reports to, if it has one."""

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
    *,
    installing: bool,
    not_yet: Collection[str] = (),
) -> Iterator[BakeInstance]:
    """Launch an instance that installs or verifies; remove it and its group at the end.

    Args:
        job: The bake.
        image: The id of the AMI that the instance is launched from.
        installing: True to run the install script with its files, False to run ``verify``.
        not_yet: See ``run_instances.InstanceRequest``.
    """
    recipe = recipe_of(job.recipe)
    client = client_of(recipe)
    id = f"bake-{recipe.name}-{digits(job.key)[:6]}-{secrets.token_hex(3)}"
    transfer = _open_transfer(recipe, id)
    tags = {**tags_for(job, id), **({} if transfer is None else {TRANSFER: transfer.url})}
    launched: list[str] = []
    try:
        request = run_instances.InstanceRequest(
            id=id,
            image=image,
            types=[recipe.instance_type],
            subnets=[] if recipe.subnet is None else [recipe.subnet],
            groups=[security_groups.ensure(client, id, to_tags(tags), _vpc(client, recipe), ())],
            tags=tags,
            user_data=_script(job, recipe, transfer, installing=installing),
            not_yet=(run_instances.NEW_GROUP, *not_yet),
            more=_profile(recipe),
        )
        instance = run_instances.run(client, request, lambda _: None)[0]["InstanceId"]
        launched.append(instance)
        yield BakeInstance(client, job, recipe, id, instance, transfer)
    finally:
        removal.remove_one(client, id, images=False, launched=launched)


def _open_transfer(recipe: Ec2Recipe, id: str) -> Transfer | None:
    if recipe.bucket is None:
        return None
    return transfers.open_transfer(recipe, id, int(recipe.timeout) + MARGIN)


def _script(job: BakeJob, recipe: Ec2Recipe, transfer: Transfer | None, *, installing: bool) -> str:
    """The user data of a bake; if it is too large, a short script that downloads it."""
    given = dict(_deliveries(job, recipe, transfer)) if installing else {}
    script = user_data.bake_script(
        steps_of(job) if installing else recipe.verify,
        prefix=prefix_of(job.key),
        artifact=given.get("artifact"),
        files=given.get("files"),
        before=python_commands_of(recipe) if installing else (),
        variables=passed_variables(recipe),
        result_url="" if transfer is None else transfer.upload_url("result"),
        minutes=int(recipe.timeout // 60) + MARGIN // 60,
    )
    if len(script.encode()) <= user_data.LIMIT:
        return script
    if transfer is None:
        raise _too_large(recipe, f"with it, its user data has {len(script.encode())} bytes")
    return user_data.download_script(transfer.upload("boot", script.encode()))


def _deliveries(
    job: BakeJob, recipe: Ec2Recipe, transfer: Transfer | None
) -> Iterator[tuple[str, user_data.Delivery]]:
    """The files that an install script needs: the artifact, and the recipe's files."""
    if job.artifact is not None:
        yield "artifact", _deliver(recipe, transfer, job.artifact.name, job.artifact)
    if recipe.files:
        packed = install_files.pack(recipe.files, job.root, recipe.name)
        yield "files", _deliver(recipe, transfer, "files.tar.gz", packed)


def _deliver(
    recipe: Ec2Recipe, transfer: Transfer | None, name: str, content: Path | bytes
) -> user_data.Delivery:
    """Upload a file to the bucket, if the recipe has one; if not, put it into the script."""
    size = len(content) if isinstance(content, bytes) else content.stat().st_size
    if transfer is None and size >= user_data.LIMIT:
        raise _too_large(recipe, f"{name} has {size} bytes")
    data = [content] if isinstance(content, bytes) else files.chunks(content)
    digest = files.digest_of(data)
    if transfer is not None:
        return user_data.Delivery(name, digest, url=transfer.upload(name, content))
    sent = content if isinstance(content, bytes) else content.read_bytes()
    return user_data.Delivery(name, digest, content=sent)


def steps_of(job: BakeJob) -> str | list[str]:
    """The text of the install script, or the install commands."""
    install = job.recipe.install
    if isinstance(install, str):
        return (job.root / install).read_text()
    return install or []


def python_commands_of(recipe: Recipe) -> list[str]:
    """The shell commands that make ``python3`` the version that a recipe requires."""
    if recipe.python is None:
        return []
    return install_script.python_commands(recipe.python, '"$1/bin"', recipe.name)


def _too_large(recipe: Ec2Recipe, reason: str) -> ConfigurationError:
    return ConfigurationError(
        f"the image {recipe.name!r} can't be installed by user data alone, which EC2 limits to "
        f"{user_data.LIMIT} bytes: {reason}. Set images.{recipe.name}.bucket"
    )


def wait_for_success(built: BakeInstance, what: str) -> None:
    """Wait until an instance reports its exit status, and show its output meanwhile.

    Raises:
        BakeError: The exit status is not 0, the time is up, or the instance ended.
    """
    with BakeLog(built.job) as log:
        _follow(built, what, log)


def _follow(built: BakeInstance, what: str, log: BakeLog) -> None:
    output = _BakeOutput(log)

    def look() -> str:
        if status := _read_status(built, output):
            return status
        found = _describe(built)
        if found is not None and state(found) not in {"pending", "running"}:
            output.show_console(console.output(built.client, built.instance))
            reason = found.get("StateReason", {}).get("Message", "no reason given")
            raise log.failure(f"{built.instance} has ended, and is {state(found)}: {reason}")
        return ""

    every = POLL if built.transfer else CONSOLE_POLL
    status = waiting.wait_until(look, within=built.recipe.timeout, every=every)
    if not status:
        raise log.failure(f"{what} had not ended after {built.recipe.timeout}")
    if status != "0":
        raise log.failure(f"{what} exited with status {status}")


def _read_status(built: BakeInstance, output: _BakeOutput) -> str:
    """The exit status that the instance has reported; empty before it has.

    It is read from the bucket, with the whole log. The console is read too: an instance may be
    unable to reach the bucket, as presigned URLs expire with the credentials that signed them.
    """
    if built.transfer is None:
        return output.show_console(console.output(built.client, built.instance))
    if not (result := built.transfer.download("result")) and output.is_console_due():
        status = output.show_console(console.output(built.client, built.instance))
        if not status or not (result := built.transfer.download("result")):
            return status
    return output.show_log(result) if result else ""


class _BakeOutput:
    """The output of a bake, from the bucket or the console: each line is logged once."""

    def __init__(self, log: BakeLog) -> None:
        self._log = log
        self._number = 0
        self._looked = time.monotonic()

    def is_console_due(self) -> bool:
        """Whether the console was last read more than ``SECOND_LOOK`` seconds ago."""
        due = time.monotonic() - self._looked > SECOND_LOOK
        self._looked = time.monotonic() if due else self._looked
        return due

    def show_log(self, result: str) -> str:
        """Show the new lines of a log from the bucket; return the exit status in its first line."""
        head, _, log = result.partition("\n")
        status, _, total = head.partition(" ")
        new = max(0, int(total or 0) - self._number)
        for line in log.splitlines()[-new:] if new else ():
            self._log.write_line(line)
        return status

    def show_console(self, text: str) -> str:
        """Show the new lines of a console; return the exit status, empty if it is not there."""
        new = [
            line
            for line in user_data.lines(text)
            if line.part == "bake" and line.number > self._number
        ]
        if new:
            self._number = new[-1].number
            for line in new:
                self._log.write_line(line.text)
        return user_data.last_words(text)


def stop(built: BakeInstance) -> None:
    """Stop the instance, so that an AMI can be made of it; its expiry must not terminate it.

    Raises:
        BakeError: The instance was terminated, or did not stop in time.
    """
    client, id = built.client, built.instance
    client.modify_instance_attribute(
        InstanceId=id, InstanceInitiatedShutdownBehavior={"Value": "stop"}
    )
    client.stop_instances(InstanceIds=[id])

    def is_stopped() -> bool:
        found = _describe(built)
        if found is not None and state(found) in {"shutting-down", "terminated"}:
            raise BakeError(f"{id} was terminated while it was being stopped")
        return found is not None and state(found) == "stopped"

    if not waiting.wait_until(is_stopped, within=STOPPING, every=POLL):
        raise BakeError(f"{id} has not stopped after {STOPPING:g} s")


def _describe(built: BakeInstance) -> Mapping[str, Any] | None:
    """EC2's description of the instance; None if it is not visible, or EC2 throttles."""
    found = aws.poll(built.client, partial(resources.describe_instances, ids=[built.instance]))
    return next(iter(found or ()), None)


def tags_for(job: BakeJob, id: str) -> dict[str, str]:
    """The tags of all resources that a bake creates."""
    owner = machine.this_owner("bake")
    lifetime = timedelta(seconds=recipe_of(job.recipe).timeout + amis.PENDING + MARGIN)
    return {
        **labels.for_environment(
            id=id,
            template=job.recipe.name,
            run=run_of(job),
            owner=str(owner),
            expires_at=datetime.now(UTC) + lifetime,
            image=job.key,
        ),
        KEY: job.key,
        RECIPE: job.recipe.name,
        PROCESS: machine.process_of(owner),
        "Name": id,
    }


def run_of(job: BakeJob) -> str:
    """The run of a bake; one for each thread, as threads may bake a key for several stores."""
    process = machine.process_of(machine.this_owner("bake"))
    return f"bake-{digits(job.key)}-{process}.{threading.get_ident():x}"


def _profile(recipe: Ec2Recipe) -> dict[str, Any]:
    if recipe.instance_profile is None:
        return {}
    return {"IamInstanceProfile": {"Name": recipe.instance_profile}}


def _vpc(client: Any, recipe: Ec2Recipe) -> str | None:
    return None if recipe.subnet is None else resources.find_vpc(client, recipe.subnet)[0]


def client_of(recipe: Ec2Recipe) -> Any:
    return aws.client("ec2", recipe.region)


def region_of(recipe: Recipe) -> str:
    return str(client_of(recipe_of(recipe)).meta.region_name)


def recipe_of(recipe: Recipe) -> Ec2Recipe:
    if not isinstance(recipe, Ec2Recipe):
        raise ConfigurationError(f"recipe {recipe.name!r} is not an AMI recipe")
    return recipe


def prefix_of(key: str) -> str:
    return f"{user_data.PREFIX}/{digits(key)}"


def digits(key: str) -> str:
    """The first 24 digits of a key, for use in names."""
    return key.removeprefix("sha256:")[:24]
