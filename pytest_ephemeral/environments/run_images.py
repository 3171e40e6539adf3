"""The images that a run's templates need. Each is obtained once, at its first use."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.models import Image
from pytest_ephemeral.project import Project
from pytest_ephemeral.tables import BakeMode


class RunImages:
    """A cache of the images of one run. It is thread-safe."""

    def __init__(self) -> None:
        self._images: dict[str, Image] = {}
        self._locks: dict[str, threading.Lock] = {}

    def obtain(
        self, project: Project, name: str, mode: BakeMode, say: Callable[[Progress], None]
    ) -> Image:
        """See ``Images.obtain``; a second call returns the same image.

        Args:
            project: The project with the recipe.
            name: The image's name.
            mode: When to bake it.
            say: Receives progress.

        Raises:
            EphemeralError: It is missing and can't be baked.
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
