"""SwanLab. Offline, its files are sent later with `swanlab sync`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.track.settings import ProjectSettings
from tunewright.track.sink import About, as_markdown, tracker

LONGEST_TEXT = 100_000


class SwanlabSettings(ProjectSettings):
    """An experiment of SwanLab."""


class Swanlab:
    """One experiment, by its id."""

    def __init__(self, settings: SwanlabSettings, about: About):
        import swanlab

        self._swanlab = swanlab
        self._run = swanlab.init(
            project=settings.project,
            name=settings.name or about.name,
            log_dir=str(about.folder),
            mode="online" if settings.online else "offline",
            id=about.key[:21],
            resume="allow",
            config=about.settings,
        )

    def figures(self, step: int, time: float, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        text = as_markdown(rows)[:LONGEST_TEXT]
        self._run.log({name: self._swanlab.Text(text)}, step=step)

    def picture(self, name: str, step: int, png: bytes) -> None:
        import io

        from PIL import Image

        image = Image.open(io.BytesIO(png))
        self._run.log({f"pictures/{name}": self._swanlab.Image(image)}, step=step)

    def file(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")[:LONGEST_TEXT]
        self._run.log({f"files/{path.name}": self._swanlab.Text(text)}, step=0)

    def flush(self) -> None:
        """It writes in a thread of its own."""

    def reached(self) -> Mapping[str, int] | None:
        return None

    def finish(self, status: str) -> None:
        self._swanlab.finish(state="success" if status in ("done", "running") else "crashed")


@tracker("swanlab", SwanlabSettings, needs=("swanlab", "PIL"), view="swanlab sync {folder}/run-*")
def swanlab(settings: SwanlabSettings, about: About) -> Swanlab:
    """Open SwanLab."""
    return Swanlab(settings, about)
