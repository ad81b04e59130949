"""A finished run that trained every weight, as a sparse difference to its base: the largest changes
of the blocks' matrices, the rest left behind.

This is the other meaning of diff pruning: the places are not learnt (`method: {kind: diff_pruning}`
does that, Guo et al. 2021), they are the largest changes that full training made. Nothing trains
afterwards, so answers are lost; the report says how much of the change was kept. The folder is one
that `diff_pruning` writes, and chat, evaluate and training further open it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.files import readable_size
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.export.folder import appearing, require_free
from tunewright.models import load
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
    import torch

    from tunewright.methods.diff_pruning import DiffPruningConfig, save_differences
    from tunewright.models import anatomy

    tell = tell or Tell()
    require_free(out)
    if not 0 < share < 1:
        raise UsageError(problem("E-METHOD-48", "--share", share=share))
    if not (Path(run) / "model" / "config.json").is_file():
        raise UsageError(problem("E-METHOD-47", str(run)))
    found = opening.find(str(run), tell, base=True)
    base, tuned = (
        load.load_model(folder, dtype="float32")
        for folder in (found.source.folder, Path(run) / "model")
    )
    names = set(anatomy.of(base).linear)
    before, after = dict(base.named_parameters()), dict(tuned.named_parameters())
    total, whole, differences = 0, 0.0, {}
    with torch.no_grad():
        for name, p in before.items():
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
    if kept == 0:
        raise UsageError(problem("E-METHOD-49", str(run)))
    base_path = (
        found.source.spec
        if found.source.kind == "hub" and "@" not in found.source.spec
        else str(found.source.folder)
    )
    with appearing(Path(out), "writing") as temporary:
        settings = DiffPruningConfig(target=share)
        written = save_differences(temporary, settings, base_path, differences)
        load_tokenizer(Path(run) / "model").save_pretrained(str(temporary))
    size = (Path(out) / "method.safetensors").stat().st_size
    return {
        "folder": str(out),
        "changed": written["changed"],
        "changed_share": written["changed"] / total,
        "kept": kept / inside,
        "outside": (whole - inside) / whole,
        "bytes": size,
    }


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
