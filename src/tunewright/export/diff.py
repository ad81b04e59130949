"""A finished run that trained every weight, as a sparse difference to its base: the largest changes
of the blocks' matrices, the rest left behind.

This is the other meaning of diff pruning: the places are not learnt (`method: {kind: diff_pruning}`
does that, Guo et al. 2021), they are the largest changes that full training made. Nothing trains
afterwards, so answers are lost; the report says how much of the change was kept. The folder is one
that `diff_pruning` writes, and chat, evaluate and training further open it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError
from tunewright.core.files import readable_size
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.export.folder import ExportError, appearing, require_free
from tunewright.methods.diff_pruning import DiffPruningConfig, save_differences
from tunewright.models import anatomy, load, rotary
from tunewright.text.tokenizer import load_tokenizer


def export_difference(
    run: Path, out: Path, *, share: float = 0.005, tell: Tell | None = None
) -> dict[str, Any]:
    """Write the largest `share` (of all weights of the model) of the changes that `run` made to its
    base into `out`.

    Returns what was kept: `changed` weights, `changed_share`, `kept` (share of the squared change
    of the blocks' matrices), `outside` (share of the whole squared change that lies in embeddings,
    norms and head and is left out), `bytes`. Raises UsageError for a run without a whole model
    (E-METHOD-47), a share out of range (E-METHOD-48) or an `out` that is taken.
    """
    tell = tell or Tell()
    require_free(out)
    if not 0 < share < 1:
        raise UsageError.of("E-METHOD-48", "--share", share=share)
    if not (Path(run) / "model" / "config.json").is_file():
        raise UsageError.of("E-METHOD-47", str(run))
    found = opening.find(str(run), tell, base=True)
    base, tuned = (
        load.load_model(folder, dtype="float32")
        for folder in (found.source.folder, Path(run) / "model")
    )
    largest = _largest_changes(base, tuned, share)
    if largest.kept == 0:
        raise UsageError.of("E-METHOD-49", str(run))
    base_path = (
        found.source.spec
        if found.source.kind == "hub" and "@" not in found.source.spec
        else str(found.source.folder)
    )
    with appearing(Path(out), "writing") as temporary:
        settings = DiffPruningConfig(target=share)
        written = save_differences(temporary, settings, base_path, largest.differences)
        _prove(temporary, largest.differences)
        load_tokenizer(Path(run) / "model").save_pretrained(str(temporary))
        rotary.write(temporary, opening.base_of(found.settings).rotary)
    return {
        "folder": str(out),
        "changed": written["changed"],
        "changed_share": written["changed"] / largest.total,
        "kept": largest.kept / largest.inside,
        "outside": (largest.whole - largest.inside) / largest.whole,
        "bytes": (Path(out) / "method.safetensors").stat().st_size,
    }


@dataclass
class _Largest:
    """The largest changes of the blocks' matrices, the others set to 0, and squared changes."""

    differences: dict[str, Any]
    """Matrix -> its change."""
    total: int
    """Weights of the model."""
    whole: float
    """Squared change of all of them."""
    inside: float
    """That of the blocks' matrices."""
    kept: float


def _largest_changes(base: Any, tuned: Any, share: float) -> _Largest:
    """What is kept of the change from `base` to `tuned` when `share` of all weights may differ."""
    import torch

    names = set(anatomy.of(base).linear)
    after = dict(tuned.named_parameters())
    total, whole, differences = 0, 0.0, {}
    with torch.no_grad():
        for name, p in base.named_parameters():
            delta = after[name] - p
            total += p.numel()
            whole += float(delta.double().square().sum())
            if name.removesuffix(".weight") in names:
                differences[name.removesuffix(".weight")] = delta
        quota = min(max(1, round(share * total)), sum(d.numel() for d in differences.values()))
        sizes = torch.cat([d.abs().flatten() for d in differences.values()])
        least = max(float(torch.topk(sizes, quota, sorted=False).values.min()), math.ulp(0.0))
        inside = float(sizes.double().square().sum())
        for delta in differences.values():
            delta.mul_(delta.abs() >= least)
        kept = sum(float(d.double().square().sum()) for d in differences.values())
    return _Largest(differences, total, whole, inside, kept)


def _prove(folder: Path, differences: dict[str, Any]) -> None:
    """Read the file back. Raises ExportError (E-EXPORT-16) where it holds another difference."""
    import torch

    from tunewright.methods.diff_pruning import read_differences

    stored = read_differences(folder)
    for name, delta in differences.items():
        positions, values = stored[name]
        again = torch.zeros(delta.numel(), dtype=values.dtype)
        again[positions] = values
        if not torch.equal(again, delta.flatten().cpu()):
            raise ExportError.of("E-EXPORT-16", name)


def lines(result: dict[str, Any]) -> list[str]:
    """The result for a reader."""
    return [
        say(
            "export.diff_done",
            folder=result["folder"],
            changed=f"{result['changed']:,}",
            share=f"{100 * result['changed_share']:.2f}",
            size=readable_size(result["bytes"]),
            kept=f"{100 * result['kept']:.0f}",
            outside=f"{100 * result['outside']:.0f}",
        )
    ]
