"""`adapter:` brings its own method: what the saved folder holds is trained further, and settings
beside it in the run file must agree.

Kind, rank, strength, targets and the like are the shape of the saved numbers; another value beside
them would be recorded and never used. Dropout is no part of the shape but of the training: it may
be given anew. Where nobody gives it, the adapter's own holds, except where the objective compares
the model with a reference: a reference is measured without dropout, so learning with it would begin
at another loss than the one of two equal models (TRL switches it off there as well). Read from the
folder's description alone: no model is loaded for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tunewright.core.config import RunConfig, Section
from tunewright.core.errors import CompatError, Problem, problem, raise_all
from tunewright.core.registry import kinds_of_peft_type, methods
from tunewright.core.runfile import DEFAULT_KINDS, ParsedRun, kind_of, objective_of
from tunewright.core.types import Model
from tunewright.core.words import say
from tunewright.methods.any_peft import RESERVED
from tunewright.methods.saved import OWN
from tunewright.methods.targets import MethodSection, TargetSection, chosen_layers
from tunewright.models import rotary
from tunewright.models.anatomy import Anatomy

DESCRIPTION = "adapter_config.json"
BEGINNING = {
    "pissa",
    "pissa_niter",
    "olora",
    "eva",
    "loftq",
    "niter",
    "rho",
    "wait",
    "settle",
    "every",
    "orthogonality",
    "text",
    "encoder",
    "encoder_size",
    "start",
    "rank_pattern",
    "alpha_pattern",
    "modules_to_save",
}
"""Settings of how an adapter of PEFT begins. It has begun, so they do nothing, and that is said."""
FREE = {"dropout", "ratio"}
"""Settings of the training, which may be given anew."""
FORMS = {"targets", "layers", "feedforward"}
"""Fields that can say the same in several ways, compared by `wrong_layers` on the model."""
WORDS = ("tokens", "new_tokens")
"""Words or their numbers: an adapter holds numbers, so they are compared by how many there are."""


@dataclass
class Continued:
    """A run with the method that its adapter really has, sentences to say, and the layers that were
    asked for, where they must still be compared."""

    parsed: ParsedRun
    notes: list[str] = field(default_factory=list)
    asked: MethodSection | None = None


def resolve(parsed: ParsedRun) -> Continued:
    """The run with the method of its `adapter`; without one, the run as it is.

    Raises CompatError for a folder that holds no adapter (E-COMPAT-11), another kind (E-COMPAT-09)
    and every setting that contradicts (E-COMPAT-08).
    """
    config = parsed.config
    if config.adapter is None:
        return Continued(parsed)
    folder = Path(config.adapter)
    parsed = _with_rotary(parsed, folder)
    config = parsed.config
    own, described = _described(folder)
    given = {
        key.removeprefix("method."): getattr(config.method, key.removeprefix("method."), None)
        for key in parsed.given
        if _is_field(key)
    }
    kind = str(parsed.given.get("method.kind", DEFAULT_KINDS["method"]))
    asks_kind = "method.kind" in parsed.where or kind != DEFAULT_KINDS["method"]
    found = Continued(parsed)
    kinds: tuple[str, ...]
    if own:
        held, values = str(described.get("kind")), dict(described.get("config") or {})
        kinds = (held,)
    else:
        held, values, kinds = _of_peft(described, kind if asks_kind else "")
    if asks_kind and kind not in kinds:
        raise CompatError(
            problem(
                "E-COMPAT-09", parsed.source("method.kind"), kind=kind, held=held, folder=folder
            )
        )
    problems = []
    for name, value in given.items():
        fault = None if own else _note(name, value, config.method, found)
        if not fault and _contradicts(name, value, values, config.method, own):
            shown = values.get(name, "-")
            problems.append(
                problem(
                    "E-COMPAT-08",
                    parsed.source(f"method.{name}"),
                    field=f"method.{name}",
                    value=value,
                    held=shown,
                    folder=folder,
                )
            )
    raise_all(problems, CompatError)
    if not own and any(
        given.get(name) not in (None, [], values.get(name)) for name in ("targets", "layers")
    ):
        found.asked = config.method
    for name in WORDS:
        if given.get(name) and name in values:
            values[name] = given[name]  # words say more than their numbers
    _set_dropout(found, values, given)
    if kind == "lora_plus" and "ratio" in given:
        values["ratio"] = given["ratio"]
    _take(found, held, values)
    return found


def _with_rotary(parsed: ParsedRun, folder: Path) -> ParsedRun:
    """The run with the scaling of positions that its adapter was trained with. Raises CompatError
    (E-KEY-07) where the run asks for another."""
    held, asked = rotary.read(folder), parsed.config.base.rotary
    if held == asked:
        return parsed
    if asked is not None:
        shown = "-" if held is None else held.kind
        raise CompatError(
            problem("E-KEY-07", parsed.source("base.rotary"), held=shown, folder=folder)
        )
    base = parsed.config.base.model_copy(update={"rotary": held})
    where = {**parsed.where, "base.rotary": say("continuing.from", folder=folder)}
    return ParsedRun(parsed.config.model_copy(update={"base": base}), parsed.given, where)


def _is_field(key: str) -> bool:
    return key.startswith("method.") and key != "method.kind"


def _described(folder: Path) -> tuple[bool, dict[str, Any]]:
    """Whether the folder is one of our own, and its description."""
    for name in (OWN, DESCRIPTION):
        if (folder / name).is_file():
            try:
                content = json.loads((folder / name).read_text(encoding="utf-8"))
            except (OSError, ValueError) as e:
                raise CompatError(
                    problem(
                        "E-COMPAT-11", "adapter", folder=folder, hint=str(e).splitlines()[0][:160]
                    )
                ) from e
            if isinstance(content, dict):
                return name == OWN, content
    inside = folder / "adapter"
    hint = (
        say("continuing.inside", folder=inside)
        if (inside / OWN).is_file() or (inside / DESCRIPTION).is_file()
        else ""
    )
    raise CompatError(problem("E-COMPAT-11", "adapter", folder=folder, hint=hint))


def _of_peft(
    described: Mapping[str, Any], asked: str
) -> tuple[str, dict[str, Any], tuple[str, ...]]:
    """(kind, its fields, kinds that may be named) of a PEFT folder. A type that has no kind here
    goes on as `peft`."""
    name = str(described.get("peft_type"))
    entries = kinds_of_peft_type(name)
    if not entries or asked == "peft":
        return "peft", {"type": name, "options": dict(described)}, ("peft",)
    goes_on = next(entry for entry in entries if entry.facts.get("goes_on", True))
    held, kinds = goes_on.name, tuple(entry.name for entry in entries)
    fields: dict[str, str] = goes_on.facts.get("peft_fields", {})
    values = {ours: described.get(theirs) for ours, theirs in fields.items()}
    targets = described.get("target_modules")
    if targets is not None:
        values["targets"] = sorted(targets) if isinstance(targets, list) else [str(targets)]
    if name == "TRAINABLE_TOKENS":
        values["tokens"] = list(described.get("token_indices") or [])
    if name == "LORA":
        rows = described.get("trainable_token_indices") or []
        values["new_tokens"] = (
            list(next(iter(rows.values()), [])) if isinstance(rows, dict) else list(rows)
        )
        flags = {
            "rslora": bool(values.pop("rslora", False)),
            "dora": bool(values.pop("dora", False)),
        }
        fits = {
            "lora": True,
            "rslora": flags["rslora"] and not flags["dora"],
            "dora": flags["dora"] and not flags["rslora"],
        }
        plain = not any(flags.values())
        allowed = tuple(kind for kind in kinds if fits.get(kind, plain))
        held = (
            asked
            if asked in ("rslora", "dora", "lora_plus", "loftq") and asked in allowed
            else "lora"
        )
        return held, values | (flags if held == "lora" else {}), allowed
    return held, values, kinds


def _note(name: str, value: object, section: Section, found: Continued) -> bool:
    """Whether a setting says how an adapter begins; one that asks for something is told to do
    nothing."""
    if name not in BEGINNING:
        return False
    if value != type(section).model_fields[name].default:
        found.notes.append(say("continuing.no_effect", field=f"method.{name}", value=value))
    return True


def _contradicts(
    name: str, value: Any, values: Mapping[str, Any], section: Section, own: bool
) -> bool:
    if name in FREE and not own:
        return name == "dropout" and bool(value) and "dropout" not in values
    if value is None or (name in FORMS and not own):
        return False
    if name in WORDS and not own:
        return bool(value) and len(value) != len(values.get(name, []))
    if name == "options":
        return any(values["options"].get(option) != wanted for option, wanted in value.items())
    if name == "type":
        return str(value).upper().replace("-", "_") != values["type"]
    if name not in values:
        return bool(value) or not own
    held = values[name]
    if name in ("rank", "alpha") and (
        getattr(section, "pissa", False)
        or getattr(section, "olora", False)
        or kind_of(section) in ("pissa", "olora")
    ):
        # What these starts take out of the weights is saved beside what was learnt: twice the rank,
        # at the same strength (`methods/lora_starts.py`).
        factor = 2**0.5 if name == "alpha" and getattr(section, "rslora", False) else 2
        return bool(value != held and abs(value * factor - held) > 1e-6 * held)
    return bool(value != held)


def _set_dropout(found: Continued, values: dict[str, Any], given: Mapping[str, Any]) -> None:
    """As given, or the adapter's own, or none where a reference is compared."""
    if "dropout" not in values:
        return
    if given.get("dropout") is not None:
        values["dropout"] = given["dropout"]
    elif values["dropout"] and compares(found.parsed.config):
        found.notes.append(
            say(
                "continuing.no_dropout",
                held=values["dropout"],
                objective=kind_of(found.parsed.config.objective),
            )
        )
        values["dropout"] = 0.0


