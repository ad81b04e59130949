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
    from tunewright.core.callbacks import Callback as Callback

lazy_names.install()


def __getattr__(name: str) -> Any:
    """`train` and the others are looked up when they are used, so that `import tunewright` loads no
    torch."""
    if name in ("Run", "resume", "train"):
        from tunewright import api

        return getattr(api, name)
    if name == "Callback":
        from tunewright.core.callbacks import Callback

        return Callback
    raise AttributeError(f"module 'tunewright' has no attribute {name!r}")


__all__ = ["Callback", "Run", "__version__", "resume", "train"]
