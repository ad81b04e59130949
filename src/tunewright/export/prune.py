"""A run or model with weights or whole blocks left out, as a plain folder, proven before it
appears.

    magnitude   of each matrix the smallest weights become zero
    wanda       the same by weight times the strength of its input, row by row (Sun et al. 2023,
                arXiv 2306.11695)
    2:4         of every four weights of a row the two that matter least, as graphics cards want it
    blocks      the blocks without which the loss rises least, found one after the other by leaving
                each out and measuring the loss of the whole model (as SLEB, arXiv 2402.09025)

Zeros make a folder no smaller and, without kernels for them, no faster; leaving out blocks does
both. What matters is judged on rows that the run learnt from; the loss is measured on those held
out.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core import machine, signals
from tunewright.core.errors import UsageError
from tunewright.core.files import readable_size, write_json
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.export import card, merge, prompts, remade, shrink
from tunewright.export.folder import ExportError, appearing, require_free
from tunewright.export.gguf import came_from
from tunewright.export.proof import (
    RECORD,
    Asked,
    Logits,
    Prompts,
    logits_of,
    loss_of,
    require_folded,
    scratch,
)
from tunewright.export.quantize import prepare
from tunewright.export.remade import lines_of_loss
from tunewright.export.tuned import MOST_POSITIONS, Tuned, words_said
from tunewright.export.walking import Walk
from tunewright.models import anatomy, load

if TYPE_CHECKING:
    from torch import Tensor

WAYS = ("magnitude", "wanda", "2:4", "blocks")
NEEDS_ROWS = ("wanda", "blocks")
TOKENS = {"wanda": 8192, "2:4": 8192, "blocks": 1024, "magnitude": 0}
"""Tokens that what matters is judged on. A loss over a thousand tokens tells blocks apart."""
CANDIDATES = 6
"""Blocks that are tried again after the first one is gone: the next best of the round before."""
LEAST_SAME = 0.99
"""Share of positions at which the files, opened afresh, agree with what was written."""


def prune(
    run: Path | str,
    out: Path,
    *,
    way: str = "wanda",
    share: float = 0.5,
    blocks: int | None = None,
    data: str | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Write what `run` names without `share` of its weights (or blocks; `blocks`: how many) to the
    folder `out` and return the record that lies there as `proof.json`.

    Raises UsageError before anything is written, ExportError for a folder that is not what was
    computed, Interrupted when stopped; `out` exists afterwards only if this returns.
    """
    tell, out = tell or Tell(), Path(out)
    require_free(out)
    if way not in WAYS:
        raise UsageError.of("E-EXPORT-60", "--way", way=way, known=", ".join(WAYS))
    if not 0 < share < 1 or (way == "2:4" and share != 0.5):
        raise UsageError.of("E-EXPORT-61", "--share", share=share)
    with signals.watching():
        tuned = prepare(run, data, tell)
        job = Pruning(tuned, out, way, share, blocks, tell)
        if way in NEEDS_ROWS and not job.rows:
            raise UsageError.of("E-EXPORT-62", str(run), way=way)
        try:
            return {"folder": str(out), **job.do()}
        except OSError as e:
            raise ExportError.of("E-EXPORT-27", str(out), cause=e) from e


@dataclass
class Pruning:
    """One export from files to a proven folder."""

    tuned: Tuned
    out: Path
    way: str
    share: float
    blocks: int | None
    tell: Tell
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        tuned = self.tuned
        self.dtype = merge.stored_dtype(tuned.trained if tuned.whole else tuned.base)
        wanted = TOKENS[self.way]
        self.rows = prompts.learnt_rows(tuned.target, tuned.renderer, wanted) if wanted else []

    def do(self) -> dict[str, Any]:
        """Ask the run, prune, write, prove, publish."""
        import torch

        started = time.perf_counter()
        tuned = self.tuned
        size = readable_size(4 * load.parameter_count(tuned.base))
        self.tell.line(say("gguf.loading", base=tuned.source.spec, size=size))
        with appearing(self.out, "pruning") as folder, scratch(folder) as kept:
            asked, fold = tuned.ask(words_said, kept, needs_effect=True, answers=True)
            model = fold()
            if not tuned.whole:
                require_folded(self.out, asked, model, kept)
            before = load.parameter_count(tuned.base)
            model, facts = self._pruned(model)
            model.to(getattr(torch, self.dtype))
            wide = model.float()
            wanted = logits_of(wide, asked.prompts, kept / "pruned")
            wide.to(getattr(torch, self.dtype))
            merge.write_folder(tuned, model, folder, self.dtype)
            del model, wide, fold
            gc.collect()
            machine.return_freed_memory()
            record = {
                "exported": "prune",
                "verdict": "as stated",
                "way": self.way,
                "dtype": self.dtype,
                **facts,
                "parameters_before": before,
                "parameters": load.parameter_count(folder),
                **self._prove(folder, asked, wanted),
                "notes": self.notes,
                **came_from(tuned),
                "seconds": round(time.perf_counter() - started, 2),
                "versions": machine.versions(),
            }
            write_json(folder / RECORD, record)
            card.write(folder, tuned, record)
        return record

    def _pruned(self, model: Any) -> tuple[Any, dict[str, Any]]:
        """The smaller model, and what was done."""
        if self.way != "blocks":
            self.tell.line(say("prune.weights", way=self.way, share=f"{100 * self.share:.0f}"))
            zeros = zero(model, self.way, self.share, self.rows)
            return model, {"share": zeros}
        total = len(anatomy.of(model).blocks)
        count = round(self.share * total) if self.blocks is None else self.blocks
        if not 1 <= count < total:
            raise UsageError.of("E-EXPORT-63", "--blocks", count=count, most=total - 1)
        self.tell.line(say("prune.blocks", count=count, total=total))
        steps = least_important(model, self.rows, count, self.tell)
        gone = [step["block"] for step in steps]
        left = [i for i in range(total) if i not in gone]
        return shrink.without_blocks(model, left, str(self.tuned.trained)), {
            "blocks_removed": sorted(gone),
            "blocks": len(left),
            "blocks_before": total,
            "share": round(count / total, 4),
            "steps": steps,
        }

    def _prove(self, folder: Path, asked: Asked, wanted: Logits) -> dict[str, Any]:
        """Open the folder as anybody would and compare it with what was written, and with the
        run. Raises ExportError where it is not that."""
        # Leaving out a lot may carry a small run past its base; being the base is another thing.
        found = remade.prove(
            self.tuned,
            self.out,
            folder,
            asked,
            wanted,
            bounds=remade.Bounds(self.way, LEAST_SAME, beside_base=0.1),
            runner="Transformers",
            dtype=self.dtype,
            ready=lambda model: model.float(),
        )
        return {"run_by": {"name": "transformers"}, "computed_in": "float32", **found}


