"""A run that gives numbers, merged: a classifier with one label that plain Transformers opens,
proven by its numbers.

A reward model becomes a sequence classifier, which scores a whole text; a judge of steps becomes a
token classifier, which scores every token, where its family has one with such a head. Both hold the
trained layers and the head `score`, and no head that predicts words.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core import compat
from tunewright.core.files import readable_size
from tunewright.core.words import say
from tunewright.export.folder import ExportError
from tunewright.export.prompts import Prompts
from tunewright.export.proof import Asked, Logits, Proof, gap_of, load_plain
from tunewright.models.scalar_heads import as_classifier, head_module, put_stored_score

LARGEST_GAP = {"float32": 1e-4, "bfloat16": 0.25, "float16": 0.25}
"""Largest difference of a score from the run's, as a share of the largest score."""
EXPECTED_GAP = 0.05


@dataclass
class ScoresProof(Proof):
    """A merged classifier is compared with the run by its scores."""

    score: Any
    """The weights of the run's score head."""
    objective: str | None
    kind: str = field(default="", init=False)
    """The class that plain Transformers opens the folder with."""
    needs_effect = False  # the head alone may be all that was learnt

    def ask(self, model: Any, causal: Any, prompts: Prompts, keep: Path | None) -> Logits:
        """The run's head over the hidden states at every position."""
        import torch

        put_stored_score(causal, self.score, self.trained)
        body, parts = getattr(causal, causal.base_model_prefix), []
        with torch.inference_mode():
            for ids in prompts.ids:
                given = torch.tensor([ids], device=causal.device)
                hidden_TD = body(input_ids=given, use_cache=False).last_hidden_state[0]
                parts.append(head_module(causal, "score")(hidden_TD))
        return Logits.of(torch.cat(parts)[:, None])

    def finish(self, folder: Path) -> None:
        """Put the score head in the place of the head that predicts words."""
        import torch

        (folder / "generation_config.json").unlink()  # it generates nothing
        weight = self.score.to(getattr(torch, self.dtype)).contiguous()
        self.kind = as_classifier(folder, weight, tokens=compat.judges(self.objective) == "steps")

    def prove(self, folder: Path, asked: Asked) -> dict[str, Any]:
        """Read the files back as anybody would, and compare the scores. Raises ExportError where
        they are not the run's."""
        count, source = len(asked.prompts.ids), say(f"export.from.{asked.prompts.kind}")
        self.tell.line(say("export.proving_scores", kind=self.kind, prompts=count, source=source))
        changed = self.changed(folder)
        merged, places = self._scores(folder, asked.prompts)
        wanted = Logits.of(asked.run.values[places])
        self.require_finite(merged)
        gap, limit = gap_of(wanted, merged), LARGEST_GAP[self.dtype]
        shown = {"dtype": self.dtype, "gap": f"{gap:.1e}"}
        if not gap <= limit:
            raise ExportError.of("E-EXPORT-12", str(self.out), **shown, limit=f"{limit:g}")
        return {
            "class": self.kind,
            "largest_score_difference": gap,
            "scores": len(places),
            **changed,
            "warnings": [say("export.warning.scores", **shown)] if gap > EXPECTED_GAP else [],
            "adapter_moves_scores": asked.effect,
        }

    def _scores(self, folder: Path, prompts: Prompts) -> tuple[Logits, list[int]]:
        """What the classifier in `folder` says, and at which of the prompts' positions it says
        so."""
        import torch

        by_token = not self.kind.endswith("ForSequenceClassification")
        one = "Token" if by_token else "Sequence"
        plain = load_plain(folder, self.dtype, f"AutoModelFor{one}Classification")
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
        return Logits.of(torch.cat(said)), places


def lines_of_scores(verdict: dict[str, Any]) -> list[str]:
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
