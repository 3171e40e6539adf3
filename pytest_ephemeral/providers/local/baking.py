"""Bake a local image: install scripts run under a guard and write a tree, which is then sealed."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Final

import msgspec

from pytest_ephemeral import machine
from pytest_ephemeral.errors import (
    BakeError,
    ConfigurationError,
    ImageChangedError,
)
from pytest_ephemeral.models import Image
from pytest_ephemeral.providers import install_files, install_script
from pytest_ephemeral.providers.bake_log import (
    PACKAGE_SOURCES,
    BakeLog,
    passed_secrets,
    passed_variables,
)
from pytest_ephemeral.providers.local import guard, mounts, python, reference, tree
from pytest_ephemeral.providers.local.prefix import (
    Prefix,
    exclusive,
    prefix_root,
    require_trusted,
    require_trusted_root,
)
from pytest_ephemeral.providers.local.sealing import (
    describe_image,
    find_differences,
    name_some,
    require_links,
    seal_prefix,
    write_seal,
)
from pytest_ephemeral.providers.protocol import BakeJob
from pytest_ephemeral.tables import Recipe

#: The variables of this process that install scripts get. Other variables could make two machines
#: bake different images.
ALLOWED: Final = (
    *("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_*", "TZ"),
    *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"),
    "NODE_EXTRA_CA_CERTS",
    *PACKAGE_SOURCES,
)


class LocalBaker:
    """The part of the local provider that bakes images; see ``Baker``."""

    def resolve(self, recipe: Recipe, root: Path) -> Mapping[str, str]:
        """The platform, the install folder and Python; for a reference, the folder's digest."""
        if recipe.reference is None:
            found = python.find(recipe.python, os.environ, _key(recipe))
            return {
                "platform": f"{sys.platform} {os.uname().machine}",
                "prefix": str(prefix_root()),
                "python": "none" if found is None else python.describe(found),
            }
        folder = reference.folder_of(recipe.reference, root)
        if recipe.install or recipe.artifact:
            raise ConfigurationError(
                f"the image {recipe.name!r} has a reference, which is used unchanged: "
                "remove install and artifact, or the reference"
            )
        return {"reference": str(folder), "content": tree.digest(reference.read_manifest(folder))}

    def exclusive(
        self, key: str, what: str, say: Callable[[str], None]
    ) -> AbstractContextManager[Sequence[int]]:
        """Hold the exclusive lock of the key's tree."""
        return exclusive(Prefix.of(key), what, say)

    def adopt(self, job: BakeJob) -> Image | None:
        """The image of that key, if its tree is here, sealed and unchanged."""
        prefix = Prefix.of(job.key)
        require_trusted(prefix)
        seal = prefix.read_seal()
        if seal is None or seal.key != job.key or find_differences(prefix, seal):
            return None
        return describe_image(job, prefix, seal)

    def bake(self, job: BakeJob) -> Image:
        """Install into the prefix and seal the tree; or use the folder of a reference."""
        if job.recipe.reference is not None:
            return reference.take(job, reference.folder_of(job.recipe.reference, job.root))
        prefix = Prefix.of(job.key)
        prefix.clear()
        prefix.tree.mkdir(mode=0o755)
        variables = _variables(job, job.recipe, prefix.tree)
        for argv in _install_commands(job):
            _run(job, prefix, argv, variables, failed="its install script", files=job.recipe.files)
        job.say("sealing it")
        seal = seal_prefix(job, prefix)
        return describe_image(job, prefix, seal)

    def verify(self, job: BakeJob, image: Image) -> None:
        """Run the ``verify`` commands with a read-only tree; then write the seal.

        Raises:
            BakeError: A command failed, or changed the tree.
        """
        content = Path(image.reference)
        prefix = Prefix.of(image.key)
        # If the tree can't be mounted read-only, Python run by root would write caches into it.
        recipe = msgspec.structs.replace(job.recipe, pass_env=[])
        variables = {**_variables(job, recipe, content), "PYTHONDONTWRITEBYTECODE": "1"}
        for command in job.recipe.verify:
            job.say(f"verifying: {command}")
            argv = ["/bin/sh", "-ec", command]
            _run(job, prefix, argv, variables, failed="verifying", readonly=[content], image=image)
        seal = prefix.read_unverified_seal()
        if reference.AS_IT_IS in image.handle or seal is None:
            return
        if changed := find_differences(prefix, seal):
            raise BakeError(
                f"verifying the image {job.recipe.name!r} changed it: {name_some(changed)}. A "
                f"verify command may not write into $PREFIX. The log: {job.log}"
            )
        prefix.write_seal(seal, verified=True)

    def discard(self, job: BakeJob) -> None:
        """Remove the key's tree and all files beside it."""
        Prefix.of(job.key).clear()

    def present(self, image: Image) -> bool:
        """Whether the tree is here and unchanged.

        Raises:
            ImageChangedError: The tree was changed since it was baked.
        """
        if reference.AS_IT_IS in image.handle:
            return reference.is_unchanged(image)
        prefix = Prefix.at(image)
        require_trusted(prefix)
        seal = prefix.read_seal()
        if seal is None or seal.digest != image.digest:
            return False
        if changed := find_differences(prefix, seal):
            raise ImageChangedError(
                f"the image {image.name!r} is no longer what was baked: in {prefix.tree}, "
                f"{name_some(changed)}. Bake it again with "
                f"`pytest-ephemeral bake {image.name} --force`"
            )
        return True

    def pack(self, image: Image, file: Path) -> None:
        """Write the tree to a file."""
        from pytest_ephemeral.providers.local import archive

        archive.pack(reference.content_of(image), file)

    def unpack(self, image: Image, file: Path) -> None:
        """Restore the tree from a file that ``pack`` wrote; ``exclusive`` must be held.

        Raises:
            ImageChangedError: The file has another image.
        """
        from pytest_ephemeral.providers.local import archive

        prefix = Prefix.at(image)
        links = [link for link in image.handle.get("links", "").split("\n") if link]
        require_links(image.name, links)
        prefix.clear()
        try:
            archive.unpack(file, prefix.unpacking, size=image.size)
            manifest = tree.manifest(prefix.unpacking)
            tree.require(manifest, image.digest)
        except BaseException as error:
            prefix.clear()
            if not isinstance(error, tree.BadTreeError):
                raise
            raise ImageChangedError(
                f"the archive of the image {image.name!r} is not {image.digest}: {error}. Bake it "
                f"again with `pytest-ephemeral bake {image.name} --force`"
            ) from error
        prefix.unpacking.rename(prefix.tree)
        write_seal(prefix, image.key, manifest, links, verified=True)

    def serves(self, image: Image, inputs: Mapping[str, str]) -> bool:
        """Whether the image differs only in its folder, which can be mounted where it belongs."""
        same = {**image.inputs, "prefix": inputs.get("prefix")} == dict(inputs)
        return same and reference.AS_IT_IS not in image.handle and not mounts.refusal()

    def remove(self, image: Image) -> None:
        """Remove the tree, if it is still that image's.

        Raises:
            ImageInUseError: An environment runs from it.
        """
        if reference.AS_IT_IS in image.handle:  # the folder is the user's own
            return
        prefix = Prefix.of(image.key)
        require_trusted(prefix)
        if not prefix.tree.exists():
            return
        with exclusive(prefix, f"removing {image.name}", wait=False):
            seal = prefix.read_seal()
            if seal is None or seal.digest == image.digest:
                prefix.clear()


