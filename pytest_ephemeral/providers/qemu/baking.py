"""Bake a disk image: cloud-init installs in a machine of the base, whose disk is then sealed."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from importlib.resources import files as resources
from pathlib import Path
from typing import Final

import msgspec

from pytest_ephemeral import files
from pytest_ephemeral.errors import (
    ConfigurationError,
    EphemeralError,
    ImageChangedError,
)
from pytest_ephemeral.masking import worth_masking
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers import install_files
from pytest_ephemeral.providers.bake_log import BakeLog, passed_variables
from pytest_ephemeral.providers.ec2 import user_data
from pytest_ephemeral.providers.ec2.builders import python_commands_of, steps_of
from pytest_ephemeral.providers.local import tree
from pytest_ephemeral.providers.local.baking import LocalBaker
from pytest_ephemeral.providers.local.prefix import Prefix
from pytest_ephemeral.providers.local.reference import AS_IT_IS
from pytest_ephemeral.providers.local.sealing import write_seal
from pytest_ephemeral.providers.protocol import BakeJob
from pytest_ephemeral.providers.qemu import bases, machines, memory, programs, qmp
from pytest_ephemeral.providers.qemu.content import Content
from pytest_ephemeral.providers.qemu.hardware import DISK, Hardware
from pytest_ephemeral.providers.qemu.machines import Start, Temporary
from pytest_ephemeral.providers.qemu.tables import QemuRecipe
from pytest_ephemeral.tables import Recipe

#: The artifact's disk in the guest: udev names it by its serial number.
_ARTIFACT: Final = "/dev/disk/by-id/virtio-artifact"

#: Seconds to wait until a machine powers off after the installation.
_OFF: Final = 300.0
#: Seconds between reads of a console, and between checks of a guest without output.
_LOOK, _ASK = 0.2, 20.0


class QemuBaker(LocalBaker):
    """The part of the qemu provider that bakes images; see ``Baker``.

    An image is a sealed tree, as with the local provider, that has a disk and maybe a kernel.
    """

    def resolve(self, recipe: Recipe, root: Path) -> Mapping[str, str]:
        """The digests of the files that a recipe names."""
        wanted = _recipe_of(recipe)
        if wanted.reference is not None and (wanted.install or wanted.artifact):
            raise ConfigurationError(
                f"the image {recipe.name!r} has a reference, which is used unchanged: "
                "remove install and artifact, or the reference"
            )
        return bases.inputs_of(wanted, root)

    def adopt(self, job: BakeJob) -> Image | None:
        """The image of that key, if its tree is here, sealed and unchanged."""
        found = None if job.recipe.reference is not None else super().adopt(job)
        return None if found is None else msgspec.structs.replace(found, provider="qemu")

    def bake(self, job: BakeJob) -> Image:
        """Boot the base, install, power it off, and compress its disk."""
        recipe = _recipe_of(job.recipe)
        content = bases.content_of(recipe, job.root)
        if recipe.reference is not None:
            return _describe_reference(job, content)
        prefix = Prefix.of(job.key)
        prefix.clear()
        prefix.tree.mkdir(mode=0o755)
        start = Start(Hardware.of(recipe), content, artifact=job.artifact, disk=recipe.disk)
        with BakeLog(job) as log, _machine(job, recipe, start, _script(job, recipe)) as machine:
            job.say(f"installing in {machine.id}")
            _follow(machine, log, recipe)
            if not machine.wait_for_end(_OFF):
                raise log.failure(f"its machine did not power off within {_OFF:g} s")
            job.say("compressing its disk")
            disk = content.copy_boot(prefix.tree)
            programs.compress(machine.place.state / DISK, disk)
        return _seal(job, prefix)

    def verify(self, job: BakeJob, image: Image) -> None:
        """Boot the image, and run ``verify`` by the guest agent; then write the seal."""
        recipe = _recipe_of(job.recipe)
        if AS_IT_IS in image.handle and not recipe.verify:
            return
        start = Start(Hardware.of(recipe), Content.of(image), disk=recipe.disk)
        with BakeLog(job) as log, _machine(job, recipe, start, machines.UP_SCRIPT) as machine:
            job.say(f"verifying it in {machine.id}")
            try:
                machine.wait_until_up(recipe.timeout)
                _verify_in(machine, recipe, log)
            except qmp.MachineError as error:
                raise log.failure(f"verifying it failed: {error}") from error
        seal = Prefix.of(job.key).read_unverified_seal()
        if AS_IT_IS not in image.handle and seal is not None:
            Prefix.of(job.key).write_seal(seal, verified=True)

    def present(self, image: Image) -> bool:
        """Whether the image's files are here and unchanged.

        Raises:
            ImageChangedError: A file was changed.
        """
        if AS_IT_IS not in image.handle:
            return super().present(image)
        content = Content.of(image)
        if not all(file.is_file() for file in content.files()):
            return False
        if _digest(content) != image.digest:
            raise ImageChangedError(
                f"{content.disk} has changed since it was recorded as the image {image.name!r}. "
                f"Record its new content with `pytest-ephemeral bake {image.name}`"
            )
        return True

    def remove(self, image: Image) -> None:
        """Remove the image's tree, and the frozen memory of its machines."""
        for one in memory.every():
            record = one.read()
            if record is not None and record.image == image.digest:
                one.remove()
        if AS_IT_IS not in image.handle:
            super().remove(image)


