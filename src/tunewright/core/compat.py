"""Any method works with any objective unless this file says why not; all reasons at once, before
anything is loaded."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

from tunewright.core import launched
from tunewright.core.config import RunConfig
from tunewright.core.errors import Problem, problem
from tunewright.core.registry import methods, objectives, usual_rate
from tunewright.core.runfile import kind_of
from tunewright.core.words import say

JUDGED = ("preference", "judged", "stepwise")
"""Kinds that hold good and bad answers: `data.good_only` makes dialogues of the good ones."""


def problems(run: RunConfig) -> list[Problem]:
    """Everything in a run that cannot go together."""
    found: list[Problem] = []
    found += _base_problems(run)
    found += _good_only_problems(run)
    found += _turns_problems(run)
    rate = run.engine.learning_rate
    if rate != "auto" and rate <= 0:
        found.append(problem("E-COMPAT-03", "engine.learning_rate", value=rate))
    elif rate != "auto" and rate > MOST_RATE:
        usual = f"{usual_rate(kind_of(run.method)):g}"
        found.append(problem("E-COMPAT-13", "engine.learning_rate", value=rate, usual=usual))
    found += _idle_keys(run) + _rank_problems(run)
    method = methods.get(kind_of(run.method)) if run.method is not None else None
    if method is not None and method.facts.get("own_optimizer") and run.engine.optimizer != "adamw":
        found.append(
            problem(
                "E-METHOD-07",
                "engine.optimizer",
                method=method.name,
                optimizer=run.engine.optimizer,
            )
        )
    if method is not None and method.facts.get("own_optimizer"):
        if run.engine.offload in ("optimizer", "all"):
            known = "auto, none, activations"
            fields = {"other": "method.kind", "value": method.name, "known": known}
            found.append(problem("E-COMPAT-12", "engine.offload", **fields))
    elif run.engine.optimizer == "adamw_8bit" and importlib.util.find_spec("bitsandbytes") is None:
        found.append(problem("E-METHOD-08", "engine.optimizer"))
    return found


MOST_RATE = 1.0
"""Highest learning rate that is taken: every update rule here moves a weight by about the rate in a
step, and weights are far below 1."""
MOMENTS = ("adamw", "adamw_8bit", "muon", "adamw_schedule_free", "adam_mini")
"""Update rules that keep the two moments of Adam."""
NEEDS = {
    "attention": ("layout", ("auto", "tree")),
    "least_rate": ("schedule", ("cosine", "linear", "wsd")),
    "cycles": ("schedule", ("cosine",)),
    "decay": ("schedule", ("wsd",)),
    "power": ("schedule", ("linear",)),
    "betas": ("optimizer", (*MOMENTS, "lion")),
    "epsilon": ("optimizer", MOMENTS),
    "rates": ("optimizer", (*MOMENTS, "lion", "adafactor")),
}
"""Engine keys that only do something beside certain values of another."""


def _idle_keys(run: RunConfig) -> list[Problem]:
    """Engine keys that would be read and do nothing."""
    engine, method = run.engine, methods.get(kind_of(run.method))
    own = method is not None and method.facts.get("own_optimizer")
    found = []
    for key, (other, values) in NEEDS.items():
        if getattr(engine, key) == type(engine).model_fields[key].default:
            continue
        value = getattr(engine, other)
        if own and other == "optimizer" and method is not None:
            where, value, values = "method.kind", method.name, ()
        else:
            where = f"engine.{other}"
        if value not in values:
            known = ", ".join(values) or "-"
            found.append(
                problem("E-COMPAT-12", f"engine.{key}", other=where, value=value, known=known)
            )
    return found + _without_dialogues(run)


def _without_dialogues(run: RunConfig) -> list[Problem]:
    """Arguments of a chat template beside an objective that learns from running text alone."""
    kind = kind_of(run.objective)
    if not run.data.template_arguments or wanted_rows(run) != ("text",):
        return []
    known = ", ".join(e.name for e in objectives if e.facts.get("rows", ()) != ("text",))
    return [
        problem(
            "E-COMPAT-12",
            "data.template_arguments",
            other="objective.kind",
            value=kind,
            known=known,
        )
    ]


MANY_KEYS = ("parallel", "hybrid", "offload_shares", "rank_timeout", "max_restarts")
"""Engine keys of runs of several processes."""


def _rank_problems(run: RunConfig) -> list[Problem]:
    """What does not go with several processes, or does nothing without them."""
    engine, place = run.engine, launched.here()
    fields = type(engine).model_fields
    given = [key for key in MANY_KEYS if getattr(engine, key) != fields[key].default]
    if engine.processes == 1 and place is None:
        return [
            problem(
                "E-COMPAT-12",
                f"engine.{key}",
                other="engine.processes",
                value=1,
                known="2 ..., auto",
            )
            for key in given
        ]
    if engine.processes == 1 and place is not None and place.world == 1:
        return []
    found, shares = [], engine.parallel == "fsdp"
    for key in ("hybrid", "offload_shares"):
        if key in given and not shares:
            found.append(
                problem(
                    "E-COMPAT-12",
                    f"engine.{key}",
                    other="engine.parallel",
                    value=engine.parallel,
                    known="fsdp",
                )
            )
    entry = methods.get(kind_of(run.method)) if run.method is not None else None
    if entry is not None and entry.facts.get("one_process"):
        found.append(_not_with("method.kind", entry.name, "engine.processes", "engine.processes=1"))
    if shares and entry is not None and is_kept_whole(run.method):
        found.append(_not_with("method.kind", entry.name, "engine.parallel: fsdp", DDP))
    if shares and run.base.bits is not None:
        found.append(_not_with("base.bits", run.base.bits, "engine.parallel: fsdp", DDP))
    if shares and engine.offload not in ("auto", "none"):
        other = "engine.offload_shares=true, " + DDP
        found.append(_not_with("engine.offload", engine.offload, "engine.parallel: fsdp", other))
    if shares and engine.optimizer != "adamw":
        other = "engine.optimizer=adamw, " + DDP
        found.append(
            _not_with("engine.optimizer", engine.optimizer, "engine.parallel: fsdp", other)
        )
    return found


def is_kept_whole(method: Any) -> bool:
    """Whether what `method` trains cannot lie in shares on several processes (fsdp)."""
    entry = methods.get(kind_of(method)) if method is not None else None
    if entry is None:
        return False
    return entry.facts.get("in_shares") is False or bool(entry.facts.get("own_optimizer"))


DDP = "engine.parallel=ddp"


def _not_with(key: str, value: Any, other: str, instead: str) -> Problem:
    return problem("E-DIST-08", key, what=f"`{key}: {value}`", other=f"`{other}`", instead=instead)


def _base_problems(run: RunConfig) -> list[Problem]:
    """A quantised base carries only methods that leave it as it is, and its dtype has as many
    bits as it says."""
    base, kind = run.base, kind_of(run.method)
    if base.bits is None:
        return [problem("E-METHOD-60", "base.bits")] if getattr(run.method, "loftq", False) else []
    found = []
    if base.number_type not in {4: ("nf4", "int4"), 8: ("int8",)}[base.bits]:
        found.append(problem("E-METHOD-45", "base.type", type=base.number_type, bits=base.bits))
    entry = methods.get(kind)
    if entry is not None and entry.facts.get("on_quantised", False) is not True:
        usable = [e.name for e in methods if e.facts.get("on_quantised", False) is True]
        found.append(problem("E-COMPAT-02", "base.bits", method=kind, usable=", ".join(usable)))
    return found


def wanted_rows(run: RunConfig) -> tuple[str, ...]:
    """The kinds of rows that the objective of a run learns from, the best first."""
    entry = objectives.get(kind_of(run.objective))
    return tuple(entry.facts.get("rows", ())) if entry else ()


def _good_only_problems(run: RunConfig) -> list[Problem]:
    """`data.good_only` leaves dialogues, which an objective that compares answers cannot use."""
    name = kind_of(run.objective)
    entry = objectives.get(name)
    needs = entry.facts.get("rows", ()) if entry else ()
    if not run.data.good_only or not needs or "conversation" in needs:
        return []
    usable = [e.name for e in objectives if "conversation" in e.facts.get("rows", ())]
    return [
        problem(
            "E-COMPAT-07",
            "data.good_only",
            objective=name,
            needs=" / ".join(needs),
            usable=", ".join(usable),
        )
    ]


def _turns_problems(run: RunConfig) -> list[Problem]:
    """`data.turns` is about dialogues that are imitated: it does nothing where answers are compared
    or drawn."""
    if run.data.turns == "all" or _imitates(wanted_rows(run)):
        return []
    usable = [e.name for e in objectives if _imitates(e.facts.get("rows", ()))]
    where, name = "objective.kind", kind_of(run.objective)
    return [problem("E-COMPAT-12", "data.turns", other=where, value=name, known=", ".join(usable))]


def _imitates(rows: tuple[str, ...]) -> bool:
    """Whether an objective that takes these kinds of rows learns the answers of dialogues; one that
    takes prompts draws its own."""
    return "conversation" in rows and "prompt" not in rows


def usual_for(kind: str) -> str:
    """The objective that most people want for a kind of rows."""
    return next(e.name for e in objectives if kind in e.facts.get("usual_for", ()))


def judges(objective: str | None) -> str:
    """What a run of this objective gives numbers to: `answers`, the `steps` of answers, or nothing
    (an empty text)."""
    entry = objectives.get(objective) if objective is not None else None
    return str(entry.facts.get("judges", "")) if entry is not None else ""


def row_problems(run: RunConfig, kinds: Mapping[str, Any]) -> list[Problem]:
    """What the objective of a run cannot learn from, among the kinds of rows that its data has
    (`kinds` of the data report): every one that occurs."""
    return rows_for(kind_of(run.objective), kinds)


def rows_for(objective: str, kinds: Mapping[str, Any]) -> list[Problem]:
    """As `row_problems`, for an objective by its name."""
    entry = objectives.get(objective)
    if entry is None:
        known, guess = ", ".join(objectives.names()), objectives.guess(objective) or ""
        return [
            problem("E-CONFIG-09", "", axis="objective", kind=objective, known=known, guess=guess)
        ]
    needs = entry.facts.get("rows", ())
    wrong = [kind for kind in kinds if kind not in needs]
    if not needs or not wrong:
        return []
    also = (
        say("compat.good_only")
        if "conversation" in needs and any(kind in JUDGED for kind in wrong)
        else ""
    )
    fields = {
        "objective": objective,
        "needs": " / ".join(say(f"rows.kind.{kind}") for kind in needs),
        "found": kinds_text({kind: kinds[kind] for kind in wrong}),
        "also": also,
    }
    if len(wrong) == len(kinds):
        return [problem("E-COMPAT-05", "data.train", guess=usual_for(wrong[0]), **fields)]
    return [
        problem(
            "E-COMPAT-06",
            "data.train",
            fit=kinds_text({kind: kinds[kind] for kind in kinds if kind not in wrong}),
            **fields,
        )
    ]


def kinds_text(kinds: Mapping[str, Any]) -> str:
    """Kinds of rows with their files: `preference (12 in pairs.json from row 1 on)`."""
    return ", ".join(
        say(
            "compat.kind",
            kind=say(f"rows.kind.{kind}"),
            files=", ".join(
                say(
                    "compat.kind_file",
                    file=place["file"],
                    rows=f"{place['rows']:,}",
                    row=f"{place['first_row']:,}",
                )
                for place in found["files"]
            ),
        )
        for kind, found in kinds.items()
    )
