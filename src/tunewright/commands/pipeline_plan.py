"""What the stages of a pipeline are, before one of them runs: each with its references to earlier
stages (`stage:NAME`) resolved to folders, and all problems of all stages at once."""

from __future__ import annotations

import difflib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunewright.commands.pipeline_file import REFERENCE, Layer, PipelineFile, Stage, read_pipeline
from tunewright.core import compat
from tunewright.core.errors import ConfigError, Problem, problem, raise_all
from tunewright.core.registry import methods
from tunewright.core.runfile import DEFAULT_KINDS, ParsedRun, parse_run
from tunewright.core.words import say
from tunewright.methods import continuing
from tunewright.record.folder import free_folder, stem_of

ADAPTER, MODEL, SCORES = "adapter", "model", "scores"
"""What a stage leaves for the next: weights beside a base, a whole model, or a reward model."""
TRAINING = tuple(f"method.{name}" for name in sorted(continuing.FREE))
"""Keys of a method that are settings of the training, not of what it leaves."""


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


def load_pipeline(
    path: Path, words: list[str] | None = None, flags: dict[str, Any] | None = None
) -> Pipeline:
    """The pipeline of a file with `key=value` words and flags. Raises ConfigError with the problems
    of all stages."""
    content = read_pipeline(path, words, flags)
    return plan(content, Path(content.out or free_folder(stem_of(path, "pipeline"))))


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
        problems += of_stage(stage.name, found)
    raise_all(problems, ConfigError)
    return Pipeline(out, planned)


def of_stage(name: str, problems: list[Problem]) -> list[Problem]:
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

    def _cannot_start_from(self, x: Planned, field: str, code: str) -> None:
        """Note that what stage `x` saved is not what `field` needs: `code`, or that it writes no
        words."""
        wordless = self._wants_words(x)
        self._wrong(
            "E-PIPE-07" if wordless else code,
            field,
            field=field,
            name=x.name,
            method=x.kinds["method"],
        )

    def _continue_adapter(self) -> dict[str, Any]:
        """Start from the adapter of an earlier stage: on the same base, with the same method."""
        x = self._find("adapter", self.given["adapter"])
        if x is None:
            return {"adapter": "-", **({"model": "-"} if self._refers("model") else {})}
        if x.saved != ADAPTER or self._wants_words(x):
            self._cannot_start_from(x, "adapter", "E-PIPE-05")
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
            self._cannot_start_from(x, "model", "E-PIPE-06")
        if "adapter" not in self.own:
            # One that the first stage began with belongs to another base.
            self.given.pop("adapter", None)
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
