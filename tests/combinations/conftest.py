"""For the tests of combinations: hundreds of short runs in one process."""

from __future__ import annotations

import gc

import pytest


@pytest.fixture(autouse=True, scope="session")
def _libraries_are_not_collected() -> None:
    """A run ends with a look for cycles, which goes through every object of the libraries; they
    stay anyway."""
    import peft  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401

    gc.collect()
    gc.freeze()
