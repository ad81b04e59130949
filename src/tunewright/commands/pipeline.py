"""A pipeline of runs: sft, then dpo from its adapter; or pretrain, sft, reward and ppo. Each stage
is a run folder of its own under one folder.

The pipeline's folder is the record: `pipeline.yaml` (what every stage was told), `NN-name/` (a run
folder each), `summary.json` (what has finished, with the SHA-256 of every file it left) and
`report.html`. A resume verifies what has finished by those sums, continues the stage that was
running with that run's own resume, and starts the others. So a kill at any moment loses no more
than it would in a single run.
"""

from __future__ import annotations

import contextlib
import gc
from pathlib import Path
from typing import Any

from tunewright import rewards, story
from tunewright.commands import dry_run as dry
from tunewright.commands.pipeline_file import read_pipeline, write_text_of
from tunewright.commands.pipeline_plan import SCORES, Pipeline, Planned, of_stage, plan
from tunewright.core import faults, publish
from tunewright.core.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    Problem,
    TunewrightError,
    UsageError,
    raise_all,
)
from tunewright.core.files import sha256_of, write_json, write_text
from tunewright.core.telling import Quiet, Tell
from tunewright.core.words import say
from tunewright.record import folder as run_folder
from tunewright.report import html
from tunewright.report.stages import write_stages_report
from tunewright.run import gating
from tunewright.sources import find

RECORD, SUMMARY = "pipeline.yaml", "summary.json"
FIGURES = (
    "steps",
    "first_loss",
    "final_loss",
    "held_out_loss",
    "held_out_figures",
    "train_seconds",
    "wall_seconds",
)


# ---- checking


def check_pipeline(pipeline: Pipeline, *, tell: Tell | None = None) -> dict[str, Any]:
    """`--dry-run`: every check of every stage, nothing written. Returns each stage's figures.
    Raises UsageError with the problems of all stages."""
    tell = tell or Tell()
    _require_free(pipeline.out)
    figures = _check(pipeline, pipeline.stages, tell, speak=True)
    tell.line(say("pipeline.dry_run_done", count=len(pipeline.stages)))
    return {"stages": figures}


def _require_free(out: Path) -> None:
    if (out / RECORD).is_file():
        run_folder.raise_if_finished(out)
        raise UsageError.of("E-PIPE-12", str(out), folder=out)
    run_folder.require_free(out)


def _check(pipeline: Pipeline, stages: list[Planned], tell: Tell, *, speak: bool) -> dict[str, Any]:
    """Keys, rows, model files, templates, rewards and memory of `stages`, each on the model at the
    beginning of its line. Loads no weights."""
    figures: dict[str, Any] = {}
    problems: list[Problem] = []
    to_come = [stage.folder for stage in pipeline.stages if stage.leaves == SCORES]
    with rewards.expecting(to_come):
        for stage in stages:
            assert stage.stand_in is not None
            if speak:
                tell.line(_heading(pipeline, stage))
            try:
                # before a real run the weights are needed in any case; without them less could be
                # checked
                if not speak:
                    find.resolve(stage.root, report=tell.line)
                figures[stage.name] = dry.dry_run(stage.stand_in, tell=tell if speak else Quiet())
            except UsageError as e:
                problems += of_stage(stage.name, e.problems)
    raise_all(problems, UsageError)
    return figures


def _heading(pipeline: Pipeline, stage: Planned) -> str:
    number = pipeline.stages.index(stage) + 1
    kinds = f"{stage.kinds['objective']}, {stage.kinds['method']}"
    return "\n" + say(
        "pipeline.heading",
        number=number,
        count=len(pipeline.stages),
        name=stage.name,
        kinds=kinds,
        folder=stage.folder,
    )


# ---- running


def run_pipeline(pipeline: Pipeline, *, tell: Tell | None = None) -> story.Finished:
    """Check all stages, then run them. Raises UsageError before anything is created, and what a run
    raises when a stage fails or is stopped."""
    tell = tell or Tell()
    _require_free(pipeline.out)
    tell.line(say("pipeline.checking", count=len(pipeline.stages)))
    _check(pipeline, pipeline.stages, tell, speak=False)
    _create(pipeline)
    return _go_on(pipeline, tell)


def resume_pipeline(out: Path, *, tell: Tell | None = None) -> story.Finished:
    """Go on where a pipeline stopped: finished stages are verified, the one that was running
    continues, the others start."""
    tell = tell or Tell()
    if not (out / RECORD).is_file():
        raise ConfigError.of("E-PIPE-15", str(out))
    pipeline = plan(read_pipeline(out / RECORD), out)
    _check(
        pipeline,
        [stage for stage in pipeline.stages if not (stage.folder / "run.yaml").is_file()],
        tell,
        speak=False,
    )
    return _go_on(pipeline, tell)


def is_pipeline_folder(folder: Path) -> bool:
    """Whether a folder is a pipeline's."""
    return (folder / RECORD).is_file()


def _create(pipeline: Pipeline) -> None:
    """Let the folder appear by a rename with its record inside. Raises UsageError when it cannot be
    written."""
    out = pipeline.out
    text = write_text_of([(stage.name, stage.layer) for stage in pipeline.stages])
    try:
        with publish.folder(out) as temporary:
            write_text(temporary / RECORD, text)
    except OSError as e:
        raise UsageError.of("E-RUN-03", str(out), cause=e) from e


