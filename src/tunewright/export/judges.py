"""A run that gives numbers, merged: a classifier with one label that plain Transformers opens,
proven by its numbers.

A reward model becomes a sequence classifier, which scores a whole text; a judge of steps becomes a
token classifier, which scores every token, where its family has one with such a head. Both hold the
trained layers and the head `score`, and no head that predicts words.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tunewright.core.errors import problem
from tunewright.core.files import readable_size
from tunewright.core.words import say
from tunewright.export import merge
from tunewright.export.proof import (
    ExportError,
    Logits,
    Prompts,
    changed_tensors,
    gap_of,
    load_plain,
)
from tunewright.models.scalar_heads import as_classifier, head_module, put_stored_score

LARGEST_GAP = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.25}
"""Largest difference of a score from the run's, as a share of the largest score."""
EXPECTED_GAP = 0.05


class MergeJudge(merge.Merge):
    """A merge whose result gives numbers."""

    needs_effect = False  # the head alone may be all that was learnt

    def __init__(self, *given: Any):
        """As `Merge`, and the weights of the run's score head."""
        *rest, self.score = given
        super().__init__(*rest)
        self.tokens = self.target.settings.get("objective.kind") == "process_reward"

    def _ask(self, model: Any, causal: Any, prompts: Prompts) -> Logits:
        """The run's head over the hidden states at every position."""
        import torch

        put_stored_score(causal, self.score, self.trained)
        body, parts = getattr(causal, causal.base_model_prefix), []
        with torch.inference_mode():
            for ids in prompts.ids:
                hidden_TD = body(
                    input_ids=torch.tensor([ids], device=causal.device), use_cache=False
                ).last_hidden_state[0]
                parts.append(head_module(causal, "score")(hidden_TD))
        return _scores(torch.cat(parts)[:, None])

    def _effect(self, effect: float, changed: float) -> dict[str, Any]:
        return {"adapter_moves_scores": effect}

    def _write(self, fold: Any, folder: Path) -> None:
        super()._write(fold, folder)
        import torch

        (folder / "generation_config.json").unlink()  # it generates nothing
        weight = self.score.to(getattr(torch, self.dtype)).contiguous()
        self.kind = as_classifier(folder, weight, tokens=self.tokens)

    def _prove(self, folder: Path, prompts: Prompts, run: Logits) -> dict[str, Any]:
        """Read the files back as anybody would, and compare the scores. Raises ExportError where
        they are not the run's."""
        import torch

        by_token = not self.kind.endswith("ForSequenceClassification")
        self.tell.line(
            say(
                "export.proving_scores",
                kind=self.kind,
                prompts=len(prompts.ids),
                source=say(f"export.from.{prompts.kind}"),
            )
        )
        changed = changed_tensors(self.base, folder, self.dtype)
        if changed["tensors_changed"] == 0:
            raise ExportError(problem("E-EXPORT-06", str(self.trained), dtype=self.dtype))
        plain = load_plain(
            folder,
            self.dtype,
            "AutoModelForTokenClassification" if by_token else "AutoModelForSequenceClassification",
        )
        pad = json.loads((folder / "config.json").read_text(encoding="utf-8"))["pad_token_id"]
        said: list[Any] = []
        places: list[int] = []
        start = 0
        with torch.inference_mode():
            for ids in prompts.ids:
                logits = plain(input_ids=torch.tensor([ids], device=plain.device)).logits[0].float()
                said.append(logits if by_token else logits[None])
                # The class reads a whole text at its last token that is not padding.
                last = max((i for i, token in enumerate(ids) if token != pad), default=len(ids) - 1)
                places += range(start, start + len(ids)) if by_token else [start + last]
                start += len(ids)
        merged, wanted = _scores(torch.cat(said)), _scores(run.values[places])
        if not merged.is_finite:
            raise ExportError(
                problem(
                    "E-EXPORT-08", str(self.out), dtype=self.dtype, share=say("export.not_finite")
                )
            )
        gap, limit = gap_of(wanted, merged), LARGEST_GAP[self.dtype]
        if not gap <= limit:
            raise ExportError(
                problem(
                    "E-EXPORT-12",
                    str(self.out),
                    dtype=self.dtype,
                    gap=f"{gap:.1e}",
                    limit=f"{limit:g}",
                )
            )
        warnings = (
            [say("export.warning.scores", dtype=self.dtype, gap=f"{gap:.1e}")]
            if gap > EXPECTED_GAP
            else []
        )
        return {
            "class": self.kind,
            "largest_score_difference": gap,
            "scores": len(places),
            **changed,
            "warnings": warnings,
        }


def _scores(values: Any) -> Logits:
    import torch

    return Logits(
        values, values.argmax(-1), float(values.abs().max()), bool(torch.isfinite(values).all())
    )


def lines_of(verdict: dict[str, Any]) -> list[str]:
    """The verdict for a terminal."""
    shown = {
        **verdict,
        "gap": f"{verdict['largest_score_difference']:.1e}",
        "size": readable_size(verdict["weight_bytes"]),
        "kind": verdict["class"],
    }
    return [
        say("export.done_scores", **shown),
        *verdict["warnings"],
        say("export.next_scores", **shown),
    ]
