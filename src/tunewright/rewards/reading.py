"""From `objective.reward` to values: every mistake named at once before anything is loaded, and
nothing silent while answers are judged.

A value of a function is a number, or None for no opinion. A function that raises, gives NaN, too
few values or something else is a fault of an answer: it ends the run (`on_bad: stop`, with the
function, the row and the reason) or leaves that answer out and counts it (`on_bad: skip`).
"""

from __future__ import annotations

import difflib
import math
import numbers
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from tunewright.core.config import Section
from tunewright.core.errors import (
    ConfigError,
    Interrupted,
    Problem,
    TrainingError,
    TunewrightError,
    problem,
    raise_all,
)
from tunewright.core.refusals import reason_of
from tunewright.core.registry import Entry, rewards
from tunewright.core.types import Answer
from tunewright.core.words import say
from tunewright.rewards.base import RewardFunction, UnfitRow, short
from tunewright.rewards.user_code import PythonConfig, allowed

OnBad = Literal["stop", "skip"]
MODEL = "model"
SHOWN_FAULTS = 5


class ItemConfig(Section):
    """What every reward may say beside its own options."""

    weight: float = 1.0
    """What its values are multiplied by before all are added up; negative makes it a penalty, 0
    only records it."""
    name: str | None = Field(default=None, min_length=1)
    """Its name in the figures of the run. Default: the kind."""
    on_bad: OnBad | None = None
    """stop: a failure of the function ends the run; skip: the answer is left out and counted.
    Default: stop."""


class ModelConfig(Section):
    """A reward model that was trained with `objective: {kind: reward}`; answers are scored by it in
    the engine."""

    run: str
    """The run folder of the reward model."""


@dataclass(frozen=True)
class Part:
    """One function of a set."""

    name: str
    weight: float
    on_bad: OnBad
    function: RewardFunction


@dataclass
class Scores:
    """What a batch of answers is worth."""

    total: list[float]
    """Weighted sum an answer, without reward models; NaN for an answer that is left out."""
    parts: dict[str, list[float | None]]
    """Each function's own values, unweighted; None where it has no opinion or failed."""
    bad: list[tuple[int, str, str]] = field(default_factory=list)
    """(index of the answer, function, why) of everything that went wrong under `skip`."""

    @property
    def left_out(self) -> set[int]:
        """Indices of answers that must not be learnt from."""
        return {index for index, _, _ in self.bad}

    def means(self) -> dict[str, float]:
        """The mean value of each function over the answers that count and that it has an opinion
        on."""
        kept = {
            name: [v for i, v in enumerate(values) if v is not None and i not in self.left_out]
            for name, values in self.parts.items()
        }
        return {name: sum(values) / len(values) for name, values in kept.items() if values}


class FaultError(Exception):
    """A function did not give what it owes."""


@dataclass
class RewardSet:
    """The rewards of a run. `models` are (weight, run folder) of trained reward models, which the
    engine scores and adds to `Scores.total`."""

    functions: list[Part]
    models: list[tuple[float, Path]] = field(default_factory=list)
    on_bad: OnBad = "stop"

    def score(self, answers: list[Answer]) -> Scores:
        """Judge a batch. Raises TrainingError (E-REWARD-14) for the first faults of a function
        whose policy is to stop."""
        scores = Scores([0.0] * len(answers), {})
        for part in self.functions:
            values, faults = _judge(part, answers)
            if faults and part.on_bad == "stop":
                raise _stopped(part.name, answers, faults)
            scores.parts[part.name] = values
            scores.bad += [(index, part.name, why) for index, why in sorted(faults.items())]
            for index, value in enumerate(values):
                scores.total[index] += part.weight * (value or 0.0)
        self._require_a_judge(scores, answers)
        for index in scores.left_out:
            scores.total[index] = math.nan
        return scores

    def _require_a_judge(self, scores: Scores, answers: list[Answer]) -> None:
        """An answer on which nobody has an opinion has no reward, which is not the same as 0."""
        if self.models:
            return
        alone = {
            i: say("rewards.why.nobody")
            for i in range(len(answers))
            if i not in scores.left_out and all(v[i] is None for v in scores.parts.values())
        }
        names = ", ".join(scores.parts)
        if alone and self.on_bad == "stop":
            raise _stopped(names, answers, alone)
        scores.bad += [(index, names, why) for index, why in alone.items()]


def _stopped(name: str, answers: list[Answer], faults: dict[int, str]) -> TrainingError:
    shown = sorted(faults.items())[:SHOWN_FAULTS]
    return TrainingError(
        problem(
            "E-REWARD-14",
            str(answers[i].origin or say("rewards.answer", number=i + 1)),
            function=name,
            reason=why,
            count=len(faults),
        )
        for i, why in shown
    )


