"""Fold what a run trained into its base: one plain model folder that every program can load, proven
against the run before it appears.

The base is read in float32, whatever the run computed in, because an update that is added to
bfloat16 numbers is rounded twice. Base and run are asked first, then folded by the method itself,
written in the wanted dtype into a hidden sibling of OUT, read back with plain Transformers
and asked the same. A run that trained every weight has nothing to fold: its model is written and
proven in the same way. Only a folder that passed gets its name, by one rename; after any failure
nothing is left. The verdict lies inside as `merge.json`.

A run that gives numbers becomes a classifier with one label and is asked for its numbers
(`judges.py`).
"""

from __future__ import annotations

import gc
import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from tunewright.core import machine, signals
from tunewright.core.errors import ModelError, UsageError, first_line, raise_all
from tunewright.core.files import readable_size, sha256_of, write_json
from tunewright.core.telling import Tell, silent
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.engine.naming import renderer_of
from tunewright.export.folder import ExportError, appearing, require_free
from tunewright.export.judges import ScoresProof, lines_of_scores
from tunewright.export.proof import (
    Asked,
    Logits,
    Prompts,
    Proof,
    agreement,
    choose_prompts,
    gap_of,
    load_plain,
    logits_of,
)
from tunewright.methods.saved import is_saved
from tunewright.models import load, vocabulary
from tunewright.models.scalar_heads import stored_score
from tunewright.sources import find, headers, vet
from tunewright.text.tokenizer import load_tokenizer

VERDICT = "merge.json"
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STORED_AS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
LARGEST_GAP = 1e-4
"""float32: largest difference of a logit from the run's, as a share of the largest logit. Rounding
alone makes about 1e-6."""
NO_EFFECT = 1e-7
"""An adapter that moves no logit by more than this share of the largest one does nothing."""
EXPECTED_AGREEMENT, LEAST_AGREEMENT = 0.99, 0.90
"""Half precision: share of positions at which the most likely token is the run's. Below the first:
a warning; below the second: refused."""
SPARE_BYTES = 64 << 20
LOGIT_BYTES = 256 << 20
"""Room for the run's logits while its model is replaced by the merged one."""
SHOWN_WORDS = 5
"""New words that are named in the terminal; `merge.json` has them all."""
SAMPLING_KEYS = {
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "epsilon_cutoff",
    "eta_cutoff",
    "top_h",
}


def merge_run(
    run: Path, out: Path, *, dtype: str | None = None, tell: Tell | None = None
) -> dict[str, Any]:
    """Merge what a run folder (or a bare folder of an adapter or another method) holds into `out`
    and return the verdict that also lies there as `merge.json`.

    `dtype` None: as the base is stored. Raises UsageError before anything is written, ExportError
    for a merge that cannot be written or is not the run, Interrupted when stopped; `out` exists
    afterwards only if this returns.
    """
    tell = tell or Tell()
    require_free(out)
    if dtype is not None and dtype not in ITEM_BYTES:
        raise UsageError.of("E-EXPORT-03", "--dtype", dtype=dtype, known=", ".join(ITEM_BYTES))
    folder = Path(run)
    if not (folder / "run.yaml").is_file() and not is_saved(folder):
        raise UsageError.of("E-EXPORT-02", str(run))
    with signals.watching():
        target = opening.find(str(run), tell)
        trained = target.adapter or target.source.folder
        base = target if target.adapter is not None else opening.find(str(run), tell, base=True)
        raise_all(
            vet.problems_of(trained, kind="adapter" if target.adapter else "model")
            + vet.problems_of(base.source.folder),
            ModelError,
        )
        number_type = dtype or stored_dtype(base.source.folder)
        needed = _require_room(base.source.folder, out, number_type)
        return Merge(target, base.source, trained, Path(out), number_type, needed, tell).do()


def stored_dtype(folder: Path) -> str:
    """The dtype that most bytes of a model's weights have; float32 where that is none of
    ours."""
    sizes: Counter[str] = Counter()
    for path in headers.weight_files(folder)[0]:
        for kind, _, num_bytes in headers.read_safetensors_header(path).values():
            sizes[kind] += num_bytes
    return STORED_AS.get(sizes.most_common(1)[0][0], "float32")


