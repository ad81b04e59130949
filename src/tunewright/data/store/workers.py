"""Jobs done by other processes, their results in the order of the jobs.

A worker is started anew (spawn): nothing of the parent is inherited, and the parent's script is not
run again in it, so a script without a main guard and a notebook may use workers. It knows the
tokenizer as text and jinja's sandbox, so it loads neither torch nor Transformers. Small sets are
worked on here: starting a worker takes longer.
"""

from __future__ import annotations

import atexit
import gc
import os
import signal
import sys
import threading
import traceback
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, parent_process
from multiprocessing.context import SpawnContext, SpawnProcess
from types import ModuleType
from typing import Any

from tunewright.core.errors import DataError
from tunewright.core.machine import processors
from tunewright.data.store.preparing import Job, Prepared, Preparer, Recipe
from tunewright.text.renderer import Renderer
from tunewright.text.thinking import Thinking
from tunewright.text.tokenizer import Light

BYTES_PER_WORKER = 4 << 20
"""A worker is worth starting for this much text: it takes about a second to load, in which one
process does as much."""
MOST_WORKERS = 60
"""Windows waits for no more processes at once."""
_preparer: Preparer | None = None


class _Process(SpawnProcess):
    """A process that does not run the parent's script, which may have no main guard."""

    def start(self) -> None:
        main = sys.modules["__main__"]
        sys.modules["__main__"] = ModuleType("__main__")
        try:
            super().start()
        finally:
            sys.modules["__main__"] = main
        started.append(self)


started: list[_Process] = []
"""The workers of the set at hand, to say with which code one ended."""


class _Context(SpawnContext):
    Process = _Process


def _begin(recipe: Recipe) -> None:
    """The first thing a worker does: load the tokenizer. Ctrl-C is the parent's; a worker ends with
    the parent, however that ends."""
    global _preparer
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # tokenizers' own threads would only compete with the other workers.
    os.environ |= {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1"}

    threading.Thread(target=_end_with_parent, daemon=True).start()
    # Taking a hundred megabytes of words and tokens apart object by object would keep the parent
    # waiting.
    atexit.register(os._exit, 0)
    renderer = None
    if recipe.tokenizer:
        light, thinking = Light.from_state(recipe.tokenizer), Thinking(**recipe.thinking)
        renderer = Renderer(light, recipe.stop_ids, thinking)
    _preparer = Preparer(recipe, renderer)
    # What was loaded stays; jobs make lists by the hundred thousand and hardly a cycle, so looking
    # for cycles every 700 objects is time lost.
    gc.freeze()
    gc.set_threshold(50_000)


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _do(job: Job) -> Prepared:
    assert _preparer is not None
    try:
        return _preparer.do(job)
    except Exception as error:
        text = traceback.format_exc().strip()
        raise RuntimeError(f"in a worker process: {text.splitlines()[-1]}\n{text}") from error


class Workers:
    """Processes that do jobs, or (`count` 0) this one. A few jobs are under way at a time."""

    def __init__(self, recipe: Recipe, renderer: Renderer | None, count: int):
        self.here = Preparer(recipe, renderer)
        self.count = count
        self._pool: ProcessPoolExecutor | None = None
        if count:
            started.clear()
            self._pool = ProcessPoolExecutor(
                count, _Context(), initializer=_begin, initargs=(recipe,)
            )

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, *error: Any) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def results(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, Prepared]]:
        """(job, result) in the order of the jobs. Raises DataError where a worker ended before its
        time, RuntimeError with its traceback where one failed."""
        if self._pool is None:
            for job in jobs:
                yield job, self.here.do(job)
            return
        under_way: deque[tuple[Job, Future[Prepared]]] = deque()
        try:
            for job in jobs:
                under_way.append((job, self._pool.submit(_do, job)))
                while len(under_way) > 2 * self.count + 1:
                    done, result = under_way.popleft()
                    yield done, result.result()
            for done, result in under_way:
                yield done, result.result()
        except (BrokenProcessPool, OSError, ValueError) as error:
            # A pool that breaks while it starts another worker closes handles that the other one
            # needs: an OSError, or a ValueError where their numbers are in use again.
            broken = isinstance(error, BrokenProcessPool)
            if not broken and not any(worker.exitcode for worker in started):
                raise
            raise DataError.of("E-DATA-60", "data.train", code=_code()) from error


def _code() -> int:
    """With which code a worker ended before its time; the others were told to end then."""
    for worker in started:
        worker.join(10)
    codes = [worker.exitcode for worker in started if worker.exitcode]
    told = -signal.SIGTERM
    return next((code for code in codes if code != told), codes[0] if codes else 1)


def worker_count(num_bytes: int, threads: int | str | None = None) -> int:
    """How many workers a set of this size gets; 0 where one process is as fast."""
    count = min(processors(threads), num_bytes // BYTES_PER_WORKER, MOST_WORKERS)
    return count if count > 1 else 0