def _judge(part: Part, answers: list[Answer]) -> tuple[list[float | None], dict[int, str]]:
    """The values of one function, and for each answer that it failed on why. A batch that fails is
    taken apart to find the answers that did it."""
    faults: dict[int, str] = {}
    values: list[float | None] = [None] * len(answers)
    left = list(range(len(answers)))
    try:
        raw = _call(part.function, answers)
    except FaultError as whole:
        for index in left if len(left) > 1 else []:
            try:
                _call(part.function, [answers[index]])
            except FaultError as alone:
                faults[index] = str(alone)
        left = [index for index in left if index not in faults]
        try:
            # The others again as one batch: a function may compare the answers it is given with one
            # another.
            raw = (
                _call(part.function, [answers[i] for i in left])
                if faults and left
                else _raise(whole)
            )
        except FaultError as again:
            return values, faults | dict.fromkeys(left, str(again))
    for index, value in zip(left, raw, strict=True):
        if value is not None and not math.isfinite(value):
            faults[index] = say("rewards.why.not_finite", value=value)
        else:
            values[index] = value
    return values, faults


def _raise(fault: FaultError) -> Any:
    raise fault


def _call(function: RewardFunction, answers: list[Answer]) -> list[float | None]:
    """One call. Raises FaultError for an exception and for everything that is not one number or
    None an answer."""
    if not answers:
        return []
    try:
        raw: Any = function(answers)
    except (Interrupted, KeyboardInterrupt, MemoryError):
        raise
    except UnfitRow as e:
        raise FaultError(str(e)) from e
    except (Exception, SystemExit) as e:
        raise FaultError(
            say("rewards.why.raised", error=type(e).__name__, message=short(str(e), 200))
        ) from e
    if hasattr(raw, "tolist"):  # an array or a tensor
        raw = raw.tolist()
    if not isinstance(raw, list | tuple):
        raise FaultError(say("rewards.why.no_list", type=type(raw).__name__))
    if len(raw) != len(answers):
        raise FaultError(say("rewards.why.count", given=len(raw), wanted=len(answers)))
    values: list[float | None] = []
    for value in raw:
        value = value.item() if hasattr(value, "item") and getattr(value, "ndim", 0) == 0 else value
        if value is not None and not isinstance(value, numbers.Real):
            raise FaultError(say("rewards.why.type", type=type(value).__name__))
        values.append(None if value is None else float(value))
    return values


# ---- from the run file


_coming: ContextVar[frozenset[Path]] = ContextVar(
    "tunewright_reward_runs_to_come", default=frozenset()
)


@contextmanager
def expecting(folders: Iterable[Path]) -> Iterator[None]:
    """Inside, these run folders of reward models count as there: earlier stages of a pipeline that
    is only being checked."""
    token = _coming.set(frozenset(folders))
    try:
        yield
    finally:
        _coming.reset(token)


def read(spec: Any, *, on_bad: OnBad = "stop", place: str = "objective.reward") -> RewardSet:
    """The rewards that `spec` asks for: a name, a mapping with `kind`, a run folder, or a list of
    these. `on_bad` holds where an entry says nothing.

    Raises ConfigError with every mistake: names, options, patterns, schemas, templates, files,
    folders.
    """
    items = spec if isinstance(spec, list) else [spec]
    problems: list[Problem] = []
    made = RewardSet([], on_bad=on_bad)
    if not items or spec is None:
        problems.append(problem("E-REWARD-02", place, value=short(spec)))
    weights = []
    for number, item in enumerate(items if spec is not None else []):
        here = f"{place}[{number}]" if isinstance(spec, list) else place
        try:
            weights.append(_add(made, item, here))
        except TunewrightError as e:
            problems += e.problems
    if not problems and not any(weights):
        problems.append(problem("E-REWARD-15", place))
    raise_all(problems, ConfigError)
    return made


def _as_mapping(item: Any, place: str) -> dict[str, Any]:
    """`exact_match` for `{kind: exact_match}`, and a path for `{kind: model, run: path}`."""
    if isinstance(item, dict) and isinstance(item.get("kind"), str):
        return dict(item)
    if isinstance(item, str) and item and (item == MODEL or rewards.get(item)):
        return {"kind": item}
    if (
        isinstance(item, str)
        and item
        and (
            any(sign in item for sign in "/\\")
            or item.startswith((".", "~"))
            or Path(item).is_dir()
        )
    ):
        return {"kind": MODEL, "run": item}
    if isinstance(item, str) and item:
        return {"kind": item}  # a name that nobody knows; said with a guess
    raise ConfigError(problem("E-REWARD-02", place, value=short(item)))


