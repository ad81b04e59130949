"""Several LoRA adapters of one base become one: an adapter folder like any other, to chat with, to
merge or to train further.

It ends as a merge does: the folder is written beside OUT under a hidden name, opened again by plain
PEFT, and its update is compared with the sum made by hand from the tensors in the files. Only a
folder that passed gets its name; after any failure nothing is left. The verdict lies inside as
`combine.json`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.core import signals
from tunewright.core.config import BaseConfig
from tunewright.core.errors import CompatError, UsageError, first_line, problem, raise_all
from tunewright.core.files import write_json
from tunewright.core.machine import versions
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.export import composition
from tunewright.export.folder import ExportError, appearing, require_free
from tunewright.models import load, rotary
from tunewright.text.tokenizer import load_tokenizer

VERDICT = "combine.json"
LARGEST_ERROR = 1e-5
"""Largest difference of the combined update, as a share of it."""
BEST = 1e-3
"""`svd`: how much worse than the best product of its rank the combined update may be."""


def combine(
    targets: list[str],
    out: Path,
    *,
    weights: list[float] | None = None,
    way: str = "cat",
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Write W + sum of weight * update of the adapters in `targets` (run folders or PEFT folders)
    to `out`, and say what was made.

    Raises UsageError for a folder that is taken or weights that do not fit, CompatError for
    adapters that do not go together.
    """
    tell = tell or Tell()
    require_free(out)
    if way not in composition.WAYS:
        raise UsageError.of("E-METHOD-34", "--way", way=way, known=", ".join(composition.WAYS))
    shares = weights or [1 / len(targets)] * len(targets)
    if len(shares) != len(targets):
        raise UsageError.of("E-METHOD-32", "--weights", count=len(targets), given=len(shares))
    found = [opening.find(target, tell) for target in targets]
    raise_all([problem("E-EXPORT-02", f.name) for f in found if f.adapter is None], UsageError)
    folders = {f"part{i}": f.adapter for i, f in enumerate(found) if f.adapter is not None}
    first = found[0].source.folder
    wrong = [
        problem("E-METHOD-31", f.name, folder=f.name, base=f.source.folder, first=first)
        for f in found
        if f.source.folder != first
    ]
    held = opening.base_of(found[0].settings).rotary
    wrong += [
        problem("E-KEY-06", f.name, folder=f.name, first=found[0].name)
        for f in found
        if opening.base_of(f.settings).rotary != held
    ]
    raise_all([*wrong, *composition.obstacles(folders)], CompatError)
    base = load.load_model(first, dtype="float32", base=BaseConfig(rotary=held, dequantise=True))
    composed = composition.compose(base, folders)
    composed.combine("combined", dict(zip(folders, shares, strict=True)), way)
    settings = composed.wrapped.peft_config["combined"]
    settings.base_model_name_or_path = composed.wrapped.peft_config["part0"].base_model_name_or_path
    made: dict[str, Any] = {
        "out": str(out),
        "adapters": targets,
        "weights": shares,
        "way": way,
        "rank": settings.r,
        "base": str(first),
    }
    try:
        with signals.watching(), appearing(out, "combining") as temporary:
            composed.save("combined", temporary)
            load_tokenizer(found[0].tokenizer_folder).save_pretrained(str(temporary))
            rotary.write(temporary, held)
            made |= _prove(composed, temporary, list(folders.values()), shares, way)
            write_json(temporary / VERDICT, {**made, "versions": versions()})
    except OSError as e:
        raise UsageError.of("E-RUN-03", str(out), cause=e) from e
    return made


def _prove(
    composed: composition.Composed, folder: Path, parts: list[Path], weights: list[float], way: str
) -> dict[str, Any]:
    """Open the folder with plain PEFT and compare. Raises ExportError for a folder that cannot be
    opened or does not hold what was asked for."""
    import warnings

    import torch
    from peft import PeftModel

    computed, rank = (
        _updates(composed.products("combined")),
        composed.wrapped.peft_config["combined"].r,
    )
    base = composed.wrapped.unload()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            opened = _updates(
                composition.products_of(PeftModel.from_pretrained(base, str(folder)), "default")
            )
    except Exception as e:
        raise ExportError.of("E-EXPORT-14", str(folder), cause=first_line(e)) from e
    wanted: dict[str, Any] = {}
    size = 0.0
    for path, weight in zip(parts, weights, strict=True):
        for module, update in _updates(composition.products_in(path)).items():
            wanted[module] = wanted.get(module, torch.zeros_like(update)) + weight * update
            size = max(size, float(update.norm()))
    error, distance = _distance(opened, computed, size), _distance(opened, wanted, size)
    if way == "cat":
        error = max(error, distance)
    elif way == "svd":
        error = max(error, distance - (1 + BEST) * _least_distance(wanted, rank, size))
    if not error <= LARGEST_ERROR:
        shown = {"way": way, "error": f"{error:.1e}", "limit": f"{LARGEST_ERROR:g}"}
        raise ExportError.of("E-EXPORT-13", str(folder), **shown)
    return {
        "verdict": "equal" if way == "cat" else "as stated",
        "relative_error": max(error, 0.0),
        "distance_from_sum": distance,
    }


def _least_distance(wanted: dict[str, Any], rank: int, size: float) -> float:
    """How far the best update of a rank is from the wanted one, measured as `_distance` does."""
    import torch

    least = sum(float(torch.linalg.svdvals(w)[rank:].square().sum()) for w in wanted.values())
    whole = sum(float(w.square().sum()) for w in wanted.values())
    return least**0.5 / max(whole**0.5, 1e-2 * size, 1e-30)


def _updates(products: dict[str, tuple[Any, Any, float]]) -> dict[str, Any]:
    """Module -> scale * B A in float64."""
    return {module: scale * (b.double() @ a.double()) for module, (a, b, scale) in products.items()}


def _distance(one: dict[str, Any], other: dict[str, Any], size: float) -> float:
    """The norm of the difference of two updates over all modules, as a share of the second; of a
    sum that cancels out, of a hundredth of its largest part."""
    apart = whole = 0.0
    for module in {*one, *other}:
        second = other[module] if module in other else 0 * one[module]
        first = one[module] if module in one else 0 * second
        apart, whole = (
            apart + float((first - second).square().sum()),
            whole + float(second.square().sum()),
        )
    return apart**0.5 / max(whole**0.5, 1e-2 * size, 1e-30)


def lines(made: dict[str, Any]) -> list[str]:
    """The same for people."""
    parts = " + ".join(
        f"{w:g} x {name}" for w, name in zip(made["weights"], made["adapters"], strict=True)
    )
    shown = {
        "way": made["way"],
        "error": f"{made['relative_error']:.1e}",
        "distance": f"{100 * made['distance_from_sum']:.0f}",
    }
    proof = say("combine.proven" if made["way"] == "cat" else "combine.proven_way", **shown)
    done = say(
        "combine.done", count=len(made["adapters"]), out=made["out"], rank=made["rank"], parts=parts
    )
    return [done, proof, say("combine.next", out=made["out"])]
