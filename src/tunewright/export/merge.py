"""Fold what a run trained into its base: one plain model folder that every program can load, proven
against the run before it appears.

The base is read in float32, whatever the run computed in, because an update that is added to
bfloat16 numbers is rounded twice. Base and run are asked first, then folded by the method itself,
written in the wanted dtype into a hidden sibling of OUT, read back with plain Transformers
and asked the same. A run that trained every weight has nothing to fold: its model is written and
proven in the same way. Only a folder that passed gets its name, by one rename; after any failure
nothing is left. The verdict lies inside as `merge.json`, and as `proof.json` in the form of every
exporter.

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
from pathlib import Path
from typing import Any

from tunewright.core import machine, signals
from tunewright.core.errors import UsageError, first_line
from tunewright.core.files import readable_size, sha256_of, write_json
from tunewright.core.telling import Tell, silent
from tunewright.core.words import say
from tunewright.export import card
from tunewright.export.folder import ExportError, appearing, require_free
from tunewright.export.judges import ScoresProof, lines_of_scores
from tunewright.export.prompts import Prompts
from tunewright.export.proof import (
    RECORD,
    Asked,
    Logits,
    Proof,
    differences,
    load_plain,
    logits_of,
    losses,
    require_same_asking,
    scratch,
)
from tunewright.export.tuned import Tuned
from tunewright.models import load, rotary
from tunewright.sources import few_bits, headers
from tunewright.text.tokenizer import load_tokenizer

VERDICT = "merge.json"
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STORED_AS = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
LARGEST_GAP = 1e-4
"""float32: largest difference of a logit from the run's, as a share of the largest logit. Rounding
alone makes about 1e-6."""
EXPECTED_AGREEMENT, LEAST_AGREEMENT = 0.99, 0.90
"""Half precision: share of positions at which the most likely token is the run's. Below the first:
a warning; below the second: refused."""
SPARE_BYTES = 64 << 20
SHARD = "4GB"
"""Weights larger than this lie in several files."""
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
    with signals.watching():
        tuned = Tuned.find(run, tell)
        number_type = dtype or stored_dtype(tuned.base)
        needed = _require_room(tuned.base, out, number_type)
        return Merge(tuned, Path(out), number_type, needed).do()


def stored_dtype(folder: Path) -> str:
    """The dtype that most bytes of a model's weights have; float32 where that is none of
    ours. Of weights in few bits, what they stand for: the dtype that the configuration names."""
    if few_bits.find(folder) is not None:
        named = str(headers.config_of(folder, "config.json").get("dtype") or "bfloat16")
        return named if named in ITEM_BYTES else "bfloat16"
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

    tuned: Tuned
    out: Path
    dtype: str
    needed: int
    """Bytes that the folder will take."""

    def __post_init__(self) -> None:
        tuned = self.tuned
        self.base, self.trained, self.tell = tuned.base, tuned.trained, tuned.tell
        given = (self.base, self.trained, self.out, self.dtype, self.tell)
        self.proof: Proof = (
            WordsProof(*given, tuned.tokenizer, tuned.words, tuned.renderer)
            if tuned.score is None
            else ScoresProof(*given, tuned.score, tuned.target.settings.get("objective.kind"))
        )

    def do(self) -> dict[str, Any]:
        """Merge, write, prove, publish."""
        started = time.perf_counter()
        size = readable_size(4 * load.parameter_count(self.base))
        self.tell.line(say("export.loading", base=self.tuned.source.spec, size=size))
        bits = self.tuned.target.settings.get("base.bits")
        if bits:
            self.tell.line(say("export.quantised_base", bits=bits))
        few = few_bits.find(self.base)
        if few is not None:
            self.tell.line(say("export.stored_base", kind=few.kinds, dtype=self.dtype))
        try:
            with appearing(self.out, "merging") as temporary, scratch(temporary) as kept:
                asked, fold = self.tuned.ask(
                    self.proof.ask, kept, needs_effect=self.proof.needs_effect
                )
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
                run_by = {"name": "transformers", "version": verdict["versions"]["transformers"]}
                record = {"exported": "merge", "run_by": run_by, **verdict}
                write_json(temporary / RECORD, record)
                if self.tuned.score is None:
                    card.write(temporary, self.tuned, record)
        except OSError as e:
            needed = readable_size(self.needed)
            raise ExportError.of("E-EXPORT-05", str(self.out), cause=e, needed=needed) from e
        return {"folder": str(self.out), **verdict}

    def _write(self, fold: Callable[[], Any], folder: Path) -> None:
        """Fold the training in and write weights, configuration, generation settings, tokenizer and
        template."""
        import torch

        size = readable_size(self.needed - SPARE_BYTES)
        self.tell.line(say("export.writing", dtype=self.dtype, size=size))
        merged = fold()
        merged.to(getattr(torch, self.dtype))
        write_folder(self.tuned, merged, folder, self.dtype)
        self.proof.finish(folder)

    def _record(self, folder: Path) -> dict[str, Any]:
        """Where the folder came from."""
        return {
            "base": self.tuned.source.spec,
            "base_folder": str(self.base),
            "base_identity": self.tuned.source.identity,
            "run": str(self.tuned.target.run or ""),
            "adapter": str(self.trained),
            "adapter_sha256": _sha256_of_weights(self.trained),
            "weight_bytes": sum(path.stat().st_size for path in folder.glob("*.safetensors")),
        }


def write_folder(tuned: Tuned, model: Any, folder: Path, dtype: str) -> None:
    """Write a model made of `tuned` with its base's configuration, the stops that it obeys, and the
    tokenizer and template that it was taught with. Raises OSError for a full disk."""
    from safetensors import SafetensorError

    config = _stated_config(tuned.base, dtype, model)
    with silent():
        try:
            model.generation_config = _plain_generation_config(tuned.renderer)
            model.save_pretrained(str(folder), max_shard_size=SHARD)
        except SafetensorError as e:  # it words what the system said, a full disk for instance
            raise OSError(first_line(e)) from e
        config.save_pretrained(str(folder))
        tuned.save_words(folder)
    write_json(folder / "generation_config.json", generation_settings(tuned.base, tuned.renderer))


@dataclass
class WordsProof(Proof):
    """A merged model that answers in words is compared with the run by its logits, and by what its
    tokenizer makes of new words."""

    tokenizer: Any
    """The run's."""
    words: dict[str, int]
    """Word -> id of what the run's tokenizer has and the base's has not."""
    renderer: Any
    """How the run is asked."""
    needs_effect = True

    def ask(self, model: Any, causal: Any, prompts: Prompts, keep: Path | None) -> Logits:
        """Its logits."""
        return logits_of(model, prompts, keep)

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
        warnings = require_same_asking(self.out, folder, self.renderer, asked.questions)
        # In float32 whatever the weights are stored in: the file is proven, not the rounding of
        # the program that computes with it.
        merged = logits_of(load_plain(folder, self.dtype).float(), prompts, folder / ".asked/out")
        self.require_finite(merged)
        found = differences(run, merged)
        gap, share = found["largest_logit_difference"], found["top1_agreement"]
        if self.dtype == "float32" and not gap <= LARGEST_GAP:
            raise ExportError.of(
                "E-EXPORT-07", str(self.out), gap=f"{gap:.1e}", limit=f"{LARGEST_GAP:.0e}"
            )
        percent = f"{100 * share:.1f}"
        if share < LEAST_AGREEMENT:
            raise ExportError.of(
                "E-EXPORT-08", str(self.out), dtype=self.dtype, share=f"{percent} %"
            )
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
            "computed_in": "float32",
            "loss": losses(asked, merged),
            **{k: found[k] for k in ("mean_logit_difference", "divergence_nats")},
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


def _stated_config(base: Path, dtype: str, merged: Any) -> Any:
    """The base's own configuration with the new dtype: what was changed for training
    (dropouts at 0) is not passed on."""
    config = load.load_config(base)
    rotary.carry(config, merged)
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