def zero(model: Any, way: str, share: float, rows: list[list[int]]) -> float:
    """Set `share` of the weights of every matrix of the blocks to zero; returns the share of zeros
    that they have now. With `rows` a weight counts as strong as its input is."""
    names = anatomy.of(model).linear
    if rows and way != "magnitude":
        walk = Walk(model, rows)
        for _, inputs in walk.blocks_with_inputs(names, whole=False):
            for name in [n for n in inputs.sums if n in names]:
                weight = model.get_submodule(name).weight
                scores = weight.abs() * inputs.strength(name).sqrt()
                _zero(weight, scores, way, share)
    else:
        for name in names:
            weight = model.get_submodule(name).weight
            _zero(weight, weight.abs(), way, share)
    zeros = sum(int((model.get_submodule(n).weight == 0).sum()) for n in names)
    return zeros / sum(model.get_submodule(n).weight.numel() for n in names)


def _zero(weight: Tensor, scores: Tensor, way: str, share: float) -> None:
    """Zero the weights (O, I) with the lowest scores: of the matrix (magnitude), of each row
    (wanda), of each four of a row (2:4)."""
    import torch

    with torch.no_grad():
        if way == "2:4" and weight.shape[1] % 4 == 0:
            fours = scores.reshape(len(scores), -1, 4)
            low = fours.argsort(dim=-1, stable=True)[..., :2]
            gone = torch.zeros_like(fours, dtype=torch.bool).scatter_(-1, low, True)
            weight[gone.view(weight.shape)] = 0
            return
        flat = scores.reshape(1, -1) if way == "magnitude" else scores
        low = flat.argsort(dim=1, stable=True)[:, : int(share * flat.shape[1])]
        gone = torch.zeros_like(flat, dtype=torch.bool).scatter_(1, low, True)
        weight[gone.view(weight.shape)] = 0


def least_important(
    model: Any, rows: list[list[int]], count: int, tell: Tell
) -> list[dict[str, Any]]:
    """The `count` blocks without which the loss on `rows` rises least, in the order in which they
    were found, each with the loss without it and those before it (nats per token).

    After the first round only the next best candidates are measured again: blocks that hurt most
    alone do not become harmless.
    """
    asked = Prompts(rows, "data", [[1.0] * len(row) for row in rows])
    blocks = [model.get_submodule(name) for name in anatomy.of(model).blocks]
    own: list[Callable[..., Any]] = [block.forward for block in blocks]

    def without(gone: list[int]) -> float:
        for number in gone:
            blocks[number].forward = shrink.hand_on
        try:
            found = loss_of(logits_of(model, asked), asked)
        finally:
            for number in gone:
                blocks[number].forward = own[number]
        return float("inf") if found is None else found

    gone: list[int] = []
    found: list[dict[str, Any]] = []
    order = list(range(len(blocks)))
    whole = without([])
    tell.start(say("prune.judging"))
    while len(gone) < count:
        tried = order if not gone else order[:CANDIDATES]
        measured = []
        for number in tried:
            measured.append((without([*gone, number]), number))
            tell.progress(say("prune.judging"), len(measured), len(tried))
        measured.sort()
        loss, best = measured[0]
        gone.append(best)
        found.append({"block": best, "loss": loss, "loss_of_whole": whole})
        order = [n for _, n in measured[1:]] + [n for n in order if n not in tried]
    return found


def measured(tuned: Tuned, folder: Path) -> float | None:
    """Loss of the model in `folder` on the prompts of every proof of `tuned`, nats per token."""
    asked = prompts.choose(tuned.target, tuned.renderer, MOST_POSITIONS).prompts
    model: Any = load.load_model(folder, dtype="float32")
    return loss_of(logits_of(model, asked), asked)


def lines(record: dict[str, Any]) -> list[str]:
    """The record for a terminal."""
    size = readable_size(record["weight_bytes"])
    shown = {"out": record["folder"], "size": size, "share": f"{100 * record['share']:.1f}"}
    said = [say("prune.done", **shown)]
    if record.get("blocks_removed"):
        gone = ", ".join(map(str, record["blocks_removed"]))
        said = [say("prune.done_blocks", **shown, gone=gone, left=record["blocks"])]
    said += lines_of_loss(record["loss"])
    return [*said, *record["notes"], *record["warnings"], say("prune.next", out=record["folder"])]