# -- running -------------------------------------------------------------------------------


def _install_commands(job: BakeJob) -> Iterator[list[str]]:
    install = job.recipe.install
    if isinstance(install, str):
        script = (job.root / install).absolute()
        yield install_script.command(script.read_bytes(), str(script))
    else:
        for command in install or ():
            yield ["/bin/sh", "-ec", command]


def _key(recipe: Recipe) -> str:
    return f"images.{recipe.name}.python"


def _variables(job: BakeJob, recipe: Recipe, content: Path) -> dict[str, str]:
    """All variables of a bake's command, with those that the recipe's ``pass-env`` names."""
    allowed = passed_variables(recipe, ALLOWED)
    artifact = {} if job.artifact is None else {"ARTIFACT": str(job.artifact)}
    return {**allowed, **artifact, "PREFIX": str(content)}


def _run(
    job: BakeJob,
    prefix: Prefix,
    argv: Sequence[str],
    variables: Mapping[str, str],
    *,
    failed: str,
    readonly: Sequence[Path] = (),
    files: Sequence[str] = (),
    image: Image | None = None,
) -> None:
    """Run one command of a bake in a folder of its own, until it ends."""
    with _working_directory(prefix) as work, BakeLog(job) as log:
        install_files.copy(files, job.root, work / "here", job.recipe.name)
        path = python.search_path(job.recipe.python, work, variables, _key(job.recipe))
        temporary = {"TMPDIR": str(work / "tmp")}
        if not machine.is_writable(machine.home()):
            temporary["HOME"] = temporary["TMPDIR"]  # pip and npm write to $HOME
        spec = guard.Spec(
            id=f"bake-{prefix.tree.name[:12]}-{os.urandom(4).hex()}",
            processes={"bake": argv},
            control=work,
            directory=work / "here",
            variables={**variables, "PATH": path, **temporary},
            logs=work / "logs",
            readonly=readonly,
            places={} if image is None else reference.places(image),
            remove_orphaned=[work] if readonly else [work, prefix.tree],
            secrets=passed_secrets(job.recipe),
            descriptors=job.descriptors,
        )
        status = guard.run_to_end(spec, on_output=log.write_line, timeout=None)
        if status != 0:
            command = argv[-1] if argv[1:2] == ["-ec"] else shlex.join(argv)
            how = f"exited with {status}" if status > 0 else f"was killed by signal {-status}"
            raise log.failure(f"{failed} failed: `{command}` {how}")


@contextmanager
def _working_directory(prefix: Prefix) -> Iterator[Path]:
    """A temporary folder with a working folder ``here`` and a ``tmp``."""
    require_trusted_root()
    work = prefix.work(os.urandom(4).hex())
    for name in ("here", "tmp"):
        (work / name).mkdir(mode=0o700, parents=True)
    try:
        yield work
    finally:
        tree.remove(work)
