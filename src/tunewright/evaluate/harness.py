"""`tunewright evaluate TARGET --lm-eval TASK,TASK`: tasks of the LM Evaluation Harness (Gao et al.
2023), asked of anything that Tunewright opens.

The harness brings the tasks, their data and their metrics; the model is ours (`harness_model.py`).
It is an extra, `pip install 'tunewright[eval]'`, because it brings many packages.
"""

from __future__ import annotations

import contextlib
import importlib.util
import logging
import math
import time
from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from tunewright.core.errors import TunewrightError, UsageError, first_line, problem
from tunewright.core.machine import versions
from tunewright.core.telling import Tell, duration
from tunewright.core.words import say
from tunewright.evaluate.continuations import open_scorer
from tunewright.evaluate.interval import Z95
from tunewright.evaluate.kept import Kept

TABLE = "lm_eval.jsonl"
"""The table of what the model gave."""
DRAWS = 1000
"""Of lm-eval's bootstrap, for metrics that are not means."""


class HarnessError(TunewrightError):
    """A task that could not be measured."""


def require_harness() -> None:
    """Raise UsageError (E-EXAM-05) where lm-eval is not installed."""
    if importlib.util.find_spec("lm_eval") is None:
        raise UsageError(problem("E-EXAM-05", "--lm-eval"))


