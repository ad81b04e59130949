"""MLflow. Without `online` into an SQLite file and a folder of artifacts; with it, to the server
that MLFLOW_TRACKING_URI names."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tunewright.track.settings import ProjectSettings
from tunewright.track.sink import About, as_markdown, tracker

MOST_PARAMS, LONGEST_PARAM = 100, 6000
"""Of one call, and of one value: limits of MLflow."""
MOST_METRICS = 1000
STATUS = {"done": "FINISHED", "stopped": "KILLED", "running": "RUNNING"}


class MlflowSettings(ProjectSettings):
    """A run of MLflow; `project` is its experiment."""


class Mlflow:
    """One run, found again by a tag."""

    def __init__(self, settings: MlflowSettings, about: About):
        os.environ.update(MLFLOW_DISABLE_TELEMETRY="true", DO_NOT_TRACK="true")
        from mlflow.entities import Param
        from mlflow.tracking import MlflowClient

        place = about.folder.resolve()
        database = f"sqlite:///{(place / 'mlflow.db').as_posix()}"
        self._client = MlflowClient(None if settings.online else database)
        known = self._client.get_experiment_by_name(settings.project)
        artifacts = None if settings.online else (place / "artifacts").as_uri()
        experiment = (
            known.experiment_id
            if known
            else self._client.create_experiment(settings.project, artifact_location=artifacts)
        )
        found = self._client.search_runs(
            [experiment], f"tags.`tunewright.key` = '{about.key}'", max_results=1
        )
        if found:
            self.id = found[0].info.run_id
            return
        name = settings.name or about.name
        made = self._client.create_run(
            experiment, run_name=name, tags={"tunewright.key": about.key}
        )
        self.id = made.info.run_id
        params = [Param(k, str(v)[:LONGEST_PARAM]) for k, v in about.settings.items()]
        for first in range(0, len(params), MOST_PARAMS):
            self._client.log_batch(self.id, params=params[first : first + MOST_PARAMS])

    def figures(self, step: int, time: float, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        told = [Metric(k, v, int(time * 1000), step) for k, v in values.items()]
        for first in range(0, len(told), MOST_METRICS):
            self._client.log_batch(self.id, metrics=told[first : first + MOST_METRICS])

    def table(self, name: str, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        self._client.log_text(self.id, as_markdown(rows), f"{name}/step-{step:06d}.md")

    def picture(self, name: str, step: int, png: bytes) -> None:
        import io

        from PIL import Image

        self._client.log_image(self.id, Image.open(io.BytesIO(png)), f"pictures/{name}.png")

    def file(self, path: Path) -> None:
        self._client.log_artifact(self.id, str(path))

    def flush(self) -> None:
        """Every call is a transaction."""

    def reached(self) -> Mapping[str, int] | None:
        held = self._client.get_run(self.id).data.metrics
        return {name: self._last(name) for name in held}

    def _last(self, name: str) -> int:
        return max(one.step for one in self._client.get_metric_history(self.id, name))

    def finish(self, status: str) -> None:
        self._client.set_terminated(self.id, STATUS.get(status, "FAILED"))


@tracker(
    "mlflow",
    MlflowSettings,
    needs=("mlflow", "PIL"),
    view="mlflow ui --backend-store-uri sqlite:///{folder}/mlflow.db",
)
def mlflow(settings: MlflowSettings, about: About) -> Mlflow:
    """Open MLflow."""
    return Mlflow(settings, about)
