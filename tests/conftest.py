"""For every test: English messages, one thread, no network caches of the user's."""

from __future__ import annotations

import functools
import gc
import os
import sys
from pathlib import Path
from typing import Any

import hypothesis
import pytest

# A test is about what is computed, never about how long it takes on a machine that does other
# things as well.
hypothesis.settings.register_profile("tunewright", deadline=None)
hypothesis.settings.load_profile("tunewright")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["TUNEWRIGHT_LANG"] = "en"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
# `tests/tiny.py` serves all rooms.
sys.path.insert(0, str(Path(__file__).parent))


LONG = ("test_demo.py", "test_readme.py", "test_pipeline_kills.py", "test_kill_moments.py")
"""Files with tests of a minute and more: they start first, so that no worker is left alone with one
of them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the long tests first; the others keep their order."""
    items.sort(key=lambda item: item.path.name not in LONG)


@pytest.fixture(autouse=True)
def _english(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUNEWRIGHT_LANG", "en")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    import peft  # noqa: F401
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(1)
    # What the libraries hold is never garbage: the collector need not look at it in every test.
    gc.freeze()


@pytest.fixture(autouse=True, scope="session")
def _once_a_session(_one_thread: None) -> None:
    """What a program finds out once and these processes would find out hundreds of times: the tree
    of commands, the versions of libraries, how fast this machine is (0.3 s of each tiny run)."""
    import typer.testing

    from tunewright import story
    from tunewright.core import machine

    typer.testing._get_command = functools.cache(typer.testing._get_command)
    machine.version = functools.cache(machine.version)
    measured, found = story.measured_rates, {}

    def known_rates(shape: Any, world: Any) -> Any:
        key = (shape.hidden, shape.inner, world.dtype, world.device, world.threads)
        if (where := (os.environ.get("TUNEWRIGHT_CACHE"), *key)) not in found:
            found[where] = measured(shape, world)
        return found[where]

    story.measured_rates = known_rates