def measure_tasks(
    target: str,
    tasks: Sequence[str],
    *,
    folder: str | None = None,
    shots: int | None = None,
    chat: bool = False,
    limit: int | None = None,
    base: bool = False,
    dtype: str | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    details: bool = False,
    out: str | Path | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Measure `target` (run, adapter, model folder, hub id) on tasks of lm-eval, those of `folder`
    too, and return the figures (keys in docs/exams.md).

    `chat` asks through the model's chat template, under the run's system prompt. `out` keeps what
    the model gave in a table in that folder and asks nothing again that stands there. Raises
    UsageError where lm-eval is missing or a task is not known, HarnessError where a task fails.
    """
    tell, started = tell or Tell(), time.perf_counter()
    require_harness()
    from tunewright.evaluate.harness_model import EngineLM

    with _quiet():
        manager, names = _known(tasks, folder)
        scorer = open_scorer(target, tell, base=base, dtype=dtype, device=device, threads=threads)
        loaded = time.perf_counter()
        system = scorer.opened.target.system if chat else None
        table = Kept(None if out is None else Path(out) / TABLE)
        how: dict[str, Any] = {"num_fewshot": shots, "limit": limit, "log_samples": details}
        how |= {"apply_chat_template": chat, "system_instruction": system}
        try:
            given = _run(EngineLM(scorer, tell, table), names, manager, how)
        finally:
            table.close()
    now = time.perf_counter()
    result: dict[str, Any] = {
        **scorer.about(),
        "lm_eval": {
            "chat": chat,
            "tasks": [_task(name, given) for name in given["results"]],
            "groups": sorted(given.get("groups") or {}),
        },
        "warnings": [],
        "seconds": {"load": round(loaded - started, 3), "total": round(now - started, 3)},
        "versions": {**versions(), "lm_eval": _version()},
    }
    if details:
        result["rows"] = list(_rows(given["samples"]))
    return result


def _version() -> str:
    from importlib.metadata import version

    return version("lm_eval")


def _known(tasks: Sequence[str], folder: str | None) -> tuple[Any, list[str]]:
    """(what knows the tasks, their names). A pattern stands for every task it fits. Raises
    UsageError (E-EXAM-06) for tasks that nobody knows."""
    from lm_eval.tasks import TaskManager

    if folder is not None and not Path(folder).is_dir():
        raise UsageError(problem("E-EXAM-06", folder, tasks=folder, near="-"))
    wanted = [name.strip() for name in tasks if name.strip()]
    manager = None
    # The harness's own tasks are thousands of files: they are read where they are needed.
    for defaults in (False, True) if folder is not None else (True,):
        manager = TaskManager(include_path=folder, include_defaults=defaults)
        missing = [name for name in wanted if not manager.match_tasks([name])]
        if wanted and not missing:
            return manager, list(dict.fromkeys(manager.match_tasks(wanted)))
    assert manager is not None
    near = [one for name in missing for one in get_close_matches(name, manager.all_tasks, 3)]
    shown = {"tasks": ", ".join(missing) or "-", "near": ", ".join(near) or "-"}
    raise UsageError(problem("E-EXAM-06", "--lm-eval", **shown))


def _run(model: Any, names: list[str], manager: Any, how: dict[str, Any]) -> dict[str, Any]:
    """What lm-eval finds. Raises HarnessError (E-EXAM-07) for whatever goes wrong in a task: its
    data are not here, or its code fails."""
    import lm_eval

    try:
        given = lm_eval.simple_evaluate(
            model=model, tasks=names, task_manager=manager, bootstrap_iters=DRAWS, **how
        )
    except TunewrightError:
        raise
    except Exception as e:  # a task is code of others
        cause = f"{type(e).__name__}: {first_line(e)}"
        raise HarnessError.of("E-EXAM-07", ", ".join(names), cause=cause) from e
    assert given is not None
    return dict(given)


def _task(name: str, given: dict[str, Any]) -> dict[str, Any]:
    """The figures of one task, each with its interval."""
    figures = given["results"][name]
    metrics = []
    for key, value in figures.items():
        metric, _, kept = key.partition(",")
        if not kept or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = figures.get(f"{metric}_stderr,{kept}")
        known = isinstance(error, int | float) and math.isfinite(error)
        low_high = [value - Z95 * error, value + Z95 * error] if known else None
        metrics.append(
            {
                "metric": metric if kept == "none" else f"{metric} ({kept})",
                "value": value,
                "standard_error": error if known else None,
                "interval_95": low_high,
            }
        )
    counts = (given.get("n-samples") or {}).get(name) or {}
    return {
        "task": name,
        "n": counts.get("effective"),
        "shots": (given.get("n-shot") or {}).get(name),
        "metrics": metrics,
    }


def _rows(samples: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every question of every task, with what the model gave."""
    for task, rows in samples.items():
        for row in rows:
            yield {
                "task": task,
                "row": row["doc_id"],
                "target": str(row.get("target")),
                "given": [str(one) for one in row.get("filtered_resps", [])],
                **{name: row[name] for name in row.get("metrics", []) if name in row},
            }


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the harness's own log and the bars of `datasets`: progress is told by ours."""
    log = logging.getLogger("lm_eval")
    before = log.level
    log.setLevel(logging.ERROR)
    with contextlib.suppress(ImportError):
        from datasets.utils import logging as told

        told.disable_progress_bar()
    try:
        yield
    finally:
        log.setLevel(before)


def lines(result: dict[str, Any]) -> list[str]:
    """The figures for a terminal, in the reader's language."""
    out = [say("harness.head", target=result["target"], version=result["versions"]["lm_eval"])]
    for task in result["lm_eval"]["tasks"]:
        n = "-" if task["n"] is None else task["n"]
        out.append(say("harness.task", task=task["task"], n=n, shots=task["shots"] or 0))
        for one in task["metrics"]:
            value = f"{one['value']:.4f}"
            if one["interval_95"] is None:
                out.append(say("harness.value", metric=one["metric"], value=value))
            else:
                low, high = (f"{v:.4f}" for v in one["interval_95"])
                out.append(
                    say("harness.metric", metric=one["metric"], value=value, low=low, high=high)
                )
    seconds = result["seconds"]
    where = f"{result['device']} {result['dtype']}"
    return [
        *out,
        *result["warnings"],
        say(
            "evaluate.seconds",
            time=duration(seconds["total"]),
            load=f"{seconds['load']:.0f}",
            where=where,
            layout=result["layout"],
        ),
    ]
