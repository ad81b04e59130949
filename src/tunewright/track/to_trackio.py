"""Trackio. It is local: an SQLite file, shown by `trackio show`. With `online` it goes to the Space
or the server that TRACKIO_SPACE_ID or TRACKIO_SERVER_URL names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.track.settings import ProjectSettings
from tunewright.track.sink import About, as_markdown, tracker

ELSEWHERE = (
    "TRACKIO_SPACE_ID",
    "TRACKIO_SERVER_URL",
    "TRACKIO_BUCKET_ID",
    "TRACKIO_DATASET_ID",
    "TRACKIO_WEBHOOK_URL",
)


class TrackioSettings(ProjectSettings):
    """A run of Trackio."""


class Trackio:
    """One run, by its name within the project."""

    def __init__(self, settings: TrackioSettings, about: About):
        os.environ["TRACKIO_DIR"] = str(about.folder.resolve())
        if not settings.online:
            for name in ELSEWHERE:
                os.environ.pop(name, None)
        import trackio

        self._trackio = trackio
        self._project = settings.project
        # Runs are found by name: two folders of one name must not become one run.
        self._name = settings.name or f"{about.name}-{about.key[:6]}"
        self._run = trackio.init(
            project=settings.project,
            name=self._name,
            config=about.settings,
            resume="allow",
            private=True if settings.online else None,
            embed=False,
            auto_log_gpu=False,
            auto_log_cpu=False,
        )

    def figures(self, step: int, time: float, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._run.log({name: self._trackio.Markdown(as_markdown(rows))}, step=step)

    def picture(self, name: str, step: int, png: bytes) -> None:
        import io

        import numpy as np
        from PIL import Image

        pixels = np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))
        self._run.log({f"pictures/{name}": self._trackio.Image(pixels)}, step=step)

    def file(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        fenced = f"```\n{text}\n```"
        self._run.log({f"files/{path.name}": self._trackio.Markdown(fenced)}, step=0)

    def flush(self) -> None:
        """It writes in a thread of its own."""

    def reached(self) -> Mapping[str, int] | None:
        return None

    def finish(self, status: str) -> None:
        self._trackio.finish()


@tracker(
    "trackio", TrackioSettings, needs=("trackio", "PIL"), view="TRACKIO_DIR={folder} trackio show"
)
def trackio(settings: TrackioSettings, about: About) -> Trackio:
    """Open Trackio."""
    return Trackio(settings, about)
