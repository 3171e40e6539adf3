"""``bake`` and ``images``: bake images and manage the baked ones."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_ephemeral.cli import progress
from pytest_ephemeral.cli.arguments import add_command, add_group, count
from pytest_ephemeral.cli.output import Printer, plural, short, since, size
from pytest_ephemeral.cli.session import open_project
from pytest_ephemeral.cli.vet import vet
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.errors import NothingMatchedError
from pytest_ephemeral.images import provenance, stages
from pytest_ephemeral.images.stages import Stage
from pytest_ephemeral.models import Image, Signature
from pytest_ephemeral.tables import Recipe

if TYPE_CHECKING:
    from pytest_ephemeral.cli.arguments import Parser, Subcommands
    from pytest_ephemeral.project import Project


def add_to(commands: Subcommands) -> None:
    """Add the commands."""
    baking = add_command(commands, "bake", bake, "bake images that are not baked yet")
    baking.add_argument("images", metavar="IMAGE", nargs="*", help="by default every [images.NAME]")
    baking.add_argument(
        "--force", action="store_true", help="bake images again that are already baked"
    )

    under = add_group(commands, "images", "manage baked images", do=list_)
    add_command(under, "list", list_, "list the images in the catalog")
    _add_show(under)
    _add_verify(under)
    _add_vet(under)
    _add_prune(under)
    exporting = add_command(under, "export", export, "write an image to a file")
    _add_image(exporting)
    exporting.add_argument("file", metavar="FILE", type=Path, help="the file to write")
    importing = add_command(under, "import", import_, "import an image that `export` wrote")
    importing.add_argument("file", metavar="FILE", type=Path, help="a file that `export` wrote")


def _add_image(parser: Parser) -> None:
    parser.add_argument("image", metavar="IMAGE", help="an image's name, or the start of its key")


def _add_show(under: Subcommands) -> None:
    showing = add_command(under, "show", show, "show what an image was made from")
    _add_image(showing)
    showing.add_argument(
        "--provenance",
        action="store_true",
        help="print its provenance instead: an in-toto statement (SLSA, JSON)",
    )


def _add_verify(under: Subcommands) -> None:
    verifying = add_command(
        under,
        "verify",
        verify,
        "check an image's content and provenance against its record",
        epilog="Provenance is signed when $PYTEST_EPHEMERAL_SIGNING_KEY is set while baking.",
    )
    _add_image(verifying)
    verifying.add_argument(
        "--key",
        metavar="FILE",
        type=Path,
        help="the public Ed25519 key (PEM) that must have signed its provenance",
    )


def _add_vet(under: Subcommands) -> None:
    vetting = add_command(
        under,
        "vet",
        vet,
        "resume two machines of an image from memory, and see that they differ",
        epilog="If the two machines draw the same random numbers, or have the same keys or "
        "cookies, this memory is not resumed again.",
    )
    vetting.add_argument("image", metavar="IMAGE", help="an image's name in the configuration")


def _add_prune(under: Subcommands) -> None:
    pruning = add_command(
        under,
        "prune",
        prune,
        "remove old images",
        epilog="An image that an environment runs, or that is or was in production, is never "
        "removed.",
    )
    pruning.add_argument(
        "--keep",
        metavar="N",
        type=count,
        required=True,
        help="keep this many images of each name, the newest ones",
    )


def bake(arguments: argparse.Namespace, output: Printer) -> int:
    """Bake the named images, or all, and print each image."""
    project = open_project(arguments)
    config = project.config
    names = arguments.images or list(config.images)
    recipes = [config.recipe(name) for name in names]
    if not recipes:
        raise NothingMatchedError(f"{config.path}: there is no [images.NAME] table to bake")
    with progress.show() as say:
        images = [_obtain(project, recipe, say, force=arguments.force) for recipe in recipes]
    if output.as_json:
        output.data(images=images)
        return 0
    for image in images:
        output.line(f"{image.name} {short(image.key)} {image.reference}")
    return 0


def list_(arguments: argparse.Namespace, output: Printer) -> int:
    """List the images in the catalog."""
    project = open_project(arguments)
    catalog = project.images.catalog
    images = catalog.entries()
    for path in catalog.broken:
        output.say(f"warning: the record {path} in {project.store.url} can't be read: left out")
    if output.as_json:
        output.data(images=images, broken=list(catalog.broken))
    elif not images:
        output.say("no images are baked yet: run `pytest-ephemeral bake`")
    else:
        output.table(
            ("NAME", "KEY", "PROVIDER", "SIZE", "BAKED", "BY", "TOOK", "ARTIFACT"),
            (
                (
                    image.name,
                    short(image.key),
                    image.provider,
                    size(image.size),
                    f"{since(image.baked_at)} ago",
                    image.baked_by,
                    f"{image.seconds:.1f} s",
                    short(image.artifact or ""),
                )
                for image in images
            ),
        )
    return 0


def show(arguments: argparse.Namespace, output: Printer) -> int:
    """Show one image's record, signatures and stages, or its provenance."""
    project = open_project(arguments)
    image = project.images.catalog.get(arguments.image)
    if arguments.provenance:
        output.line(json.dumps(provenance.read(image), indent=2))
        return 0
    stages_ = stages.list_stages(project.store, image.key)
    if output.as_json:
        output.data(image=image, stages=stages_)
        return 0
    output.facts(
        [
            ("name", image.name),
            ("key", image.key),
            ("provider", image.provider),
            ("reference", image.reference),
            ("digest", image.digest),
            ("artifact", image.artifact or ""),
            ("size", size(image.size)),
            ("baked", f"{image.baked_at:%Y-%m-%d %H:%M:%S} UTC, in {image.seconds:.1f} s"),
            ("by", image.baked_by),
            *((f"input {name}", value) for name, value in sorted(image.inputs.items())),
            ("signed", ", ".join(one.keyid[:16] for one in _signatures(image))),
            *((f"stage {stage.stage}", _stage(stage)) for stage in stages_),
        ]
    )
    return 0


