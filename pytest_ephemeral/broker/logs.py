"""``--ephemeral-logs DIR``: a folder for each environment, to read after its end.

It has one log file for each process; ``timeline.json``, the phases and the readiness checks with
their times; ``provenance.json``, how its image was made, and ``provenance-NAME.json`` for each
further image.
"""

from __future__ import annotations

import json
import threading
from collections import defaultdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pytest_ephemeral import files, providers
from pytest_ephemeral.environments.progress import Progress
from pytest_ephemeral.errors import EphemeralError
from pytest_ephemeral.models import Environment, ImageReference
from pytest_ephemeral.project import Project


class LogFolder:
    """Collects the timelines of a run's environments, and writes their folders.

    Args:
        folder: The folder ``DIR``; None to write nothing.
        project: The project, for the provenance of its images.

    Attributes:
        problems: What could not be written.
    """

    def __init__(self, folder: Path | None, project: Project) -> None:
        self.problems: list[str] = []
        self._folder = folder
        self._project = project
        self._moments: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._saved: set[str] = set()
        self._lock = threading.Lock()

    def note(self, progress: Progress) -> None:
        """Add an event to its environment's timeline. May be called from any thread."""
        if self._folder is None or progress.live:
            return
        moment = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "phase": progress.phase,
            "text": progress.text,
            "seconds": round(progress.seconds, 3),
        }
        with self._lock:
            self._moments[progress.subject].append(moment)

    def save(self, environment: Environment) -> None:
        """Save an environment's logs, while it still exists."""
        if self._folder is None:
            return
        own = self._folder / environment.id
        try:
            self._saved.add(environment.id)
            logs = providers.load(environment.provider).log_files(environment)
            for name, text in logs.items():
                files.replace(own / f"{name}.log", [text.encode(errors="replace")])
            for at, image in enumerate(environment.images):
                name = f"provenance-{image.name}.json" if at else "provenance.json"
                _write(own / name, self._provenance(image))
        except (EphemeralError, OSError) as error:
            self.problems.append(
                f"the logs of {environment.id} could not be written to {own}: {error}"
            )

    def close(self) -> None:
        """Write the timelines."""
        if self._folder is None:
            return
        with self._lock:
            for id in sorted(self._saved):
                try:
                    _write(self._folder / id / "timeline.json", self._timeline(id))
                except OSError as error:
                    self.problems.append(f"the timeline of {id} could not be written: {error}")

    def _timeline(self, id: str) -> dict[str, Any]:
        moments = self._moments[id]
        return {
            "environment": id,
            "timeline": [moment for moment in moments if moment["phase"] != "seen"],
            "readiness": [
                {"at": moment["at"], "seconds": moment["seconds"], "seen": moment["text"]}
                for moment in moments
                if moment["phase"] == "seen"
            ],
        }

    def _provenance(self, image: ImageReference) -> dict[str, Any] | None:
        from pytest_ephemeral.images import provenance

        baked = self._project.images.catalog.find(image.name, image.key)
        return provenance.read(baked) if baked and baked.provenance else None


def _write(file: Path, document: dict[str, Any] | None) -> None:
    if document is not None:
        files.replace(file, [json.dumps(document, indent=2, ensure_ascii=False).encode() + b"\n"])
