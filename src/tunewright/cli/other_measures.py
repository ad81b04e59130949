"""What `tunewright evaluate` measures besides rows of data: exams and tasks of lm-eval."""

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

Given = dict[str, Any]
"""The arguments of `evaluate` by name."""
SOURCES = {"data": "--data", "exam": "--exam", "tasks": "--lm-eval"}
EFFECT: dict[str, tuple[str, ...]] = {
    "data": (),
    "exam": ("shots", "as_chat", "exam_language"),
    "tasks": ("tasks_folder", "shots", "as_chat"),
}
"""Flags that have an effect with one source and not with all."""
OF_DATA = ("options", "generate", "data_format", "columns", "data_dir", "think")
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
}
SILENT = (None, False, "auto")
"""Values of a flag that was not given; `--no-generate` and `--no-think` change nothing either."""


def measured_otherwise(
    given: Given,
) -> tuple[dict[str, Any], Callable[[dict[str, Any]], list[str]]] | None:
    """(figures, what makes lines of them) of an exam or of tasks; None where rows are measured.
    Raises UsageError (E-EXAM-08) for no source, several, or flags without effect, and what the
    measurement raises."""
    sources = [name for name in SOURCES if given[name] is not None]
    if len(sources) != 1:
        named = ", ".join(SOURCES[name] for name in sources) or "-"
        raise UsageError(problem("E-EXAM-08", "", given=named))
    (source,) = sources
    allowed = EFFECT[source] + (OF_DATA if source == "data" else ())
    idle = [
        flag for name, flag in FLAGS.items() if name not in allowed and given[name] not in SILENT
    ]
    if idle:
        raise UsageError(problem("E-EXAM-09", ", ".join(idle), source=SOURCES[source]))
    common = {name: given[name] for name in ("shots", "limit", "base", "dtype", "details")}
    if source == "exam":
        from tunewright.evaluate import exams

        how = {"chat": given["as_chat"], "language": given["exam_language"], **common}
        return exams.take_exam(given["target"], given["exam"], **how), exams.lines
    if source == "tasks":
        from tunewright.evaluate import harness

        names = given["tasks"].split(",")
        how = {"chat": given["as_chat"], "folder": given["tasks_folder"], **common}
        return harness.measure_tasks(given["target"], names, **how), harness.lines
    return None