def verify(arguments: argparse.Namespace, output: Printer) -> int:
    """Check an image's content and provenance against its record."""
    images = open_project(arguments).images
    image = images.catalog.get(arguments.image)
    provenance.read(image)
    signed_by = None if arguments.key is None else provenance.verify(image, arguments.key)
    images.check(image)
    if output.as_json:
        output.data(image=image, signed_by=signed_by)
        return 0
    by = f"; signed by {signed_by[:16]}" if signed_by else ""
    output.line(f"{image.name} {short(image.key)} matches its record{by}")
    if signed_by is None and _signatures(image):
        output.say("its signature was not checked: use --key FILE")
    return 0


def prune(arguments: argparse.Namespace, output: Printer) -> int:
    """Remove old images that are not in use."""
    project = open_project(arguments)
    removed = project.images.prune(arguments.keep, _ImagesInUse(project))
    if output.as_json:
        output.data(removed=removed)
        return 0
    for image in removed:
        output.line(f"{image.name} {short(image.key)}")
    freed = size(sum(image.size for image in removed))
    output.say(f"removed {plural(len(removed), 'image')}, {freed}")
    return 0


class _ImagesInUse:
    """The keys of the images that must not be pruned, read anew for each key.

    An environment runs them, or they are or were in production.
    """

    def __init__(self, project: Project) -> None:
        self._project = project

    def __contains__(self, key: object) -> bool:
        from pytest_ephemeral.promotion import journal

        return key in self._project.ledger.in_use() | journal.images(self._project.store)


def export(arguments: argparse.Namespace, output: Printer) -> int:
    """Write an image to a file."""
    images = open_project(arguments).images
    image = images.catalog.get(arguments.image)
    images.export(image, arguments.file)
    output.result(str(arguments.file), image=image, file=str(arguments.file))
    return 0


def import_(arguments: argparse.Namespace, output: Printer) -> int:
    """Import an image from a file."""
    image = open_project(arguments).images.import_(arguments.file)
    output.result(f"{image.name} {short(image.key)} {image.reference}", image=image)
    return 0


def _signatures(image: Image) -> Sequence[Signature]:
    return image.provenance.signatures if image.provenance else ()


def _stage(stage: Stage) -> str:
    """The outcome of one run of a stage, in a line."""
    counts = ", ".join(f"{count} {outcome}" for outcome, count in stage.tests.items() if count)
    parts = [
        stage.problem or "passed",
        counts,
        f"{stage.finished_at:%Y-%m-%d %H:%M} UTC",
        stage.revision[:12],
        stage.ci_url,
    ]
    return "; ".join(part for part in parts if part)


def _obtain(
    project: Project, recipe: Recipe, say: Callable[[Progress], None], *, force: bool
) -> Image:
    started = time.monotonic()

    def tell(text: str, *, live: bool = False) -> None:
        say(Progress(recipe.name, "bake", text, time.monotonic() - started, live))

    return project.images.obtain(
        recipe,
        mode="always" if force else "missing",
        say=tell,
        live=lambda line: tell(line, live=True),
    )
