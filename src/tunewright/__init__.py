"""Tunewright: fine-tune open language models on your own data and machine, and see, question by
question, what changed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunewright.core import lazy_names
from tunewright.core.version import __version__

if TYPE_CHECKING:
    from tunewright.api import Run as Run
    from tunewright.api import resume as resume
    from tunewright.api import train as train
    from tunewright.core.callbacks import Answer as Answer
    from tunewright.core.callbacks import Callback as Callback
    from tunewright.core.callbacks import CheckpointSaved as CheckpointSaved
    from tunewright.core.callbacks import HeldOutMeasured as HeldOutMeasured
    from tunewright.core.callbacks import QuestionsAnswered as QuestionsAnswered
    from tunewright.core.callbacks import RunFinished as RunFinished
    from tunewright.core.callbacks import Running as Running
    from tunewright.core.callbacks import RunStarted as RunStarted
    from tunewright.core.callbacks import StepTaken as StepTaken

lazy_names.install()
HEARD = (
    "Answer",
    "Callback",
    "CheckpointSaved",
    "HeldOutMeasured",
    "QuestionsAnswered",
    "RunFinished",
    "RunStarted",
    "Running",
    "StepTaken",
)
"""What callbacks are written with."""


def __getattr__(name: str) -> Any:
    """`train` and the others are looked up when they are used, so that `import tunewright` loads no
    torch."""
    if name in ("Run", "resume", "train"):
        from tunewright import api

        return getattr(api, name)
    if name in HEARD:
        from tunewright.core import callbacks

        return getattr(callbacks, name)
    raise AttributeError(f"module 'tunewright' has no attribute {name!r}")


__all__ = [
    "Answer",
    "Callback",
    "CheckpointSaved",
    "HeldOutMeasured",
    "QuestionsAnswered",
    "Run",
    "RunFinished",
    "RunStarted",
    "Running",
    "StepTaken",
    "__version__",
    "resume",
    "train",
]