def _require_room(base: Path, out: Path, dtype: str) -> int:
    """Bytes the merged folder will take. Raises UsageError when the memory or the disk is too small
    for it."""
    count = load.parameter_count(base)
    memory, needed = 4 * count, ITEM_BYTES[dtype] * count + SPARE_BYTES
    if memory > machine.total_memory():
        raise UsageError.of(
            "E-EXPORT-10",
            str(base),
            needed=readable_size(memory),
            there=readable_size(machine.total_memory()),
        )
    there = next(place for place in [out, *out.absolute().parents] if place.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UsageError.of(
            "E-EXPORT-04", str(out), needed=readable_size(needed), free=readable_size(free)
        )
    return needed


@dataclass
class Merge:
    """One merge from files to a proven folder. Methods stand in the order in which they happen."""

    target: opening.Target
    source: find.Source
    """The base."""
    trained: Path
    """The folder of the adapter, or of the whole model where every weight was trained."""
    out: Path
    dtype: str
    needed: int
    """Bytes that the folder will take."""
    tell: Tell

    def __post_init__(self) -> None:
        self.base, self.whole = self.source.folder, self.target.adapter is None
        self.tokenizer = load_tokenizer(self.target.tokenizer_folder)
        self.renderer = renderer_of(self.tokenizer, self.base, *self.target.stated)
        self.words = self._new_words()
        given = (self.base, self.trained, self.out, self.dtype, self.tell)
        score = stored_score(self.trained)
        self.proof: Proof = (
            WordsProof(*given, self.tokenizer, self.words)
            if score is None
            else ScoresProof(*given, score, self.target.settings.get("objective.kind"))
        )

    def _new_words(self) -> dict[str, int]:
        """Word -> id of what the run's tokenizer has and the base's has not."""
        own = self.target.tokenizer_folder
        if own == self.base or not (self.base / "tokenizer_config.json").is_file():
            return {}
        return vocabulary.added_words(self.tokenizer, load_tokenizer(self.base))

    def do(self) -> dict[str, Any]:
        """Merge, write, prove, publish."""
        started = time.perf_counter()
        size = readable_size(4 * load.parameter_count(self.base))
        self.tell.line(say("export.loading", base=self.source.spec, size=size))
        if self.target.settings.get("base.bits"):
            self.tell.line(say("export.quantised_base", bits=self.target.settings["base.bits"]))
        asked, fold = self._ask()
        try:
            with appearing(self.out, "merging") as temporary:
                self._write(fold, temporary)
                del fold  # the merged files are read into this memory
                gc.collect()
                verdict: dict[str, Any] = {
                    "verdict": "equal" if self.dtype == "float32" else "agrees",
                    "dtype": self.dtype,
                    **self.proof.prove(temporary, asked),
                    "positions": asked.prompts.positions,
                    "prompts": len(asked.prompts.ids),
                    "prompts_from": asked.prompts.kind,
                    **self._record(temporary),
                    "seconds": round(time.perf_counter() - started, 2),
                    "versions": machine.versions(),
                }
                write_json(temporary / VERDICT, verdict)
        except OSError as e:
            cause, needed = e.strerror or first_line(e), readable_size(self.needed)
            raise ExportError.of("E-EXPORT-05", str(self.out), cause=cause, needed=needed) from e
        return {"folder": str(self.out), **verdict}

    def _ask(self) -> tuple[Asked, Callable[[], Any]]:
        """What base and run say to the prompts, and what folds the training into the base. Raises
        ExportError for a run that cannot be folded or moves nothing."""
        causal: Any = load.load_model(self.base, dtype="float32")
        budget = min(4096, max(64, LOGIT_BYTES // (4 * causal.config.get_text_config().vocab_size)))
        prompts = choose_prompts(self.target, self.renderer, budget, list(self.words.values()))
        if not self.whole and (self.trained / "adapter_config.json").is_file():
            # The base is asked in the run's words, so it needs the run's rows.
            vocabulary.fit_rows(causal, self.trained)
        untouched = self.proof.ask(causal, causal, prompts)
        model: Any
        fold: Callable[[], Any]
        if self.whole:
            del causal
            gc.collect()
            model = causal = load.load_model(self.trained, dtype="float32")
            fold = partial(_itself, model)
        else:
            attached = opening.put_saved(causal, self.trained)
            if attached.merge is None:
                raise ExportError.of("E-METHOD-10", str(self.trained), reason=attached.merge_reason)
            _require_mergeable(causal, self.trained)
            model, fold = attached.model, attached.merge
        run = self.proof.ask(model, causal, prompts)
        if not run.is_finite:
            share = say("export.not_finite")
            raise ExportError.of("E-EXPORT-08", str(self.trained), dtype="float32", share=share)
        effect = gap_of(run, untouched)
        if self.proof.needs_effect and not effect > NO_EFFECT:
            raise ExportError.of("E-EXPORT-06", str(self.trained), dtype="float32")
        return Asked(prompts, run, effect, 1 - agreement(run, untouched)), fold

    def _write(self, fold: Callable[[], Any], folder: Path) -> None:
        """Fold the training in and write weights, configuration, generation settings, tokenizer and
        template."""
        import torch
        from safetensors import SafetensorError

        size = readable_size(self.needed - SPARE_BYTES)
        self.tell.line(say("export.writing", dtype=self.dtype, size=size))
        merged = fold()
        merged.to(getattr(torch, self.dtype))
        config = _stated_config(self.base, self.dtype, merged)
        with silent():
            try:
                merged.generation_config = _plain_generation_config(self.renderer)
                merged.save_pretrained(str(folder))
            except SafetensorError as e:  # it words what the system said, a full disk for instance
                raise OSError(first_line(e)) from e
            config.save_pretrained(str(folder))
            self.tokenizer.save_pretrained(str(folder))
        write_json(folder / "generation_config.json", generation_settings(self.base, self.renderer))
        self.proof.finish(folder)

    def _record(self, folder: Path) -> dict[str, Any]:
        """Where the folder came from."""
        return {
            "base": self.source.spec,
            "base_folder": str(self.base),
            "base_identity": self.source.identity,
            "run": str(self.target.run or ""),
            "adapter": str(self.trained),
            "adapter_sha256": _sha256_of_weights(self.trained),
            "weight_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        }


def _itself(model: Any) -> Any:
    """A run that trained every weight has nothing to fold."""
    return model


@dataclass
class WordsProof(Proof):
    """A merged model that answers in words is compared with the run by its logits, and by what its
    tokenizer makes of new words."""

    tokenizer: Any
    """The run's."""
    words: dict[str, int]
    """Word -> id of what the run's tokenizer has and the base's has not."""
    needs_effect = True

    def ask(self, model: Any, causal: Any, prompts: Prompts) -> Logits:
        """Its logits."""
        return logits_of(model, prompts)

    def prove(self, folder: Path, asked: Asked) -> dict[str, Any]:
        """Read the files back as anybody would, and compare. Raises ExportError where the folder is
        not the run."""
        prompts, run = asked.prompts, asked.run
        source = say(f"export.from.{prompts.kind}")
        self.tell.line(
            say(
                "export.proving", positions=prompts.positions, prompts=len(prompts.ids), kind=source
            )
        )
        changed = self.changed(folder)
        words = self._prove_words(folder)
        merged = logits_of(load_plain(folder, self.dtype), prompts)
        self.require_finite(merged)
        gap, share = gap_of(run, merged), agreement(run, merged)
        if self.dtype == "float32" and not gap <= LARGEST_GAP:
            raise ExportError.of(
                "E-EXPORT-07", str(self.out), gap=f"{gap:.1e}", limit=f"{LARGEST_GAP:.0e}"
            )
        percent = f"{100 * share:.1f}"
        if share < LEAST_AGREEMENT:
            raise ExportError.of(
                "E-EXPORT-08", str(self.out), dtype=self.dtype, share=f"{percent} %"
            )
        warnings = []
        if share < EXPECTED_AGREEMENT:
            warnings.append(say("export.warning.agreement", share=percent, dtype=self.dtype))
        if gap >= asked.effect:
            figures = {"gap": f"{gap:.1e}", "effect": f"{asked.effect:.1e}"}
            warnings.append(say("export.warning.swallowed", dtype=self.dtype, **figures))
        return {
            "largest_logit_difference": gap,
            "top1_agreement": share,
            **changed,
            **words,
            "warnings": warnings,
            "adapter_moves_logits": asked.effect,
            "adapter_changes_top1": asked.changed,
        }

    def _prove_words(self, folder: Path) -> dict[str, Any]:
        """What became of the vocabulary. Raises ExportError unless the folder's own tokenizer makes
        of each new word what the run's does: one token."""
        if not self.words:
            return {}
        tokenizer = load_tokenizer(folder)
        for word, token in self.words.items():
            found, meant = (
                t(word, add_special_tokens=False)["input_ids"] for t in (tokenizer, self.tokenizer)
            )
            if token not in found or found != meant:
                raise ExportError.of(
                    "E-EXPORT-15", str(self.out), word=word, token=token, found=found
                )
        rows = [
            int(load.load_config(place).get_text_config().vocab_size)
            for place in (self.base, folder)
        ]
        return {
            "new_words": self.words,
            "vocabulary_rows_of_base": rows[0],
            "vocabulary_rows": rows[1],
        }


def _sha256_of_weights(folder: Path) -> str:
    """The sum of the weights file; of a model in several files, the sum of their sums in order."""
    sums = [sha256_of(path) for path in sorted(folder.glob("*.safetensors"))]
    return sums[0] if len(sums) == 1 else hashlib.sha256("".join(sums).encode()).hexdigest()


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


def _stated_config(base: Path, dtype: str, merged: Any) -> Any:
    """The base's own configuration with the new dtype: what was changed for training
    (dropouts at 0) is not passed on."""
    config = load.load_config(base)
    config.dtype = dtype
    config.architectures = [type(merged).__name__]
    stated, found = config.get_text_config(), merged.config.get_text_config()
    stated.vocab_size = found.vocab_size  # tokens may have been added
    head, table = merged.get_output_embeddings(), merged.get_input_embeddings()
    if (
        head is not None and head.weight is not table.weight
    ):  # also where a run trained a copy of one of them
        config.tie_word_embeddings = stated.tie_word_embeddings = False
    layers = stated.num_hidden_layers
    if (
        found.num_hidden_layers != layers
    ):  # and blocks; what has an entry for each block goes with them
        for key, value in list(vars(stated).items()):
            if isinstance(value, list) and len(value) == layers:
                setattr(stated, key, getattr(found, key))
        stated.num_hidden_layers = found.num_hidden_layers
    return config


def _plain_generation_config(renderer: Any) -> Any:
    from transformers import GenerationConfig

    return GenerationConfig(eos_token_id=list(renderer.stop_ids))


def generation_settings(base: Path, renderer: Any) -> dict[str, Any]:
    """generation_config.json: the base's, with the stops that the run itself obeys and without
    settings that greedy decoding ignores."""
    path = base / "generation_config.json"
    stated: dict[str, Any] = headers.read_config(path)[0] if path.is_file() else {}
    if not stated.get("do_sample"):
        stated = {key: value for key, value in stated.items() if key not in SAMPLING_KEYS}
    stops = list(renderer.stop_ids)
    stated["eos_token_id"] = stops
    if stated.get("pad_token_id") is None:
        pad = renderer.tokenizer.pad_token_id
        stated["pad_token_id"] = stops[0] if pad is None else pad
    return stated


def lines(verdict: dict[str, Any]) -> list[str]:
    """The verdict for a terminal."""
    if "largest_score_difference" in verdict:
        return lines_of_scores(verdict)
    key = "export.done_exact" if verdict["dtype"] == "float32" else "export.done_half"
    shown = {
        **verdict,
        "gap": f"{verdict['largest_logit_difference']:.1e}",
        "agreement": f"{100 * verdict['top1_agreement']:.1f}",
        "size": readable_size(verdict["weight_bytes"]),
        "moved": f"{100 * verdict['adapter_changes_top1']:.1f}",
        "share": f"{100 * verdict['numbers_changed'] / max(1, verdict['numbers']):.0f}",
    }
    words = list(verdict.get("new_words") or {})
    shown |= {
        "count": len(words),
        "words": ", ".join(words[:SHOWN_WORDS]) + (" ..." if len(words) > SHOWN_WORDS else ""),
    }
    added = [say("export.words", **shown)] if words else []
    return [
        say(key, **shown),
        say("export.changed", **shown),
        *added,
        *verdict["warnings"],
        say("export.next", **shown),
    ]


__all__ = ["ExportError", "lines", "merge_run"]
