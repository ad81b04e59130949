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
# While libraries and tests are read in, next to nothing is dropped.
gc.disable()


LONG = ("test_demo.py", "test_readme.py", "test_pipeline_kills.py", "test_kill_moments.py")
"""Files with tests of a minute and more: they start first, so that no worker is left alone with one
of them at the end."""


def pytest_configure(config: pytest.Config) -> None:
    """Each worker and the programs that it starts keep to processors of their own. Two programs of
    two threads on two processors wait for each other: about 16 ms at every parallel region."""
    worker, count = (
        os.environ.get("PYTEST_XDIST_WORKER"),
        os.environ.get("PYTEST_XDIST_WORKER_COUNT"),
    )
    if worker is None or count is None or not hasattr(os, "sched_setaffinity"):
        return
    number, processors = int(worker.removeprefix("gw")), sorted(os.sched_getaffinity(0))
    if len(processors) >= int(count):
        os.sched_setaffinity(0, processors[number % int(count) :: int(count)])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the cases that `wide` leaves out, and put the long tests first; the others keep their
    order.

    `wide("lora", "tied-lora", rest="slow")` on a parametrised test names the cases that stand for
    it in the fast run, by their whole id or one of its parts; the others get the mark `rest`
    (default: `thorough`). Raises pytest.UsageError where no case has one of these names: then the
    fast run would show nothing."""
    cases = dict[tuple[str, str], list[bool]]()
    for item in items:
        for mark in item.iter_markers("wide"):
            name = getattr(item, "callspec").id  # noqa: B009 - of parametrised tests alone
            stands = bool({name, *name.split("-")} & set(mark.args))
            cases.setdefault((str(item.path), item.name.partition("[")[0]), []).append(stands)
            if not stands:
                item.add_marker(getattr(pytest.mark, mark.kwargs.get("rest", "thorough")))
    for (path, name), stood in cases.items():
        if len(stood) > 1 and not any(stood):
            raise pytest.UsageError(f"{path}: no case of {name} has a name of its `wide` mark")
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
    gc.enable()


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


@pytest.fixture(autouse=True, scope="module")
def _what_stays_is_not_collected(_once_a_session: None) -> None:
    """Commands, subjects and trials look for cycles when they drop a model, which goes through
    every object that is there. What is there between two files of tests stays (libraries, tests,
    tiny models that are kept) and need not be looked at again: 8 % of the processor seconds of
    files that train and ask (docs/LOG.md)."""
    gc.collect()
    gc.freeze()
