"""A LoRA adapter as a GGUF file for its base as GGUF.

llama.cpp scales each pair by alpha / rank, one alpha for the whole file, so ranks and alphas of
their own and rank-stabilised scaling are lost when they are written as they are. Here alpha is 1
and every B matrix carries its true scale, which no program can misread. What a pair of matrices
cannot say is refused. The file is proven on the base as GGUF, which is written for that and then
removed.
Source: llama.cpp's llama-adapter.cpp, convert_lora_to_gguf.py.
"""

from __future__ import annotations

import gc
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core import machine, signals
from tunewright.core.errors import UsageError
from tunewright.core.files import readable_size
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine.loaded import put_saved
from tunewright.export import composition, gguf_file, gguf_proof, gguf_types
from tunewright.export.folder import ExportError, require_free_file
from tunewright.export.gguf import Writing, came_from, lines_of_proof, published, versions
from tunewright.export.gguf_types import TYPES, Type
from tunewright.export.proof import Asked, Logits, logits_of, losses, replies_of, score_of, scratch
from tunewright.export.tuned import Tuned, words_said
from tunewright.models import load
from tunewright.sources import headers

KINDS = ("f32", "f16")
ALPHA = 1.0
Pair = tuple[str, Any, Any]
"""(name of the weight in the file, A (rank, in), B (out, rank) with its scale)."""


