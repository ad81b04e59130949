"""What `tunewright evaluate` measures besides the model's own figures on rows: exams, tasks of
lm-eval, and answers judged by another model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

import typer

from tunewright.core.errors import UsageError, problem
from tunewright.core.words import say

ExamFlag = Annotated[
    str | None, typer.Option("--exam", metavar="FOLDER|FILE", help=say("cli.evaluate.exam"))
]
TasksFlag = Annotated[
    str | None, typer.Option("--lm-eval", metavar="TASK,...", help=say("cli.evaluate.tasks"))
]
TasksFolderFlag = Annotated[
    str | None, typer.Option("--tasks-folder", metavar="DIR", help=say("cli.evaluate.tasks_folder"))
]
ShotsFlag = Annotated[int | None, typer.Option("--shots", help=say("cli.evaluate.shots"))]
ChatFlag = Annotated[bool, typer.Option("--chat", help=say("cli.evaluate.chat"))]
ExamLanguageFlag = Annotated[
    str,
    typer.Option("--exam-language", metavar="auto|en|zh", help=say("cli.evaluate.exam_language")),
]
JudgeFlag = Annotated[
    str | None, typer.Option("--judge", metavar="MODEL|ADDRESS", help=say("cli.evaluate.judge"))
]
AgainstFlag = Annotated[
    str | None, typer.Option("--against", metavar="MODEL|ADDRESS", help=say("cli.evaluate.against"))
]
JudgeLanguageFlag = Annotated[
    str,
    typer.Option("--judge-language", metavar="auto|en|zh", help=say("cli.evaluate.judge_language")),
]
GroupFlag = Annotated[
    str | None, typer.Option("--group", metavar="COLUMN", help=say("cli.evaluate.group"))
]
LowestFlag = Annotated[bool, typer.Option("--lowest", help=say("cli.evaluate.lowest"))]

Given = dict[str, Any]
"""The arguments of `evaluate` by name."""
SOURCES = {"data": "--data", "exam": "--exam", "tasks": "--lm-eval"}
ROWS = ("data_format", "columns", "data_dir", "think", "max_new_tokens", "seed")
EFFECT: dict[str, tuple[str, ...]] = {
    "exam": ("shots", "as_chat", "exam_language"),
    "tasks": ("tasks_folder", "shots", "as_chat"),
    "judge": ("judge", "against", "judge_language", *ROWS),
}
"""Flags that have an effect with what is measured; the others are refused. With rows alone it is
every flag that is not here."""
FLAGS = {
    "options": "--options",
    "generate": "--generate",
    "data_format": "--format",
    "columns": "--columns",
    "data_dir": "--data-dir",
    "think": "--think",
    "tasks_folder": "--tasks-folder",
    "shots": "--shots",
    "as_chat": "--chat",
    "exam_language": "--exam-language",
    "group": "--group",
    "lowest": "--lowest",
    "metrics": "--metrics",
    "words": "--words",
    "rewards": "--rewards",
    "reward_code": "--reward-code",
    "target_error": "--target-error",
    "max_new_tokens": "--max-new-tokens",
    "seed": "--seed",
    "judge": "--judge",
    "against": "--against",
    "judge_language": "--judge-language",
}
SILENT = (None, False, "auto", 0)
"""Values of a flag that was not given; `--no-generate`, `--no-think` and `--shots 0` change nothing
either."""


def measured_otherwise(
    given: Given,
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], list[str]]] | None:
    """(figures, what makes lines of them) of an exam, of tasks or of a judge; None where rows are
    measured. Raises UsageError for no source or several (E-EXAM-08) and for flags without effect
    (E-EXAM-09), and what the measurement raises."""
    sources = [name for name in SOURCES if given[name] is not None]
    if len(sources) != 1:
        named = ", ".join(SOURCES[name] for name in sources) or "-"
        raise UsageError(problem("E-EXAM-08", "", given=named))
    (source,) = sources
    flag = SOURCES[source]
    if source == "data" and given["judge"] is not None:
        source = flag = "judge"
    _require_effect(given, source, flag if source != "judge" else "--judge")
    common = {name: given[name] for name in ("limit", "base", "dtype", "details", "out")}
    if source == "exam":
        from tunewright.evaluate import exams

        common |= {"shots": given["shots"], "chat": given["as_chat"]}
        found = exams.take_exam(
            given["target"], given["exam"], language=given["exam_language"], **common
        )
        return found, exams.lines
    if source == "tasks":
        from tunewright.evaluate import harness

        names = given["tasks"].split(",")
        common |= {"shots": given["shots"], "chat": given["as_chat"]}
        found = harness.measure_tasks(
            given["target"], names, folder=given["tasks_folder"], **common
        )
        return found, harness.lines
    if source == "judge":
        from tunewright.core.runfile import columns_of
        from tunewright.evaluate import judge

        rows = {name: given[name] for name in ROWS if name in given}
        rows["columns"] = columns_of(given["columns"])
        found = judge.judge(
            given["target"],
            given["data"],
            given["judge"],
            against=given["against"] or judge.REFERENCE,
            language=given["judge_language"],
            **rows,
            **common,
        )
        return found, judge.lines
    return None


def _require_effect(given: Given, source: str, name: str) -> None:
    """Raise UsageError (E-EXAM-09) for flags that change nothing of what is measured."""
    special = {flag for flags in EFFECT.values() for flag in flags} - set(ROWS)
    idle = [
        flag
        for key, flag in FLAGS.items()
        if given.get(key) not in SILENT
        and (key in special if source == "data" else key not in EFFECT[source])
    ]
    if source == "data" and given.get("lowest") and not given.get("group"):
        idle.append("--lowest")
    if idle:
        raise UsageError(problem("E-EXAM-09", ", ".join(idle), source=name))
