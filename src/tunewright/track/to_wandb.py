"""Weights & Biases. Offline, its files are sent later with `wandb sync`."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.track.settings import ProjectSettings
from tunewright.track.sink import About, columns_of, tracker


class WandbSettings(ProjectSettings):
    """A run of Weights & Biases."""


class Wandb:
    """One run, by its id: told again it goes on."""

    def __init__(self, settings: WandbSettings, about: About):
        # Nothing about this machine or the crash of a library is sent that the run did not write.
        os.environ.update(WANDB_SILENT="true", WANDB_ERROR_REPORTING="false", WANDB_CONSOLE="off")
        import wandb

        self._wandb, self._about = wandb, about
        about.folder.mkdir(parents=True, exist_ok=True)
        mode = "online" if settings.online else "offline"
        quiet = wandb.Settings(
            mode=mode, x_disable_stats=True, x_disable_meta=True, disable_git=True, console="off"
        )
        self._run = wandb.init(
            project=settings.project,
            name=settings.name or about.name,
            id=about.key[:16],
            resume="allow",
            dir=str(about.folder),
            config=about.settings,
            settings=quiet,
        )

    def figures(self, step: int, time: float, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        names, cells = columns_of(rows)
        self._run.log({name: self._wandb.Table(columns=names, data=cells)}, step=step)

    def picture(self, name: str, step: int, png: bytes) -> None:
        from PIL import Image

        image = Image.open(io.BytesIO(png))
        self._run.log({name: self._wandb.Image(image)}, step=step)

    def file(self, path: Path) -> None:
        if path.name == "summary.json":
            found = json.loads(path.read_text(encoding="utf-8"))
            self._run.summary.update({"run": found})
        self._run.save(str(path), base_path=str(self._about.run), policy="now")

    def flush(self) -> None:
        """Its own service writes as it is told."""

    def reached(self) -> Mapping[str, int] | None:
        return None

    def finish(self, status: str) -> None:
        self._run.finish(exit_code=0 if status in ("done", "running") else 1)


@tracker("wandb", WandbSettings, needs=("wandb", "PIL"), view="wandb sync {folder}/wandb/*run-*")
def wandb(settings: WandbSettings, about: About) -> Wandb:
    """Open Weights & Biases."""
    return Wandb(settings, about)
