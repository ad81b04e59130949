"""Comet. Offline, it leaves an archive that `comet upload` sends."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.track.settings import ProjectSettings
from tunewright.track.sink import About, as_markdown, tracker

QUIET = {
    "log_code": False,
    "log_graph": False,
    "auto_param_logging": False,
    "auto_metric_logging": False,
    "parse_args": False,
    "auto_output_logging": False,
    "log_env_details": False,
    "log_git_metadata": False,
    "log_git_patch": False,
    "display_summary_level": 0,
}
"""Only what the run wrote down is told."""


class CometSettings(ProjectSettings):
    """An experiment of Comet."""


class Comet:
    """One experiment, by its key."""

    def __init__(self, settings: CometSettings, about: About):
        os.environ.setdefault("COMET_LOGGING_CONSOLE", "ERROR")
        import comet_ml

        given: dict[str, Any] = dict(QUIET)
        if not settings.online:
            given["offline_directory"] = str(about.folder)
        if about.goes_on and settings.online:
            self._experiment = comet_ml.ExistingExperiment(experiment_key=about.key, **given)
            return
        if about.goes_on:
            # This one takes neither the environment's parts nor a project.
            known = {k: v for k, v in given.items() if k != "log_env_network"}
            self._experiment = comet_ml.ExistingOfflineExperiment(experiment_key=about.key, **known)
            return
        kind = comet_ml.Experiment if settings.online else comet_ml.OfflineExperiment
        self._experiment = kind(project_name=settings.project, experiment_key=about.key, **given)
        self._experiment.set_name(settings.name or about.name)
        self._experiment.log_parameters(about.settings)

    def figures(self, step: int, time: float, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._experiment.log_metric(name, value, step=step)

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._experiment.log_text(as_markdown(rows), step=step, metadata={"name": name})

    def picture(self, name: str, step: int, png: bytes) -> None:
        self._experiment.log_image(io.BytesIO(png), name=name, step=step)

    def file(self, path: Path) -> None:
        self._experiment.log_asset(str(path), file_name=path.name)

    def flush(self) -> None:
        """It writes in a thread of its own."""

    def reached(self) -> Mapping[str, int] | None:
        return None

    def finish(self, status: str) -> None:
        self._experiment.log_other("status", status)
        self._experiment.end()


@tracker("comet", CometSettings, needs=("comet_ml",), view="comet upload {folder}/*.zip")
def comet(settings: CometSettings, about: About) -> Comet:
    """Open Comet."""
    return Comet(settings, about)
