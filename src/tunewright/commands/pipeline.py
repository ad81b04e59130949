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
import difflib
import gc
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunewright import rewards, story
from tunewright.commands import dry_run as dry
from tunewright.commands.pipeline_file import (
    REFERENCE,
    Layer,
    PipelineFile,
    Stage,
    read_pipeline,
    write_text_of,
)
from tunewright.core import compat, faults, publish
from tunewright.core.errors import (
    CheckpointError,
    ConfigError,
    Interrupted,
    Problem,
    TunewrightError,
    UsageError,
    problem,
    raise_all,
)
from tunewright.core.files import sha256_of, write_json, write_text
from tunewright.core.registry import methods
from tunewright.core.runfile import DEFAULT_KINDS, ParsedRun, parse_run
from tunewright.core.telling import Quiet, Tell
from tunewright.core.words import say
from tunewright.methods import continuing
from tunewright.record import folder as run_folder
from tunewright.report import html
from tunewright.report.stages import write_stages_report
from tunewright.run import gating
from tunewright.sources import find

RECORD, SUMMARY = "pipeline.yaml", "summary.json"
ADAPTER, MODEL, SCORES = "adapter", "model", "scores"
"""What a stage leaves for the next: weights beside a base, a whole model, or a reward model."""
TRAINING = tuple(f"method.{name}" for name in sorted(continuing.FREE))
"""Keys of a method that are settings of the training, not of what it leaves."""
FIGURES = (
    "steps",
    "first_loss",
    "final_loss",
    "held_out_loss",
    "held_out_figures",
    "train_seconds",
    "wall_seconds",
)


@dataclass
class Planned:
    """One stage, its references to earlier ones resolved."""

    name: str
    folder: Path
    layer: Layer
    """What the record says: references as they were written, everything else as it will be."""
    leaves: str
    saved: str
    """The folder in which it lies: `adapter` or `model`."""
    kinds: dict[str, str]
    root: str
    """The model at the beginning of its line: what can be looked at before earlier stages exist."""
    given: dict[str, Any] = field(default_factory=dict)
    """Keys with references as folders: what the run of this stage is made of."""
    parsed: ParsedRun | None = None
    stand_in: ParsedRun | None = None
    """The same run on the model of `root`, to check what can be checked now."""

    @property
    def result(self) -> Path:
        """The folder with what it leaves."""
        return self.folder / self.saved

    @property
    def run(self) -> ParsedRun:
        """The run, after `plan` found nothing wrong."""
        assert self.parsed is not None
        return self.parsed


@dataclass
class Pipeline:
    """A planned pipeline and its folder."""

    out: Path
    stages: list[Planned]


# ---- planning


def load_pipeline(
    path: Path, words: list[str] | None = None, flags: dict[str, Any] | None = None
) -> Pipeline:
    """The pipeline of a file with `key=value` words and flags. Raises ConfigError with the problems
    of all stages."""
    content = read_pipeline(path, words, flags)
    return plan(content, Path(content.out) if content.out else _default_out(path))


def _default_out(path: Path) -> Path:
    """`runs/<file>-<n>` with the first free n."""
    stem = re.sub(r"[^\w.-]+", "-", path.stem).strip("-.") or "pipeline"
    n = 1
    while Path("runs", f"{stem}-{n}").exists():
        n += 1
    return Path("runs", f"{stem}-{n}")


def plan(content: PipelineFile, out: Path) -> Pipeline:
    """Resolve every stage against those before it. Raises ConfigError with all problems, each with
    its stage."""
    problems: list[Problem] = []
    planned: list[Planned] = []
    names = [stage.name for stage in content.stages]
    for number, stage in enumerate(content.stages, 1):
        found: list[Problem] = []
        planned.append(
            _Resolver(
                content, stage, planned, names, out / f"{number:02d}-{stage.name}", found
            ).resolve()
        )
        problems += _of_stage(stage.name, found)
    raise_all(problems, ConfigError)
    return Pipeline(out, planned)


def _of_stage(name: str, problems: list[Problem]) -> list[Problem]:
    """The same problems with the stage said."""
    return [
        Problem(
            p.code,
            say("pipeline.where", stage=name, where=p.where)
            if p.where
            else say("pipeline.stage", stage=name),
            p.fields,
        )
        for p in problems
    ]