def _add(made: RewardSet, item: Any, place: str) -> float:
    """Add one entry to the set; returns its weight."""
    options = _as_mapping(item, place)
    kind = options.pop("kind")
    entry = Entry(MODEL, ModelConfig, _no_function, {}) if kind == MODEL else rewards.get(kind)
    if entry is None:
        names = [*rewards.names(), MODEL]
        close = difflib.get_close_matches(kind, names, n=1, cutoff=0.6)
        raise ConfigError(
            problem("E-REWARD-01", place, name=kind, known=", ".join(names), guess=_guess(close))
        )
    common = {key: options.pop(key) for key in ItemConfig.model_fields if key in options}
    problems: list[Problem] = []
    shared: Any = _validated(ItemConfig, common, kind, place, problems)
    config: Any = _validated(entry.config, options, kind, place, problems)
    raise_all(problems, ConfigError)
    if kind == MODEL:
        made.models.append((shared.weight, _reward_run(Path(config.run).expanduser(), place)))
        return float(shared.weight)
    try:
        function = entry.function(config)
    except TunewrightError as e:
        raise ConfigError(
            Problem(
                p.code,
                f"{place}.{p.where}" if p.where and ":" not in p.where else p.where or place,
                p.fields,
            )
            for p in e.problems
        ) from e
    name = shared.name or kind
    taken = {part.name for part in made.functions}
    if shared.name in taken:
        raise ConfigError(problem("E-REWARD-16", f"{place}.name", name=name))
    name = next(
        one
        for one in [name, *(f"{name}_{n}" for n in range(2, len(taken) + 3))]
        if one not in taken
    )
    made.functions.append(Part(name, shared.weight, shared.on_bad or made.on_bad, function))
    return float(shared.weight)


def _guess(close: list[str]) -> str:
    return say("rewards.guess", guess=close[0]) if close else ""


def _no_function(config: Any) -> Any:
    raise AssertionError("a reward model is scored by the engine")


def _validated(
    section: type[Any], options: dict[str, Any], kind: str, place: str, problems: list[Problem]
) -> Any:
    """An instance of a config class, or None with what is wrong added to `problems`."""
    keys = [info.alias or name for name, info in section.model_fields.items()]
    for key in options:
        if key not in keys and section is not ItemConfig:
            known = [*keys, *ItemConfig.model_fields]
            close = difflib.get_close_matches(str(key), known, n=1, cutoff=0.6)
            problems.append(
                problem(
                    "E-REWARD-03",
                    f"{place}.{key}",
                    option=key,
                    kind=kind,
                    known=", ".join(known),
                    guess=_guess(close),
                )
            )
    try:
        return section.model_validate({key: value for key, value in options.items() if key in keys})
    except ValidationError as e:
        for error in e.errors():
            key = str(error["loc"][0]) if error["loc"] else ""
            if error["type"] == "missing":
                problems.append(problem("E-REWARD-17", place, option=key, kind=kind))
            elif not any(p.fields.get("option") == key for p in problems):
                shown = reason_of(error)
                value = short(options if not key else error.get("input"))
                problems.append(
                    problem(
                        "E-REWARD-04",
                        f"{place}.{key}".rstrip("."),
                        option=key or kind,
                        kind=kind,
                        value=value,
                        reason=shown,
                    )
                )
    return None


def _reward_run(folder: Path, place: str) -> Path:
    """The folder of a reward model that is there and finished, or will be."""
    import json

    if folder in _coming.get():
        return folder
    if not (folder / "run.yaml").is_file():
        raise ConfigError(problem("E-REWARD-05", place, folder=folder))
    try:
        status = json.loads((folder / "summary.json").read_text(encoding="utf-8")).get("status")
    except (OSError, ValueError, AttributeError):
        status = None
    if status != "done":
        raise ConfigError(
            problem("E-REWARD-06", place, folder=folder, status=status or say("run.status_unknown"))
        )
    return folder


def recorded(spec: Any) -> Any:
    """`spec` as it belongs into run.yaml: functions of a person's file with that file's SHA-256, so
    that a resume accepts no other."""
    if isinstance(spec, list):
        return [recorded(item) for item in spec]
    code = allowed()
    if code is None or not isinstance(spec, dict) or spec.get("kind") != "python":
        return spec
    return {**spec, "sha256": code.sha256, "file": str(code.path)}


__all__ = ["PythonConfig", "RewardSet", "Scores", "expecting", "read", "recorded"]
