"""What is exported: a run on its base, an adapter, or a model as it is; what it says before it is
written, and how its training is folded into plain weights.

The base is read in float32, whatever the run computed in, because an update that is added to
bfloat16 numbers is rounded twice. Memory holds one model at a time, and the logits lie in files.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from tunewright.core.config import BaseConfig
from tunewright.core.errors import ModelError, UsageError, raise_all
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.engine.loaded import put_saved
from tunewright.engine.naming import renderer_of
from tunewright.export import prompts
from tunewright.export.folder import ExportError
from tunewright.export.proof import Asked, Logits, agreement, gap_of, logits_of, replies_of
from tunewright.methods.saved import is_saved
from tunewright.models import load, vocabulary
from tunewright.models.scalar_heads import stored_score
from tunewright.sources import find, vet
from tunewright.text.asked_template import save_tokenizer
from tunewright.text.tokenizer import load_tokenizer

NO_EFFECT = 1e-7
"""An adapter that moves no logit by more than this share of the largest one does nothing."""
LOGIT_BYTES = 512 << 20
"""Most bytes of one model's logits, which lie in files while models are replaced."""
MOST_POSITIONS = 2048
Ask = Callable[[Any, Any, prompts.Prompts, Path | None], Logits]
"""What (the model with the method on it, the causal model, prompts, a folder for logits) says."""
Fold = Callable[[], Any]
"""Gives the plain model with the training in it."""