def _go_on(pipeline: Pipeline, tell: Tell) -> story.Finished:
    """Run the stages that are not done. Whatever ends that, the summary says how far it came."""
    rows: list[dict[str, Any]] = []
    try:
        _run_stages(pipeline, rows, tell)
    except (TunewrightError, KeyboardInterrupt) as e:
        stopped = isinstance(e, Interrupted | KeyboardInterrupt)
        _remember_end(pipeline, rows, "stopped" if stopped else "failed", e)
        tell.line(say("pipeline.stopped", folder=pipeline.out))
        raise
    except faults.UNFORESEEN as e:
        doing = say("pipeline.doing", done=len(rows), count=len(pipeline.stages))
        fault = faults.caught(e, pipeline.out, doing)
        _remember_end(pipeline, rows, "failed", fault)
        raise fault from e
    summary = run_folder.read_summary(pipeline.out)
    if summary.get("status") == "done":
        further = run_folder.further(pipeline.out)
        tell.line(say("train.already_done", folder=pipeline.out, further=further))
        return story.Finished(pipeline.out, summary)
    summary = _remember(pipeline, rows, "done")
    last, page = pipeline.stages[-1].folder, pipeline.out / "report.html"
    tell.line(say("pipeline.done", count=len(rows), page=page, folder=last))
    return story.Finished(pipeline.out, summary)


def _run_stages(pipeline: Pipeline, rows: list[dict[str, Any]], tell: Tell) -> None:
    """Verify the stages that are done and run the others, one after the other; `rows` gets what the
    summary keeps of each."""
    # A stage whose run is done and whose files nobody counted yet is looked at again.
    known = {
        row["name"]: row
        for row in run_folder.read_summary(pipeline.out).get("stages", [])
        if row.get("status") == "done" and "files" in row
    }
    for stage in pipeline.stages:
        row = known.get(stage.name)
        if row is not None:
            _verify(stage, row)
            rows.append(row)
            tell.line(say("pipeline.verified", name=stage.name, count=len(row["files"])))
            continue
        tell.line(_heading(pipeline, stage))
        _run_stage(stage, tell)
        rows.append(_result_of(stage))
        _remember(pipeline, rows, "running")


def _remember_end(
    pipeline: Pipeline, rows: list[dict[str, Any]], status: str, error: BaseException
) -> None:
    """Say in the summary what ended the pipeline; where that cannot be written, `error` says so."""
    try:
        _remember(pipeline, rows, status, str(error))
    except faults.UNFORESEEN as unwritten:
        if isinstance(error, TunewrightError):
            error.add(faults.unwritten(unwritten, pipeline.out))


def _run_stage(stage: Planned, tell: Tell) -> None:
    """Start or continue the run of a stage."""
    # Of a process that died while the folder appeared; nobody else writes here.
    publish.remove_left_overs(stage.folder.parent, f".{stage.folder.name}.tmp-")
    if (stage.folder / "run.yaml").is_file():
        summary = story.resume_run(stage.folder, tell=tell).summary
    else:
        summary = story.train(stage.run, tell=tell).summary
    gating.require_passed(summary, stage.folder)
    if not (stage.folder / "report.html").is_file():
        html.write_report(stage.folder)  # it was killed between its summary and its page
    gc.collect()


def _result_of(stage: Planned) -> dict[str, Any]:
    """What the summary keeps of a finished stage: its figures and the SHA-256 of what it left.
    Raises CheckpointError where that is not there."""
    summary = run_folder.read_summary(stage.folder)
    result = stage.result
    files = {
        f"{result.name}/{p.relative_to(result).as_posix()}": {
            "size": p.stat().st_size,
            "sha256": sha256_of(p),
        }
        for p in _files(result)
    }
    if not any(name.endswith(".safetensors") for name in files):
        raise CheckpointError.of("E-PIPE-16", str(stage.folder), name=stage.name, folder=result)
    return {
        "name": stage.name,
        "folder": stage.folder.name,
        "status": "done",
        **stage.kinds,
        "leaves": stage.leaves,
        **{key: summary.get(key) for key in FIGURES if key in summary},
        "files": files,
    }


def _files(folder: Path) -> list[Path]:
    """All but notes for people, which may be rewritten."""
    return (
        sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".md")
        if folder.is_dir()
        else []
    )


def _verify(stage: Planned, row: dict[str, Any]) -> None:
    """A finished stage still is what it was when it finished. Raises CheckpointError naming the
    files that are not."""
    wrong = []
    for name, facts in row["files"].items():
        path = stage.folder / name
        if (
            not path.is_file()
            or path.stat().st_size != facts["size"]
            or sha256_of(path) != facts["sha256"]
        ):
            wrong.append(name)
    if wrong:
        raise CheckpointError.of(
            "E-PIPE-11",
            str(stage.folder),
            name=stage.name,
            files=", ".join(wrong[:5]),
            count=len(wrong),
        )


def _remember(
    pipeline: Pipeline, rows: list[dict[str, Any]], status: str, reason: str = ""
) -> dict[str, Any]:
    """summary.json and report.html of the pipeline."""
    waiting = [
        {
            "name": s.name,
            "folder": s.folder.name,
            "status": run_folder.read_summary(s.folder).get("status", "waiting"),
            **s.kinds,
        }
        for s in pipeline.stages[len(rows) :]
    ]
    seconds = sum(float(row.get("wall_seconds") or 0) for row in rows)
    summary = {
        "status": status,
        "reason": reason,
        "wall_seconds": round(seconds, 4),
        "stages": [*rows, *waiting],
    }
    write_json(pipeline.out / SUMMARY, summary)
    with contextlib.suppress(OSError):  # the page can be made again; the run must not fail for it
        write_stages_report(pipeline.out)
    return summary