class _Resolver:
    """One stage on its way from written keys to a run."""

    def __init__(
        self,
        content: PipelineFile,
        stage: Stage,
        earlier: list[Planned],
        names: list[str],
        folder: Path,
        problems: list[Problem],
    ):
        self.stage, self.names, self.folder, self.problems = stage, names, folder, problems
        self.earlier = {one.name: one for one in earlier}
        self.layer, self.own = content.merged(stage)
        self.given = self.layer.given
        self.root: str | None = None

    def resolve(self) -> Planned:
        """The planned stage; what is wrong is added to `problems`."""
        real: dict[str, Any] = {}
        if self._refers("adapter"):
            real = self._continue_adapter()
        elif self._refers("model"):
            real = self._take_model()
        real |= self._take_runs()
        for key, value in self.given.items():
            if (
                key not in ("adapter", "model", "objective.reward", "objective.teacher")
                and isinstance(value, str)
                and value.startswith(REFERENCE)
            ):
                self._wrong("E-PIPE-04", key, field=key, value=value)
        kinds = {
            axis: str(self.given.get(f"{axis}.kind", default))
            for axis, default in DEFAULT_KINDS.items()
        }
        given = {**self.given, **real, "out": str(self.folder)}
        made = Planned(
            self.stage.name,
            self.folder,
            self.layer,
            _leaves(kinds),
            _saved(kinds),
            kinds,
            self.root or str(given.get("model")),
            given,
        )
        try:
            made.parsed = parse_run(dict(given), dict(self.layer.where))
            # The earlier stage's own words; what its adapter really has is read when it is there.
            own = ("method.kind", *TRAINING)
            for key in list(made.parsed.given) if "adapter" in real else []:
                if key.startswith("method.") and key not in own:
                    del made.parsed.given[key]
            beginning = {
                key: value
                for key, value in given.items()
                if key != "adapter" or "adapter" not in real
            }
            made.stand_in = parse_run({**beginning, "model": made.root}, dict(self.layer.where))
        except ConfigError as e:
            self.problems += e.problems
        return made

    def _wrong(self, code: str, key: str, /, **fields: Any) -> None:
        """Keep a problem of the stage's key."""
        self.problems.append(problem(code, self.layer.where.get(key, ""), **fields))

    def _refers(self, key: str) -> bool:
        value = self.given.get(key)
        return isinstance(value, str) and value.startswith(REFERENCE)

    def _find(self, key: str, value: str) -> Planned | None:
        """The earlier stage that `stage:NAME` names."""
        name = value.removeprefix(REFERENCE)
        if name not in self.earlier:
            known = ", ".join(self.earlier) or "-"
            close = difflib.get_close_matches(name, list(self.earlier), n=1, cutoff=0.5)
            hint = (
                say("pipeline.later")
                if name in self.names
                else say("rewards.guess", guess=f"{REFERENCE}{close[0]}")
                if close
                else ""
            )
            self._wrong("E-PIPE-03", key, field=key, name=name, known=known, hint=hint)
        return self.earlier.get(name)

    def _continue_adapter(self) -> dict[str, Any]:
        """Start from the adapter of an earlier stage: on the same base, with the same method."""
        x = self._find("adapter", self.given["adapter"])
        if x is None:
            return {"adapter": "-", **({"model": "-"} if self._refers("model") else {})}
        if x.saved != ADAPTER or self._wants_words(x):
            self._wrong(
                "E-PIPE-07" if self._wants_words(x) else "E-PIPE-05",
                "adapter",
                field="adapter",
                name=x.name,
                method=x.kinds["method"],
            )
            return {"adapter": "-", **({"model": "-"} if self._refers("model") else {})}
        if "model" in self.own and self.given["model"] != x.layer.given.get("model"):
            self._wrong(
                "E-PIPE-09",
                "model",
                model=self.given["model"],
                name=x.name,
                base=x.layer.given.get("model"),
            )
        if (
            self.given.get("method.kind", x.kinds["method"]) != x.kinds["method"]
            and "method.kind" in self.own
        ):
            self._wrong(
                "E-PIPE-10",
                "method.kind",
                kind=self.given["method.kind"],
                name=x.name,
                method=x.kinds["method"],
            )
        else:
            self._compare_method(x)
            self._adopt(x, "method.", keep=self.own)
            if "method.dropout" not in self.own:  # a setting of the training, not of the adapter
                self.given.pop("method.dropout", None)
        for section in ("model", "base."):
            if not any(key.startswith(section) for key in self.own):
                self._adopt(x, section, keep=self.own)
        self.root = x.root
        return {"adapter": str(x.result), "model": x.given.get("model")}

    def _compare_method(self, x: Planned) -> None:
        """What this stage says of the method itself must be what the adapter of the earlier stage
        has; a setting of the training may differ."""
        if x.stand_in is None:
            return  # what is wrong with that stage is told there
        held, kind = x.stand_in.config.method, self.given.get("method.kind", x.kinds["method"])
        for key in sorted(
            key for key in self.own if key.startswith("method.") and key != "method.kind"
        ):
            name = key.removeprefix("method.")
            try:
                asked = getattr(
                    type(held)(**{**held.model_dump(exclude_unset=True), name: self.given[key]}),
                    name,
                )
            except (ValidationError, TypeError, AttributeError):
                continue  # no such key or value of the kind, which is told with all keys
            if name not in continuing.FREE and asked is not None and asked != getattr(held, name):
                fields = {
                    "field": key,
                    "value": asked,
                    "held": getattr(held, name),
                    "folder": f"stage:{x.name}",
                    "kind": kind,
                }
                self._wrong("E-COMPAT-08", key, **fields)

    def _wants_words(self, x: Planned) -> bool:
        """Whether `x` leaves a judge and this stage trains something that answers: only another
        judge goes on from one."""
        objective = str(self.given.get("objective.kind", DEFAULT_KINDS["objective"]))
        return (
            x.leaves == SCORES
            and _leaves({"objective": objective, "method": x.kinds["method"]}) != SCORES
        )

    def _adopt(self, x: Planned, section: str, keep: set[str]) -> None:
        """Take a section's keys from an earlier stage in place of the shared ones; those that this
        stage gives itself stay."""
        for key in [key for key in self.given if key.startswith(section) and key not in keep]:
            del self.given[key]
        for key, value in x.layer.given.items():
            if key.startswith(section) and key not in keep:
                self.given[key], self.layer.where[key] = value, say("pipeline.as_in", stage=x.name)

    def _take_model(self) -> dict[str, Any]:
        """Start from the whole model of an earlier stage."""
        x = self._find("model", self.given["model"])
        if x is None:
            return {"model": "-"}
        if x.saved != MODEL or self._wants_words(x):
            self._wrong(
                "E-PIPE-07" if self._wants_words(x) else "E-PIPE-06",
                "model",
                field="model",
                name=x.name,
                method=x.kinds["method"],
            )
        if "adapter" not in self.own:
            self.given.pop(
                "adapter", None
            )  # one that the first stage began with belongs to another base
        self.root = x.root
        return {"model": str(x.result)}

    def _take_runs(self) -> dict[str, Any]:
        """Run folders of earlier stages in `objective.reward` and `objective.teacher`."""
        real: dict[str, Any] = {}
        if self._refers("objective.teacher"):
            x = self._find("objective.teacher", self.given["objective.teacher"])
            if x is not None and x.leaves == SCORES:
                self._wrong(
                    "E-PIPE-07", "objective.teacher", field="objective.teacher", name=x.name
                )
            real["objective.teacher"] = str(x.folder) if x else "-"
        if "objective.reward" in self.given:
            real["objective.reward"] = self._reward(self.given["objective.reward"])
        return real

    def _reward(self, spec: Any) -> Any:
        """A reward with its references as folders, whatever its form."""
        if isinstance(spec, list):
            return [self._reward(one) for one in spec]
        if isinstance(spec, dict):
            return {
                key: self._reward(value) if key == "run" else value for key, value in spec.items()
            }
        if not isinstance(spec, str) or not spec.startswith(REFERENCE):
            return spec
        x = self._find("objective.reward", spec)
        if x is not None and x.leaves != SCORES:
            self._wrong(
                "E-PIPE-08", "objective.reward", name=x.name, objective=x.kinds["objective"]
            )
        return str(x.folder) if x else "./-"


def _leaves(kinds: dict[str, str]) -> str:
    """What a run of these kinds leaves, known before it is run."""
    return SCORES if compat.judges(kinds["objective"]) else _saved(kinds)


def _saved(kinds: dict[str, str]) -> str:
    """The folder in which a run of these kinds leaves it."""
    method = methods.get(kinds["method"])
    return MODEL if method is not None and method.facts.get("leaves") == MODEL else ADAPTER


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
                problems += _of_stage(stage.name, e.problems)
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
        raise UsageError.of("E-RUN-03", str(out), cause=e.strerror or e) from e


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


__all__ = [
    "Pipeline",
    "PipelineFile",
    "check_pipeline",
    "is_pipeline_folder",
    "load_pipeline",
    "plan",
    "resume_pipeline",
    "run_pipeline",
]