@dataclass
class Tuned:
    """What is exported, found and judged; no weights are read yet."""

    target: opening.Target
    source: find.Source
    """The base; of a model as it is, itself."""
    tell: Tell
    rows_given: bool = False
    """Its rows are not those of the run, but of a file that was given."""

    @classmethod
    def find(cls, run: Path | str, tell: Tell, *, models: bool = False) -> Tuned:
        """What `run` names: a run folder or the folder of an adapter or another method, with
        `models` also anything that is a model. Raises UsageError and ModelError."""
        folder = Path(run)
        if not (models or (folder / "run.yaml").is_file() or is_saved(folder)):
            if not folder.exists():
                raise ModelError.of("E-MODEL-01", spec=str(run))
            raise UsageError.of("E-EXPORT-02", str(run))
        target = opening.find(str(run), tell)
        alone = target.adapter is not None or target.run is None
        base = target if alone else opening.find(str(run), tell, base=True)
        found = cls(target, base.source, tell)
        raise_all(
            vet.problems_of(found.trained, kind="adapter" if target.adapter else "model")
            + vet.problems_of(found.base),
            ModelError,
        )
        return found

    @property
    def base(self) -> Path:
        """The folder of the base."""
        return self.source.folder

    @property
    def trained(self) -> Path:
        """The folder of the adapter, or of the whole model where there is none."""
        return self.target.adapter or self.target.source.folder

    @property
    def held(self) -> BaseConfig:
        """How the base was held while it was trained, as far as what is exported must know: its
        positions. What it stores in few bits is made wide, so that something can be added to it."""
        return BaseConfig(rotary=opening.base_of(self.target.settings).rotary, dequantise=True)

    @property
    def whole(self) -> bool:
        """Whether every weight was trained: there is nothing to fold."""
        return self.target.adapter is None

    @property
    def is_plain(self) -> bool:
        """Whether it is a model as it is, which nobody can compare with a base."""
        return self.whole and self.target.run is None

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer that it was taught with."""
        return load_tokenizer(self.target.tokenizer_folder)

    def save_words(self, folder: Path) -> None:
        """Write its tokenizer, with a template that asks as it is asked. Raises OSError."""
        if self.is_plain:
            self.tokenizer.save_pretrained(str(folder))
        else:
            save_tokenizer(self.renderer, folder, self.target.settings.get("objective.kind", ""))

    @cached_property
    def renderer(self) -> Any:
        """How it is asked."""
        thinking = self.target.thinking
        return renderer_of(self.tokenizer, self.base, *self.target.stated, thinking=thinking)

    @cached_property
    def score(self) -> Any:
        """The weights of the head of a run that gives numbers, else None."""
        return stored_score(self.trained)

    @cached_property
    def words(self) -> dict[str, int]:
        """Word -> id of what the run's tokenizer has and the base's has not."""
        own = self.target.tokenizer_folder
        if own == self.base or not (self.base / "tokenizer_config.json").is_file():
            return {}
        return vocabulary.added_words(self.tokenizer, load_tokenizer(self.base))

    def ask(
        self, said: Ask, keep: Path, *, needs_effect: bool, answers: bool = False
    ) -> tuple[Asked, Fold]:
        """What base and run say to the prompts, and what folds the training into the base. `keep`
        takes the logits; `answers`: questions are answered, too. Raises ExportError for a run that
        cannot be folded or moves nothing."""
        causal: Any = load.load_model(self.base, dtype="float32", base=self.held)
        rows = causal.config.get_text_config().vocab_size
        budget = min(MOST_POSITIONS, max(64, LOGIT_BYTES // (4 * rows)))
        asking = prompts.choose(self.target, self.renderer, budget, list(self.words.values()))
        untouched = None
        if not self.whole and (self.trained / "adapter_config.json").is_file():
            # The base is asked in the run's words, so it needs the run's rows.
            vocabulary.fit_rows(causal, self.trained)
        if not self.is_plain:
            untouched = said(causal, causal, asking.prompts, keep / "base")
        attached, model = None, causal
        fold: Fold = partial(_itself, causal)
        if self.whole and not self.is_plain:
            del causal, model, fold
            gc.collect()
            model = causal = load.load_model(self.trained, dtype="float32")
            fold = partial(_itself, model)
        elif not self.whole:
            attached, fold = self._attached(causal)
            model = attached.model
        run = said(model, causal, asking.prompts, keep / "run")
        if not run.is_finite:
            share = say("export.not_finite")
            raise ExportError.of("E-EXPORT-08", str(self.trained), dtype="float32", share=share)
        effect = 0.0 if untouched is None else gap_of(run, untouched)
        if needs_effect and untouched is not None and not effect > NO_EFFECT:
            raise ExportError.of("E-EXPORT-06", str(self.trained), dtype="float32")
        changed = 0.0 if untouched is None else 1 - agreement(run, untouched)
        asked = Asked(asking.prompts, run, effect, changed, untouched, asking.questions)
        if answers:
            asked.replies, _ = replies_of(causal, attached, self.renderer, asking.questions)
        return asked, fold

    def _attached(self, causal: Any) -> tuple[Any, Fold]:
        """The method on its base, and what folds it in. Raises ExportError where none can."""
        attached = put_saved(causal, self.trained)
        if attached.merge is None:
            ours = not (self.trained / "adapter_config.json").is_file()
            told = say(f"export.hand_over.{'own' if ours else 'peft'}", folder=self.trained)
            reason = attached.merge_reason
            where = str(self.trained)
            raise ExportError.of("E-METHOD-10", where, reason=reason, hand_over=told)
        _require_mergeable(causal, self.trained)
        return attached, attached.merge


def words_said(model: Any, causal: Any, asked: prompts.Prompts, keep: Path | None) -> Logits:
    """The logits of a model that predicts words."""
    return logits_of(model, asked, keep)


def _itself(model: Any) -> Any:
    """A run that trained every weight has nothing to fold."""
    return model


def _require_mergeable(causal: Any, adapter: Path) -> None:
    """Raise ExportError where folding in would change more than the adapter does: a matrix that
    stands in two places of the model."""
    head, embedding = causal.get_output_embeddings(), causal.get_input_embeddings()
    tied = getattr(head, "weight", None) is not None and head.weight is getattr(
        embedding, "weight", None
    )
    # Rows of tokens belong to both places of a tied matrix alike.
    if tied and any(
        hasattr(part, "merge") and not hasattr(part, "trainable_tokens_delta")
        for part in (head, embedding)
    ):
        raise ExportError.of("E-EXPORT-09", str(adapter))
