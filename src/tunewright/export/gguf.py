"""A run as a GGUF file for llama.cpp and the programs built on it, proven before it appears.

The run is asked on its base, its training is folded in, and each weight is laid out as llama.cpp
wants it, rounded and written. The file is then read back and run afresh (`gguf_proof.py`). It lies
in a hidden folder until it is proven; the record lies beside it. Anything that is a model can be
written, too: a merged folder, or the base for an adapter.
"""

from __future__ import annotations

import gc
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core import compat, machine, signals
from tunewright.core.errors import UsageError
from tunewright.core.files import readable_size, sha256_of, write_json, write_text
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.export import card, gguf_about, gguf_file, gguf_proof, gguf_words
from tunewright.export.folder import (
    ExportError,
    appearing_file,
    card_of,
    record_of,
    require_free_file,
)
from tunewright.export.gguf_families import Family, family_of
from tunewright.export.gguf_types import Type, type_of
from tunewright.export.proof import Logits, logits_of, require_folded, scratch
from tunewright.export.tuned import LOGIT_BYTES, Tuned, words_said
from tunewright.models import load

SPARE_BYTES = 64 << 20


def export_gguf(
    run: Path | str,
    out: Path,
    *,
    type: str = "q8_0",
    name: str | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Write what `run` names (a run, an adapter's folder, a model) to the file `out` and return the
    record that lies beside it.

    Raises UsageError before anything is written, ExportError for a file that cannot be written or
    is not the run, Interrupted when stopped; `out` exists afterwards only if this returns.
    """
    tell, out = tell or Tell(), Path(out)
    require_free_file(out, ".gguf")
    kind = type_of(type)
    with signals.watching():
        writing = Writing.prepare(run, out, kind, name, tell)
        return published(out, writing.tuned, writing.do)


def published(
    out: Path, tuned: Tuned, do: Callable[[Path, Path], dict[str, Any]]
) -> dict[str, Any]:
    """Let `do(the file, a hidden folder)` write and prove the file, and give it, its proof and its
    model card their names. Returns the record. Raises ExportError for a disk that is full."""
    try:
        with appearing_file(out, "exporting") as temporary:
            path = temporary / out.name
            record = do(path, temporary)
            record["sha256"] = sha256_of(path)
            told = temporary / card_of(out).name
            write_text(told, card.text(tuned, record, out.name))
            record["card_sha256"] = sha256_of(told)
            write_json(temporary / record_of(out).name, record)
    except OSError as e:
        raise ExportError.of("E-EXPORT-27", str(out), cause=e) from e
    names = {"file": out, "proof": record_of(out), "card": card_of(out)}
    return {**{key: str(path) for key, path in names.items()}, **record}


@dataclass
class Writing:
    """One export from files to a proven file. Methods stand in the order in which they happen."""

    tuned: Tuned
    out: Path
    kind: Type
    family: Family
    words: gguf_words.Words
    about: gguf_about.About
    runner: str
    context: int
    """Tokens of the model's context."""
    tell: Tell

    @classmethod
    def prepare(
        cls, run: Path | str, out: Path, kind: Type, name: str | None, tell: Tell
    ) -> Writing:
        """Everything that can be wrong without weights."""
        tuned = find_words(run, tell)
        config = load.load_config(
            tuned.trained if tuned.whole else tuned.base, tuned.held
        ).get_text_config()
        family = family_of(config, str(run))
        runner = gguf_proof.runner_of(family, out)
        rows = max(int(config.vocab_size), gguf_about.rows_of(tuned))
        words = gguf_words.words_of(tuned.tokenizer, tuned.renderer, rows, str(run))
        about = gguf_about.about(tuned, config, words, name)
        _require_room(tuned, out, kind)
        context = int(config.max_position_embeddings)
        return cls(tuned, out, kind, family, words, about, runner, context, tell)

    def do(self, path: Path, temporary: Path) -> dict[str, Any]:
        """Ask the run, write the file, prove it."""
        started = time.perf_counter()
        tuned = self.tuned
        size = readable_size(4 * load.parameter_count(tuned.base))
        self.tell.line(say("gguf.loading", base=tuned.source.spec, size=size))
        with scratch(temporary) as kept:
            asked, fold = tuned.ask(words_said, kept, needs_effect=True, answers=True)
            model = fold()
            if not tuned.whole:
                require_folded(self.out, asked, model, kept)
            plan = gguf_file.plan(model, self.family, self.kind, str(self.out))
            self.words = gguf_words.words_of(
                tuned.tokenizer, tuned.renderer, _rows(model), str(self.out)
            )
            size = readable_size(plan.num_bytes)
            self.tell.line(say("gguf.writing", type=self.kind.name, size=size))
            gguf_file.write(path, plan, model, self.words, self.about.general)
            gguf_file.require_held(path, plan, model, self.out)
            rounded: Logits = asked.run
            if self.kind.name != "f32":
                rounded = logits_of(model, asked.prompts, kept / "rounded")
            del model, fold  # the file is read into this memory
            gc.collect()
            machine.return_freed_memory()
            runner = gguf_proof.runner_name(self.runner)
            self.tell.line(say("gguf.proving", runner=runner))
            subject = gguf_proof.Subject(path, self.out, self.family, tuned.renderer, asked, kept)
            proof = gguf_proof.prove(subject, self.kind, rounded, self.runner)
        lost = self.words.lost_stops
        notes = [say("gguf.stops_left", tokens=", ".join(lost))] if lost else []
        return {
            "exported": "gguf",
            "verdict": "agrees",
            "type": self.kind.name,
            "family": self.family.arch,
            **proof,
            "notes": plan.notes + notes,
            "stops_without_place": lost,
            "file_bytes": path.stat().st_size,
            **came_from(tuned),
            "seconds": round(time.perf_counter() - started, 2),
            "versions": versions(),
        }


def find_words(run: Path | str, tell: Tell) -> Tuned:
    """What is exported, if it writes words. Raises UsageError."""
    tuned = Tuned.find(run, tell, models=True)
    objective = tuned.target.settings.get("objective.kind")
    if tuned.score is not None or load.is_scorer(tuned.base) or compat.judges(objective):
        raise UsageError.of("E-EXPORT-43", str(run), kind=objective or "score")
    return tuned


def came_from(tuned: Tuned) -> dict[str, Any]:
    """Where an exported file came from, without the paths of this machine: it may be published."""
    return {
        "base": gguf_about.published(tuned) or "",
        "base_identity": tuned.source.identity,
        "run": tuned.target.run.name if tuned.target.run is not None else "",
    }


def _rows(model: Any) -> int:
    return int(model.get_input_embeddings().weight.shape[0])


def versions() -> dict[str, str]:
    """Versions of the libraries that decide what is in a file."""
    from importlib.metadata import version

    return {**machine.versions(), "gguf": version("gguf")}


def _require_room(tuned: Tuned, out: Path, kind: Type) -> None:
    """Raise UsageError where memory or disk is too small."""
    count = load.parameter_count(tuned.base)
    if 4 * count > machine.total_memory():
        sizes = {"needed": 4 * count, "there": machine.total_memory()}
        shown = {key: readable_size(value) for key, value in sizes.items()}
        raise UsageError.of("E-EXPORT-10", str(tuned.base), **shown)
    bits = {"f32": 32, "f16": 16, "bf16": 16}.get(kind.name, 9)
    # Logits of base, run, rounded weights and file lie beside it while they are compared.
    needed = count * bits // 8 + 4 * LOGIT_BYTES + SPARE_BYTES
    there = next(place for place in out.absolute().parents if place.is_dir())
    free = shutil.disk_usage(there).free
    if free < needed:
        raise UsageError.of(
            "E-EXPORT-26", str(out), needed=readable_size(needed), free=readable_size(free)
        )


def lines(record: dict[str, Any]) -> list[str]:
    """The record for a terminal."""
    size = readable_size(record["file_bytes"])
    return [
        say("gguf.done", out=record["file"], type=record["type"], size=size),
        *lines_of_proof(record),
        say("gguf.next", out=record["file"], proof=record["proof"], card=record["card"]),
    ]


def lines_of_proof(record: dict[str, Any]) -> list[str]:
    """What was proven, for a terminal."""
    which = "llamacpp" if record["run_by"]["name"] == "llama.cpp" else "transformers"
    shown = {
        "runner": gguf_proof.runner_name(which),
        "agreement": f"{100 * record['top1_agreement']:.1f}",
        "rounded": f"{100 * record['rounding_alone']['top1_agreement']:.1f}",
        "nats": f"{record['divergence_nats']:.2g}",
        "positions": record["positions"],
        "type": record["type"],
    }
    loss = record["loss"]
    said = [say("gguf.proven", **shown)]
    if loss is not None:
        said.append(say("gguf.loss", run=f"{loss['run']:.4f}", exported=f"{loss['exported']:.4f}"))
    said.append(say("gguf.answers", **record["answers"]))
    return [*said, *record["notes"], *record["warnings"]]
