"""Several LoRA adapters of one base become one: an adapter folder like any other, to chat with, to merge or to train further."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.core.errors import CompatError, UsageError, problem, raise_all
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.methods import composition
from tunewright.models import load


def combine(targets: list[str], out: Path, *, weights: list[float] | None = None, way: str = "cat", tell: Tell | None = None) -> dict[str, Any]:
    """Write W + sum of weight * update of the adapters in `targets` (run folders or PEFT folders) to `out`, and say what was made.

    Raises UsageError for a folder that is taken or weights that do not fit, CompatError for adapters that do not go together.
    """
    tell = tell or Tell()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(problem("E-EXPORT-01", str(out)))
    if way not in composition.WAYS:
        raise UsageError(problem("E-METHOD-34", "--way", way=way, known=", ".join(composition.WAYS)))
    shares = weights or [1 / len(targets)] * len(targets)
    if len(shares) != len(targets):
        raise UsageError(problem("E-METHOD-32", "--weights", count=len(targets), given=len(shares)))
    found = [opening.find(target, tell) for target in targets]
    raise_all([problem("E-EXPORT-02", f.name) for f in found if f.adapter is None], UsageError)
    folders = {f"part{i}": f.adapter for i, f in enumerate(found) if f.adapter is not None}
    first = found[0].source.folder
    wrong = [problem("E-METHOD-31", f.name, folder=f.name, base=f.source.folder, first=first) for f in found if f.source.folder != first]
    raise_all([*wrong, *composition.obstacles(folders)], CompatError)
    composed = composition.compose(load.load_model(first, dtype="float32"), folders)
    composed.combine("combined", dict(zip(folders, shares, strict=True)), way)
    settings = composed.wrapped.peft_config["combined"]
    settings.base_model_name_or_path = composed.wrapped.peft_config["part0"].base_model_name_or_path
    composed.save("combined", out)
    tokenizer = found[0].tokenizer_folder
    load.load_tokenizer(tokenizer).save_pretrained(str(out))
    return {"out": str(out), "adapters": targets, "weights": shares, "way": way, "rank": settings.r, "base": str(first)}


def lines(made: dict[str, Any]) -> list[str]:
    """The same for people."""
    parts = " + ".join(f"{w:g} x {name}" for w, name in zip(made["weights"], made["adapters"], strict=True))
    return [say("combine.done", count=len(made["adapters"]), out=made["out"], rank=made["rank"], parts=parts), say("combine.next", out=made["out"])]