def compares(config: RunConfig) -> bool:
    """Whether the objective of a run compares the model with what it was before, so that noise in
    one of both would count as a difference."""
    objective = objective_of(config)
    return objective.reference or objective.rollouts is not None


def _take(found: Continued, kind: str, values: dict[str, Any]) -> None:
    """Put the method of the adapter into the run."""
    entry = methods.get(kind)
    if entry is None:
        return  # opening the folder says so
    parsed, folder = found.parsed, found.parsed.config.adapter
    if kind == "peft":
        plain = {
            key: value
            for key, value in values["options"].items()
            if key not in RESERVED and value not in (None, False, {}, [])
        }
        values = {"type": values["type"], "options": plain}
    values = {
        name: value
        for name, value in values.items()
        if name in entry.config.model_fields and value is not None  # type: ignore[attr-defined]
    }
    try:
        section = entry.config(**values)
    except ValidationError:
        return  # a description that our fields cannot hold; the adapter itself is opened as it is
    where = {**parsed.where}
    for name in ("kind", *values):
        where.setdefault(f"method.{name}", say("continuing.from", folder=folder))
    found.parsed = ParsedRun(
        parsed.config.model_copy(update={"method": section}), parsed.given, where
    )


def wrong_layers(
    asked: MethodSection, model: Model, anatomy: Anatomy, folder: Path
) -> list[Problem]:
    """What is wrong where `targets` or `layers` choose other layers of `model` than the adapter of
    `folder` sits on."""
    from peft import PeftConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    settings = PeftConfig.from_pretrained(str(folder))
    held = {name for name, _ in model.named_modules() if check_target_module_exists(settings, name)}
    targets: list[str] = getattr(asked, "targets", [])
    names = set(
        chosen_layers(asked, anatomy)
        if isinstance(asked, TargetSection)
        else anatomy.select(targets)
    )
    if not held or names == held:
        return []
    odd = sorted(names ^ held)
    return [
        problem(
            "E-COMPAT-10",
            "method.targets",
            targets=", ".join(map(str, targets)),
            count=len(names),
            held=len(held),
            first=odd[0],
            folder=folder,
        )
    ]
