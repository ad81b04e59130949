"""Fold what a run trained into its base: one plain model folder that every program can load, proven
against the run before it appears.

The base is read in float32, whatever the run computed in, because an update that is added to
bfloat16 numbers is rounded twice. Base and run are asked first, then folded by the method itself,
written in the wanted number type into a hidden sibling of OUT, read back with plain Transformers
and asked the same. A run that trained every weight has nothing to fold: its model is written and
proven in the same way. Only a folder that passed gets its name, by one rename; after any failure
nothing is left. The verdict lies inside as `merge.json`.

A run that gives numbers becomes a classifier with one label and is asked for its numbers
(`judges.py`).
"""

from __future__ import annotations

import contextlib
import gc
import hashlib
import os
import secrets
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tunewright.core import signals
from tunewright.core.errors import ModelError, UsageError, first_line, problem, raise_all
from tunewright.core.files import fsync_directory, readable_size, with_retry, write_json
from tunewright.core.machine import versions
from tunewright.core.publish import sha256_of
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine import opening, placement
from tunewright.export.proof import (
    ExportError,
    Logits,
    Prompts,
    agreement,
    changed_tensors,
    choose_prompts,
    gap_of,
    load_plain,
    logits_of,
    quiet,
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
STALE_SECONDS = 2 * 24 * 3600
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
    started = time.perf_counter()
    require_free(out)
    if dtype is not None and dtype not in ITEM_BYTES:
        raise UsageError(
            problem("E-EXPORT-03", "--dtype", dtype=dtype, known=", ".join(ITEM_BYTES))
        )
    folder = Path(run)
    if not (folder / "run.yaml").is_file() and not is_saved(folder):
        raise UsageError(problem("E-EXPORT-02", str(run)))
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
        score = stored_score(trained)
        if score is None:
            return Merge(
                target, base.source, trained, Path(out), number_type, needed, tell, started
            ).do()
        from tunewright.export.judges import MergeJudge

        return MergeJudge(
            target, base.source, trained, Path(out), number_type, needed, tell, started, score
        ).do()


def require_free(out: Path) -> None:
    """Raise UsageError unless `out` is free: nothing there, or an empty folder."""
    out = Path(out)
    if out.is_symlink() or (out.exists() and (not out.is_dir() or any(out.iterdir()))):
        raise UsageError(problem("E-EXPORT-01", str(out)))


def stored_dtype(folder: Path) -> str:
    """The number type that most bytes of a model's weights have; float32 where that is none of
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
    if memory > placement.total_memory():
        raise UsageError(
            problem(
                "E-EXPORT-10",
                str(base),
                needed=readable_size(memory),
                there=readable_size(placement.total_memory()),
            )
        )
    there = next(place for place in [out, *out.absolute().parents] if place.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UsageError(
            problem("E-EXPORT-04", str(out), needed=readable_size(needed), free=readable_size(free))
        )
    return needed


class Merge:
    """One merge from files to a proven folder. Methods stand in the order in which they happen."""

    needs_effect = True
    """A run that moves no answer of its base is no result."""

    def __init__(
        self,
        target: opening.Target,
        base: find.Source,
        trained: Path,
        out: Path,
        dtype: str,
        needed: int,
        tell: Tell,
        started: float,
    ):
        """`trained` is the folder of the adapter, or of the whole model where every weight was
        trained."""
        self.target, self.source, self.trained, self.out, self.dtype = (
            target,
            base,
            trained,
            out,
            dtype,
        )
        self.needed, self.tell, self.started = needed, tell, started
        self.base, self.whole = base.folder, target.adapter is None
        self.tokenizer = load_tokenizer(target.tokenizer_folder)

    def do(self) -> dict[str, Any]:
        """Merge, write, prove, publish."""
        self.tell.line(
            say(
                "export.loading",
                base=self.source.spec,
                size=readable_size(4 * load.parameter_count(self.base)),
            )
        )
        if self.target.settings.get("base.bits"):
            self.tell.line(say("export.quantised_base", bits=self.target.settings["base.bits"]))
        causal = load.load_model(self.base, dtype="float32")
        self.renderer = opening.renderer_of(self.tokenizer, self.base, *self.target.stated)
        budget = min(4096, max(64, LOGIT_BYTES // (4 * causal.config.get_text_config().vocab_size)))
        self.words = self._new_words()
        prompts = choose_prompts(self.target, self.renderer, budget, list(self.words.values()))
        if not self.whole and (self.trained / "adapter_config.json").is_file():
            vocabulary.fit_rows(
                causal, self.trained
            )  # the base is asked in the run's words, so it needs the run's rows
        untouched = self._ask(causal, causal, prompts)
        if self.whole:
            del causal
            gc.collect()
            causal = load.load_model(self.trained, dtype="float32")
            model, merge = causal, lambda: causal
        else:
            attached = opening.put_saved(causal, self.trained)
            if attached.merge is None:
                raise ExportError(
                    problem("E-METHOD-10", str(self.trained), reason=attached.merge_reason)
                )
            _require_mergeable(causal, self.trained)
            model, merge = attached.model, attached.merge
        run = self._ask(model, causal, prompts)
        if not run.is_finite:
            raise ExportError(
                problem(
                    "E-EXPORT-08",
                    str(self.trained),
                    dtype="float32",
                    share=say("export.not_finite"),
                )
            )
        effect = gap_of(run, untouched)
        if self.needs_effect and not effect > NO_EFFECT:
            raise ExportError(problem("E-EXPORT-06", str(self.trained), dtype="float32"))
        changed_answers = 1 - agreement(run, untouched)
        del untouched
        with self._temporary() as temporary:
            self._write(merge, temporary)
            attached = causal = model = merge = None  # type: ignore[assignment]  # the merged files are read into this memory
            gc.collect()
            verdict: dict[str, Any] = {
                "verdict": "equal" if self.dtype == "float32" else "agrees",
                "dtype": self.dtype,
            }
            verdict |= self._prove(temporary, prompts, run) | self._effect(effect, changed_answers)
            gap = verdict.get(
                "largest_logit_difference", verdict.get("largest_score_difference", 0.0)
            )
            if self.needs_effect and gap >= effect:
                verdict["warnings"].append(
                    say(
                        "export.warning.swallowed",
                        dtype=self.dtype,
                        gap=f"{gap:.1e}",
                        effect=f"{effect:.1e}",
                    )
                )
            verdict |= {
                "positions": prompts.positions,
                "prompts": len(prompts.ids),
                "prompts_from": prompts.kind,
            } | self._record(temporary)
            write_json(temporary / VERDICT, verdict)
            self._publish(temporary)
        return {"folder": str(self.out), **verdict}

    def _ask(self, model: Any, causal: Any, prompts: Prompts) -> Logits:
        """What `model` (the causal model `causal`, or a method on it) says to the prompts."""
        return logits_of(model, prompts)

    def _effect(self, effect: float, changed: float) -> dict[str, Any]:
        """What the verdict says of how far the run is from its base."""
        return {"adapter_moves_logits": effect, "adapter_changes_top1": changed}

    def _new_words(self) -> dict[str, int]:
        """Word -> id of what the run's tokenizer has and the base's has not."""
        own = self.target.tokenizer_folder
        there = own != self.base and (self.base / "tokenizer_config.json").is_file()
        return vocabulary.added_words(self.tokenizer, load_tokenizer(self.base)) if there else {}

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        """A hidden sibling of OUT, removed whatever happens; a rename takes it away first when all
        went well."""
        temporary = self.out.with_name(
            f".{self.out.name}.merging-{os.getpid()}-{secrets.token_hex(4)}"
        )
        made = [place for place in self.out.absolute().parents if not place.exists()]
        done = False
        try:
            self.out.parent.mkdir(parents=True, exist_ok=True)
            _sweep(self.out)
            temporary.mkdir()
            yield temporary
            done = True
        except OSError as e:
            raise ExportError(
                problem(
                    "E-EXPORT-05",
                    str(self.out),
                    cause=e.strerror or first_line(e),
                    needed=readable_size(self.needed),
                )
            ) from e
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            for place in made if not done else []:
                with contextlib.suppress(OSError):
                    place.rmdir()

    def _write(self, merge: Callable[[], Any], folder: Path) -> None:
        """Fold the training in and write weights, configuration, generation settings, tokenizer and
        template."""
        import torch
        from safetensors import SafetensorError

        self.tell.line(
            say("export.writing", dtype=self.dtype, size=readable_size(self.needed - SPARE_BYTES))
        )
        merged = merge()
        merged.to(getattr(torch, self.dtype))
        config = _stated_config(self.base, self.dtype, merged)
        with quiet():
            try:
                merged.generation_config = _plain_generation_config(self.renderer)
                merged.save_pretrained(str(folder))
            except SafetensorError as e:  # it words what the system said, a full disk for instance
                raise OSError(first_line(e)) from e
            config.save_pretrained(str(folder))
            self.tokenizer.save_pretrained(str(folder))
        write_json(folder / "generation_config.json", generation_settings(self.base, self.renderer))

    def _prove(self, folder: Path, prompts: Prompts, run: Logits) -> dict[str, Any]:
        """Read the files back as anybody would, and compare. Raises ExportError where the folder is
        not the run."""
        self.tell.line(
            say(
                "export.proving",
                positions=prompts.positions,
                prompts=len(prompts.ids),
                kind=say(f"export.from.{prompts.kind}"),
            )
        )
        changed = changed_tensors(self.base, folder, self.dtype)
        if changed["tensors_changed"] == 0:
            raise ExportError(problem("E-EXPORT-06", str(self.trained), dtype=self.dtype))
        words = self._prove_words(folder)
        merged = logits_of(load_plain(folder, self.dtype), prompts)
        if not merged.is_finite:
            raise ExportError(
                problem(
                    "E-EXPORT-08", str(self.out), dtype=self.dtype, share=say("export.not_finite")
                )
            )
        gap, share = gap_of(run, merged), agreement(run, merged)
        figures: dict[str, Any] = {
            "largest_logit_difference": gap,
            "top1_agreement": share,
            **changed,
            **words,
            "warnings": [],
        }
        if self.dtype == "float32" and not gap <= LARGEST_GAP:
            raise ExportError(
                problem("E-EXPORT-07", str(self.out), gap=f"{gap:.1e}", limit=f"{LARGEST_GAP:.0e}")
            )
        if share < LEAST_AGREEMENT:
            raise ExportError(
                problem(
                    "E-EXPORT-08", str(self.out), dtype=self.dtype, share=f"{100 * share:.1f} %"
                )
            )
        if share < EXPECTED_AGREEMENT:
            figures["warnings"].append(
                say("export.warning.agreement", share=f"{100 * share:.1f}", dtype=self.dtype)
            )
        return figures

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
                raise ExportError(
                    problem("E-EXPORT-15", str(self.out), word=word, token=token, found=found)
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

    def _record(self, folder: Path) -> dict[str, Any]:
        """Where the folder came from."""
        size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        return {
            "base": self.source.spec,
            "base_folder": str(self.base),
            "base_identity": self.source.identity,
            "run": str(self.target.run or ""),
            "adapter": str(self.trained),
            "adapter_sha256": _sha256_of_weights(self.trained),
            "weight_bytes": size,
            "seconds": round(time.perf_counter() - self.started, 2),
            "versions": versions(),
        }

    def _publish(self, temporary: Path) -> None:
        mode = (temporary / VERDICT).stat().st_mode
        for path in temporary.rglob("*"):
            if path.is_file():
                path.chmod(
                    mode
                )  # safetensors writes weights for the owner alone; a server runs as somebody else
                with open(path, "rb+") as handle:
                    os.fsync(handle.fileno())
        fsync_directory(temporary)
        require_free(self.out)
        if self.out.is_dir():
            self.out.rmdir()  # empty, as `require_free` has just seen
        with_retry(lambda: os.rename(temporary, self.out))
        fsync_directory(self.out.parent)


def _sweep(out: Path) -> None:
    """Remove what merges that were killed more than two days ago left beside OUT."""
    for left in out.parent.glob(f".{out.name}.merging-*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > STALE_SECONDS:
                shutil.rmtree(left, ignore_errors=True)


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
        raise ExportError(problem("E-EXPORT-09", str(adapter)))


def _stated_config(base: Path, dtype: str, merged: Any) -> Any:
    """The base's own configuration with the new number type: what was changed for training
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
        from tunewright.export.judges import lines_of

        return lines_of(verdict)
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