def export_adapter(
    run: Path | str,
    out: Path,
    *,
    type: str = "f32",
    name: str | None = None,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Write the LoRA adapter of `run` to the file `out` and return the record that lies beside it.
    Raises as `gguf.export_gguf`, and UsageError (E-EXPORT-40) for what is more than LoRA."""
    tell, out = tell or Tell(), Path(out)
    require_free_file(out, ".gguf")
    if type.lower() not in KINDS:
        raise UsageError.of("E-EXPORT-21", "--type", type=type, known=", ".join(KINDS))
    with signals.watching():
        _require_lora(Tuned.find(run, tell, models=True), str(run))
        writing = Writing.prepare(run, out, _base_type(run, tell), name, tell)
        return published(out, writing.tuned, Adapter.of(writing, type).do)


def _base_type(run: Path | str, tell: Tell) -> Type:
    """What the base is written in for the proof: 16 bit, of the kind in which it is stored."""
    from tunewright.export.merge import stored_dtype

    stored = stored_dtype(Tuned.find(run, tell, models=True).base)
    return TYPES["bf16" if stored == "bfloat16" else "f16"]


def _require_lora(tuned: Tuned, run: str) -> None:
    """Raise UsageError unless the adapter is pairs of LoRA matrices and nothing else."""
    adapter = tuned.target.adapter
    if adapter is None:
        raise UsageError.of("E-EXPORT-40", run, run=run, reason=say("gguf.reason.whole"))
    for one in composition.obstacles({"adapter": adapter}):
        kind = str(one.fields.get("type", "?"))
        config = headers.config_of(adapter, "adapter_config.json")
        if config.get("peft_type") == "LORA":
            reason = say("gguf.reason.extra", what=kind)
        else:
            kind = str(tuned.target.settings.get("method.kind") or kind)
            reason = say("gguf.reason.method", method=kind)
        raise UsageError.of("E-EXPORT-40", run, run=run, reason=reason)


@dataclass
class Adapter:
    """One adapter from its folder to a proven file."""

    writing: Writing
    """The base's own file, on which the adapter is proven."""
    kind: str

    @classmethod
    def of(cls, writing: Writing, kind: str) -> Adapter:
        return cls(writing, kind.lower())

    def do(self, path: Path, temporary: Path) -> dict[str, Any]:
        """Ask the run, write the adapter and the base, prove the one on the other."""
        started = time.perf_counter()
        tuned, tell, out = self.writing.tuned, self.writing.tell, self.writing.out
        size = readable_size(4 * load.parameter_count(tuned.base))
        tell.line(say("gguf.loading", base=tuned.source.spec, size=size))
        with scratch(temporary) as kept:
            asked, fold = tuned.ask(words_said, kept, needs_effect=True, answers=True)
            del fold
            gc.collect()
            causal: Any = load.load_model(tuned.base, dtype="float32", base=tuned.held)
            plan = gguf_file.plan(causal, self.writing.family, self.writing.kind, str(out))
            pairs = list(self._pairs(plan))
            _write(path, plan, pairs, self.kind, self.writing.about.general)
            tell.line(say("gguf.writing", type=self.kind, size=readable_size(path.stat().st_size)))
            require_held(path, plan, pairs, out)
            proof = self._prove(path, plan, causal, asked, kept)
        return {
            "exported": "gguf adapter",
            "verdict": "agrees",
            "type": self.kind,
            "family": self.writing.family.arch,
            "modules": len(pairs),
            **proof,
            "notes": plan.notes,
            "file_bytes": path.stat().st_size,
            **came_from(tuned),
            "seconds": round(time.perf_counter() - started, 2),
            "versions": versions(),
        }

    def _pairs(self, plan: gguf_file.Plan) -> Iterator[Pair]:
        """The matrices of the adapter as the file holds them. Raises UsageError for a module on
        which llama.cpp takes none."""
        tuned = self.writing.tuned
        there = {own: name for name, own, _, _ in plan.tensors}
        names = gguf_file.names_of(plan.family, plan.config.num_hidden_layers)
        for module, (a, b, scale) in composition.products_in(tuned.trained).items():
            name = there.get(f"{module}.weight")
            if name is None or name in gguf_types.HEAD[:1] or names(f"{module}.weight") is None:
                reason = say("gguf.reason.place", module=module)
                run = tuned.target.name
                raise UsageError.of("E-EXPORT-40", run, run=run, reason=reason)
            rank = a.shape[0]
            scaled = b.float().numpy() * (scale * rank / ALPHA)
            laid = gguf_file.laid_out(plan, name, f"{module}.weight", scaled)
            yield name, a.float().numpy(), laid

    def _prove(
        self, path: Path, plan: gguf_file.Plan, causal: Any, asked: Asked, kept: Path
    ) -> dict[str, Any]:
        """Run the adapter on the base as GGUF; without llama.cpp, what the file says is added to
        the base in Transformers."""
        tuned, out = self.writing.tuned, self.writing.out
        tell = self.writing.tell
        runner = gguf_proof.runner_name(self.writing.runner)
        if self.writing.runner != "llamacpp":
            tell.line(say("gguf.proving_adapter", runner=runner))
            return _in_transformers(path, plan, causal, tuned, asked, kept, out)
        base = kept / "base.gguf"
        gguf_file.write(base, plan, causal, self.writing.words, self.writing.about.general)
        rounded: Logits = logits_of(
            put_saved(causal, tuned.trained).model, asked.prompts, kept / "rounded"
        )
        del causal
        gc.collect()
        machine.return_freed_memory()
        tell.line(say("gguf.proving_adapter", runner=runner))
        subject = gguf_proof.Subject(
            base, out, plan.family, tuned.renderer, asked, kept, adapter=path
        )
        found = gguf_proof.prove(subject, self.writing.kind, rounded, "llamacpp")
        return {**found, "proven_on": f"base as {self.writing.kind.name}"}


def _write(
    path: Path, plan: gguf_file.Plan, pairs: list[Pair], kind: str, general: dict[str, Any]
) -> None:
    import gguf
    import numpy as np

    logging.getLogger("gguf").setLevel(logging.ERROR)
    writer = gguf.GGUFWriter(None, plan.family.arch)
    stated = {
        "general.type": "adapter",
        **{f"general.{key}": value for key, value in general.items()},
        "adapter.type": "lora",
        "adapter.lora.alpha": ALPHA,
    }
    for key, value in stated.items():
        gguf_file.add(writer, key, value)
    numbers = np.float32 if kind == "f32" else np.float16
    for name, a, b in pairs:
        for matrix, ending in ((a, "lora_a"), (b, "lora_b")):
            stored = np.ascontiguousarray(matrix.astype(numbers))
            writer.add_tensor(f"{name}.{ending}", stored)
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


# ---- reading back


def updates_in(path: Path) -> tuple[float, dict[str, tuple[Any, Any]]]:
    """(alpha as llama.cpp uses it, name of the weight -> (A, B)) of an adapter's file; alpha 0 or
    none means that it scales by 1, which is returned as 0."""
    import gguf
    import numpy as np

    reader = gguf.GGUFReader(str(path))
    field = reader.get_field("adapter.lora.alpha")
    alpha = 0.0 if field is None else float(field.contents())
    parts: dict[str, dict[str, Any]] = {}
    for tensor in reader.tensors:
        name, _, which = tensor.name.rpartition(".")
        parts.setdefault(name, {})[which] = np.asarray(tensor.data, dtype=np.float32)
    return alpha, {n: (p.get("lora_a"), p.get("lora_b")) for n, p in parts.items()}


def require_held(path: Path, plan: gguf_file.Plan, pairs: list[Pair], out: Path) -> None:
    """Raise ExportError unless the file holds these pairs at their true scale, each on a weight of
    the base."""
    import numpy as np

    alpha, found = updates_in(path)
    wanted = {name: (a, b) for name, a, b in pairs}
    places = {name for name, _, _, _ in plan.tensors}
    odd = sorted(set(wanted) ^ set(found) | (set(found) - places))
    odd += [n for n, (a, b) in found.items() if a is None or b is None]
    if odd:
        raise ExportError.of("E-EXPORT-31", str(out), names=", ".join(odd[:4]))
    wrong, ratios = [], []
    for name, (a, b) in wanted.items():
        ours, theirs = found[name]
        rank = len(a)
        used = theirs * (alpha / rank if alpha else 1.0)
        true = b * (ALPHA / rank)
        if not (np.allclose(ours, a, rtol=2e-3, atol=1e-5) and _near(used, true)):
            wrong.append(name)
            ratios.append(float(np.abs(used).sum() / max(float(np.abs(true).sum()), 1e-30)))
    if wrong:
        spread = max(ratios) - min(ratios)
        told = say("gguf.hint.scale", found=f"{ratios[0]:.3g}") if spread < 1e-2 else ""
        names = ", ".join(wrong[:4]) + (f". {told}" if told else "")
        raise ExportError.of("E-EXPORT-41", str(out), names=names, hint=told)


def _near(one: Any, other: Any) -> bool:
    import numpy as np

    largest = float(np.abs(other).max())
    return bool(one.shape == other.shape and np.allclose(one, other, atol=2e-3 * largest))


def _in_transformers(
    path: Path, plan: gguf_file.Plan, causal: Any, tuned: Tuned, asked: Asked, kept: Path, out: Path
) -> dict[str, Any]:
    """The updates in the file added to the base, and asked."""
    import torch

    alpha, found = updates_in(path)
    weights = dict(causal.state_dict())
    for name, own, _, _ in plan.tensors:
        if name in found:
            a, b = found[name]
            scale = alpha / len(a) if alpha else 1.0
            update = gguf_file.taken_back(plan, own, scale * (b @ a))
            weights[own] += torch.from_numpy(update)
    said = logits_of(causal, asked.prompts, kept / "file")
    figures = gguf_proof.differences(asked.run, said)
    if figures["top1_agreement"] < gguf_types.LEAST["exact"]:
        share = f"{100 * figures['top1_agreement']:.1f}"
        least = f"{100 * gguf_types.LEAST['exact']:.0f}"
        runner = gguf_proof.runner_name("transformers")
        raise ExportError.of("E-EXPORT-35", str(out), runner=runner, share=share, least=least)
    replies, _ = replies_of(causal, None, tuned.renderer, asked.questions)
    assert asked.replies is not None
    return {
        "run_by": {"name": "transformers", "version": versions()["transformers"]},
        "computed_in": "float32",
        **figures,
        "rounding_alone": figures,
        "loss": losses(asked, said),
        "answers": score_of(asked.questions, asked.replies, replies),
        "positions": asked.prompts.positions,
        "prompts": len(asked.prompts.ids),
        "prompts_from": asked.prompts.kind,
        "held_out_prompts": asked.prompts.held_out,
        "tokens_per_second": {},
        "warnings": [],
        "proven_on": "base in Transformers",
    }


def lines(record: dict[str, Any]) -> list[str]:
    """The record for a terminal."""
    size = readable_size(record["file_bytes"])
    return [
        say("gguf.done", out=record["file"], type=record["type"], size=size),
        *lines_of_proof(record),
        say("gguf.next_adapter", out=record["file"], proof=record["proof"], card=record["card"]),
    ]
