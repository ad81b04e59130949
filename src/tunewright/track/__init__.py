"""Trackers as readers of `events.jsonl`: a process beside the run tells TensorBoard, Weights &
Biases, MLflow, SwanLab, Trackio or Comet what the run wrote down.

The run starts one process for each tracker and forgets it: nothing of a tracker is imported,
called or waited for where steps are taken. What a tracker holds can therefore be made again from
the run folder at any time (`tunewright track RUN --to NAME`). Each library stands in one file
(`to_*.py`); a package may bring another tracker under the entry point `tunewright.trackers`.
"""

from __future__ import annotations

from tunewright.track import to_comet, to_mlflow, to_swanlab, to_tensorboard, to_trackio, to_wandb  # noqa: F401 - each registers its tracker
from tunewright.track.beside import Beside, runs, start
from tunewright.track.settings import Chosen, chosen, problems

__all__ = ["Beside", "Chosen", "chosen", "problems", "runs", "start"]