def _recipe_of(recipe: Recipe) -> QemuRecipe:
    if not isinstance(recipe, QemuRecipe):
        raise ConfigurationError(f"the image {recipe.name!r} is not a QEMU image")
    return recipe


def _machine(
    job: BakeJob, recipe: QemuRecipe, start: Start, script: str
) -> AbstractContextManager[Temporary]:
    return machines.temporary(
        f"bake-{recipe.name}",
        start,
        script,
        key=job.key,
        lifetime=recipe.timeout * 2 + _OFF,
        descriptors=job.descriptors,
        secrets=worth_masking(passed_variables(recipe).values()),
    )


def _script(job: BakeJob, recipe: QemuRecipe) -> str:
    given: dict[str, user_data.Delivery] = {}
    if job.artifact is not None:
        given["artifact"] = user_data.Delivery(
            name=job.artifact.name,
            digest=files.digest_of(files.chunks(job.artifact)),
            device=_ARTIFACT,
            size=job.artifact.stat().st_size,
        )
    if recipe.files:
        packed = install_files.pack(recipe.files, job.root, recipe.name)
        digest = files.digest_of([packed])
        given["files"] = user_data.Delivery("files.tar.gz", digest, content=packed)
    return user_data.bake_script(
        steps_of(job),
        prefix=user_data.PREFIX,
        artifact=given.get("artifact"),
        files=given.get("files"),
        before=python_commands_of(recipe),
        variables=passed_variables(recipe),
        minutes=None,
        after=[resources(__package__).joinpath("guest/clean.sh").read_text()],
    )


def _follow(machine: Temporary, log: BakeLog, recipe: QemuRecipe) -> None:
    """Log the output of the install script until it ends.

    Raises:
        BakeError: It failed, or was not run.
    """
    deadline, shown = time.monotonic() + recipe.timeout, 0
    ask_at = time.monotonic() + _ASK
    while True:
        console = machines.read_console(machine.place)
        printed = [one for one in user_data.lines(console) if one.part == "bake" and one.number]
        for line in printed[shown:]:
            log.write_line(line.text)
        shown = len(printed)
        if status := user_data.last_words(console):
            if status != "0":
                raise log.failure(f"its install script failed: it exited with {status}")
            return
        why = machines.find_boot_failure(console)
        if not why and machines.exit_status(machine.place) is not None:
            why = "QEMU has ended"
        if not why and not shown and time.monotonic() > ask_at:
            why, ask_at = _check_cloud_init(machine), time.monotonic() + _ASK
        if not why and time.monotonic() > deadline:
            why = f"it was not done within {recipe.timeout} (timeout in images.{recipe.name})"
        if why:
            log.write(f"{machines.last_lines(console)}\n")
            raise log.failure(f"its installation did not begin: {why}")
        time.sleep(_LOOK)


def _check_cloud_init(machine: Temporary) -> str:
    """Why cloud-init in a guest does not run the user data; empty while it may still do so."""
    try:
        with qmp.open_agent(machine.id, machine.place.state, timeout=1.0) as agent:
            done = machines.run_in(agent, ["cloud-init", "status", "--long"], timeout=60)
    except EphemeralError:
        return ""  # it is booting, or has no guest agent
    if done is None:
        return ""
    status, output, errors = done
    text = " ".join((output or errors).split())
    if "cloud-init" in errors and status in {1, 127} and not output:
        return "it has no cloud-init: install the package cloud-init in the base"
    if "status: running" in output or "status: not" in output:
        return ""
    return f"cloud-init did not run the user data. It says: {text}"


def _verify_in(machine: Temporary, recipe: QemuRecipe, log: BakeLog) -> None:
    with qmp.open_agent(machine.id, machine.place.state) as agent:
        for command in recipe.verify:
            log.write_line(f"verifying: {command}")
            argv = ["env", f"PREFIX={user_data.PREFIX}", "sh", "-ec", command]
            done = machines.run_in(agent, argv, timeout=recipe.timeout)
            if done is None:
                raise log.failure(f"verifying took longer than {recipe.timeout}: `{command}`")
            status, output, errors = done
            log.write(output + errors)
            if status != 0:
                raise log.failure(f"verifying failed: `{command}` exited with {status}")


# -- sealing -------------------------------------------------------------------------------


def _seal(job: BakeJob, prefix: Prefix) -> Image:
    """Seal the tree of a bake; the seal is not verified yet."""
    tree.seal(prefix.tree)
    manifest = tree.manifest(prefix.tree)
    seal = write_seal(prefix, job.key, manifest, [], verified=False)
    return Image(
        name=job.recipe.name,
        key=job.key,
        provider="qemu",
        reference=str(prefix.tree),
        digest=seal.digest,
        size=seal.size,
        baked_at=datetime.now(UTC),
    )


def _describe_reference(job: BakeJob, content: Content) -> Image:
    """Describe the files of a ``reference`` as an image."""
    return Image(
        name=job.recipe.name,
        key=job.key,
        provider="qemu",
        reference=str(content.disk),
        digest=_digest(content),
        size=sum(file.stat().st_size for file in content.files()),
        baked_at=datetime.now(UTC),
        handle={AS_IT_IS: "yes", **content.to_handle()},
    )


def _digest(content: Content) -> str:
    """The digest of all files of an image; if it has only a disk, the digest of that."""
    found = [bases.digest_of(file) for file in content.files()]
    return found[0] if len(found) == 1 else files.digest_of([" ".join(found).encode()])
