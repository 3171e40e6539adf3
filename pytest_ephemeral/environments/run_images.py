"""The images that a run's templates need: each is obtained once, by whoever needs it first."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.models import Image
from pytest_ephemeral.project import Project
from pytest_ephemeral.tables import BakeMode


class RunImages:
    """Keeps the images of one run. May be asked from any thread."""

    def __init__(self) -> None:
        self._images: dict[str, Image] = {}
        self._locks: dict[str, threading.Lock] = {}

    def obtain(
        self, project: Project, name: str, mode: BakeMode, say: Callable[[Progress], None]
    ) -> Image:
        """An image, as ``Images.obtain`` gives it the first time.

        Args:
            project: Has its recipe.
            name: The image's name.
            mode: Whether it is baked if it is missing.
            say: Told what is going on.

        Raises:
            EphemeralError: It can't be had.
        """
        started = time.monotonic()

        def tell(text: str, *, live: bool = False) -> None:
            say(Progress(name, "bake", text, time.monotonic() - started, live))

        with self._locks.setdefault(name, threading.Lock()):
            if name not in self._images:
                self._images[name] = project.images.obtain(
                    project.config.recipe(name),
                    mode=mode,
                    say=tell,
                    live=lambda line: tell(line, live=True),
                )
            return self._images[name]
