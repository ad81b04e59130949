"""A run or model with its matrices in few bits, as a folder that plain Transformers opens, proven
before it appears.

The run is asked on its base, its training is folded in, and the matrices of the blocks are rounded:
`int8` and `nf4` by bitsandbytes, `int4` by our own GPTQ, calibrated on rows that the run learnt
from, in the format of compressed-tensors (`pack-quantized`, which vLLM reads, too). Embedding, head
and norms stay in 16 bits. The folder is opened afresh and compared with the weights rounded in the
same way, which it must equal, and with the run, which says what the rounding cost.
"""

from __future__ import annotations

import gc
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from tunewright.core import machine, signals
from tunewright.core.errors import UsageError
from tunewright.core.files import readable_size, write_json
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.export import card, footprint, merge, prompts, quant_types, remade
from tunewright.export.folder import ExportError, appearing, require_free
from tunewright.export.gguf import came_from, find_words
from tunewright.export.gptq import Grid, Rounded, gptq, to_nearest
from tunewright.export.proof import RECORD, Asked, Logits, logits_of, require_folded, scratch
from tunewright.export.quant_types import LEAST_OF_ROUNDED, Format, format_of
from tunewright.export.remade import hushed, lines_of_loss
from tunewright.export.tuned import Tuned, words_said
from tunewright.export.walking import Walk
from tunewright.models import anatomy, load
from tunewright.sources import headers

CALIBRATION_TOKENS = 8192
GROUP = 32
WIDE = 16
NF4_BLOCK = 64
"""Weights that share a scale in bitsandbytes' nf4; a width that is no multiple is made wide wrongly
on a CPU (version 0.50.2), so such a matrix stays as it is."""


def quantize(
    run: Path | str,
    out: Path,
    *,
    bits: int | None = None,
    type: str | None = None,
    group: int = GROUP,
    data: str | None = None,
    tokens: int = CALIBRATION_TOKENS,
    measure: bool = True,
    tell: Tell | None = None,
) -> dict[str, Any]:
    """Write what `run` names (a run, an adapter's folder, a model) in few bits to the folder `out`
    and return the record that lies there as `proof.json`.

    `data`: rows to calibrate and to measure on, in place of the run's. `measure`: memory and speed
    are measured in a process of their own. Raises UsageError before anything is written,
    ExportError for a folder that is not the run, Interrupted when stopped; `out` exists afterwards
    only if this returns.
    """
    tell, out = tell or Tell(), Path(out)
    require_free(out)
    kind = format_of(type, bits)
    if group not in quant_types.GROUPS:
        known = ", ".join(map(str, quant_types.GROUPS))
        raise UsageError.of("E-EXPORT-50", "--group", given=f"--group {group}", known=known)
    with signals.watching():
        tuned = prepare(run, data, tell)
        job = Quantising(tuned, out, kind, tell, group, tokens, measure)
        if type == "gptq" and not job.calibration:
            raise UsageError.of("E-EXPORT-55", str(run))
        try:
            return {"folder": str(out), **job.do()}
        except OSError as e:
            raise ExportError.of("E-EXPORT-27", str(out), cause=e) from e


def prepare(run: Path | str, data: str | None, tell: Tell) -> Tuned:
    """What is made smaller, found; `data` takes the place of the run's rows. Raises UsageError for
    what has no words or is quantised already."""
    tuned = find_words(run, tell)
    for folder in {tuned.base, tuned.trained}:
        if headers.config_of(folder, "config.json").get("quantization_config"):
            raise UsageError.of("E-EXPORT-53", str(folder))
    if data is not None:
        kept = {k: v for k, v in tuned.target.settings.items() if not k.startswith("data.")}
        settings = {**kept, "data.train": data}
        system = tuned.target.settings.get("data.system")
        settings |= {"data.system": system} if system else {}
        if not Path(data).exists():
            raise UsageError.of("E-EXPORT-57", "--data", data=data)
        tuned.target = replace(tuned.target, settings=settings)
        tuned.rows_given = True
    return tuned


@dataclass
class Quantising:
    """One export from files to a proven folder. Methods stand in the order in which they happen."""

    tuned: Tuned
    out: Path
    kind: Format
    tell: Tell
    group: int = GROUP
    tokens: int = CALIBRATION_TOKENS
    measure: bool = True
    wider: dict[str, int] = field(default_factory=dict)
    """Module -> bits, where it is not `kind.bits` (int4 only); 16: it stays as it is."""
    notes: list[str] = field(default_factory=list)
    more: dict[str, Any] = field(default_factory=dict)
    """Further keys of the record."""

    def __post_init__(self) -> None:
        stored = merge.stored_dtype(self.tuned.trained if self.tuned.whole else self.tuned.base)
        self.dtype = "float16" if stored == "float16" else "bfloat16"
        self.calibration = (
            prompts.learnt_rows(self.tuned.target, self.tuned.renderer, self.tokens)
            if self.kind.is_grid
            else []
        )

    def do(self) -> dict[str, Any]:
        """Ask the run, quantise, write, prove, publish."""
        started = time.perf_counter()
        tuned = self.tuned
        size = readable_size(4 * load.parameter_count(tuned.base))
        self.tell.line(say("gguf.loading", base=tuned.source.spec, size=size))
        with appearing(self.out, "quantising") as folder, scratch(folder) as kept:
            asked, fold = tuned.ask(words_said, kept, needs_effect=True, answers=True)
            model = fold()
            if not tuned.whole:
                require_folded(self.out, asked, model, kept)
            record = self.write(model, folder, kept, asked)
            rounded = record.pop("said")
            del model, fold
            gc.collect()
            machine.return_freed_memory()
            record |= self.prove(folder, asked, rounded)
            record |= self.weigh(folder)
            record = {
                "exported": "quantize",
                "verdict": "agrees",
                **record,
                **self.more,
                "notes": self.notes,
                **came_from(tuned),
                "seconds": round(time.perf_counter() - started, 2),
                "versions": {**machine.versions(), **_versions(self.kind.package)},
            }
            write_json(folder / RECORD, record)
            card.write(folder, tuned, record)
        return record

    # ---- rounding and writing

    def write(self, model: Any, folder: Path, kept: Path, asked: Asked) -> dict[str, Any]:
        """Round `model` and write it. What it says afterwards is in `said`."""
        import torch

        # What stays in 16 bits is compared as it will be stored.
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.copy_(parameter.to(getattr(torch, self.dtype)).float())
        names = self.matrices(model)
        facts: dict[str, Any] = {
            "type": self.kind.name,
            "bits": self.kind.bits,
            "package": self.kind.package,
            "dtype": self.dtype,
            "matrices": len(names),
        }
        if self.kind.is_grid:
            made = self.round(model, names)
            facts |= self._facts_of_grid(made)
            facts["said"] = logits_of(model, asked.prompts, kept / "rounded")
            from tunewright.export import packed

            with hushed():
                packed.compress(model, made)
            model.to(getattr(torch, self.dtype))
            merge.write_folder(self.tuned, model, folder, self.dtype)
            packed.state(folder, made)
        else:
            plain = kept / "plain"
            model.to(getattr(torch, self.dtype))
            merge.write_folder(self.tuned, model, plain, self.dtype)
            self._by_bitsandbytes(plain, folder, model, names)
            model.float()
            self._round_as_bitsandbytes(model, names)
            facts["said"] = logits_of(model, asked.prompts, kept / "rounded")
        return facts

    def matrices(self, model: Any) -> list[str]:
        """Names of the linear modules that are quantised. Raises UsageError where there are none;
        says what stays as it is."""
        import torch

        found = anatomy.of(model)
        linear = [*found.linear, *found.past]
        block = self.group if self.kind.is_grid else NF4_BLOCK if self.kind.name == "nf4" else 1
        fitting = [
            name
            for name in found.linear
            if isinstance(module := model.get_submodule(name), torch.nn.Linear)
            and module.in_features % block == 0
        ]
        if not fitting:
            raise UsageError.of("E-EXPORT-54", str(self.tuned.trained), block=block)
        left = [name for name in linear if name not in fitting]
        if left:
            self.notes.append(say("quantize.left", count=len(left), names=", ".join(left[:3])))
        return [name for name in fitting if self.wider.get(name) != WIDE]

    def grid_of(self, name: str) -> Grid:
        """The grid of one matrix. Without zero points: Transformers 5.23 opens no packed folder
        that has them (compressed-tensors 0.20.1 plans their shape wrongly)."""
        return Grid(self.wider.get(name, self.kind.bits), self.group)

    def round(self, model: Any, names: list[str]) -> dict[str, Rounded]:
        """Put the rounded numbers into `model` and return what they are made of."""
        made: dict[str, Rounded] = {}
        if not self.calibration:
            self.notes.append(say("quantize.not_calibrated"))
            for name in names:
                module = model.get_submodule(name)
                made[name] = _put(module, to_nearest(module.weight.data, self.grid_of(name)))
            return made
        count = sum(map(len, self.calibration))
        rows = len(self.calibration)
        key = "quantize.calibrating_given" if self.tuned.rows_given else "quantize.calibrating"
        self.tell.line(say(key, rows=rows, tokens=count))
        walk = Walk(model, self.calibration)
        self.tell.start(say("quantize.rounding"))
        for number, inputs in walk.blocks_with_inputs(names, whole=True):
            for name in [n for n in inputs.sums if n in names]:
                module = model.get_submodule(name)
                grid = self.grid_of(name)
                made[name] = _put(module, gptq(module.weight.data, inputs.sums[name], grid))
            self.tell.progress(say("quantize.rounding"), number + 1, len(walk.blocks))
        for name in [n for n in names if n not in made]:  # an expert that no row reached
            module = model.get_submodule(name)
            made[name] = _put(module, to_nearest(module.weight.data, self.grid_of(name)))
        return made

    def _facts_of_grid(self, made: dict[str, Rounded]) -> dict[str, Any]:
        sizes = [(r.codes.numel(), r.grid.bits_per_weight) for r in made.values()]
        bits = sum(n * b for n, b in sizes) / sum(n for n, _ in sizes)
        rows = len(self.calibration)
        return {
            "way": "gptq" if self.calibration else "nearest",
            "group": self.group,
            "bits_per_weight": round(bits, 3),
            "calibrated_on": {
                "rows": rows,
                "tokens": sum(map(len, self.calibration)),
                "given": self.tuned.rows_given,
            },
        }

    def _by_bitsandbytes(self, plain: Path, folder: Path, model: Any, names: list[str]) -> None:
        import torch
        from transformers import AutoModelForCausalLM, BitsAndBytesConfig

        chosen = set(names)
        skipped = [
            name
            for name, module in model.named_modules()
            if isinstance(module, torch.nn.Linear) and name not in chosen
        ]
        compute = getattr(torch, self.dtype)
        config = (
            BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=skipped or None)
            if self.kind.name == "int8"
            else BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=compute,
                llm_int8_skip_modules=skipped or None,
            )
        )
        with hushed():
            small: Any = AutoModelForCausalLM.from_pretrained(
                str(plain),
                quantization_config=config,
                dtype=compute,
                device_map={"": "cpu"},
                local_files_only=True,
            )
            small.save_pretrained(str(folder), max_shard_size=merge.SHARD)
            self.tuned.save_words(folder)
        settings = merge.generation_settings(self.tuned.base, self.tuned.renderer)
        write_json(folder / "generation_config.json", settings)
        stated = headers.config_of(folder, "config.json")
        # Two flags that are there under their plain names as well.
        for key in ("_load_in_8bit", "_load_in_4bit"):
            stated["quantization_config"].pop(key, None)
        write_json(folder / "config.json", stated)

    def _round_as_bitsandbytes(self, model: Any, names: list[str]) -> None:
        """The same rounding by our own quantiser, whose oracle in the tests is bitsandbytes."""
        import torch

        from tunewright.models.quantised import QuantLinear

        with torch.no_grad():
            for name in names:
                weight = model.get_submodule(name).weight
                small = QuantLinear(weight, None, self.kind.name, True, NF4_BLOCK)
                weight.copy_(small.weight)

    # ---- proving

    def prove(self, folder: Path, asked: Asked, rounded: Logits) -> dict[str, Any]:
        """Open the folder as anybody would, and compare. Raises ExportError where it is not the
        run."""
        kind, count = self.kind, asked.prompts.positions
        runner = say("quantize.runner", package=kind.package)
        self.tell.line(say("quantize.proving", runner=runner, positions=count))
        same = LEAST_OF_ROUNDED[kind.name]
        bounds = remade.Bounds(kind.name, same, kind.least, kind.expected)
        found = remade.prove(
            self.tuned,
            self.out,
            folder,
            asked,
            rounded,
            bounds=bounds,
            runner=runner,
            dtype=self.dtype,
            ready=self._ready,
        )
        return {
            "run_by": {"name": "transformers", "with": kind.package},
            "computed_in": "float32" if kind.is_grid else self.dtype,
            **found,
        }

    def _ready(self, model: Any) -> Any:
        """bitsandbytes computes in the dtype it was told; a packed file is proven in float32."""
        import torch

        # Transformers' own `float` refuses quantised models; the scales are all that it changes.
        return torch.nn.Module.float(model) if self.kind.is_grid else model

    def weigh(self, folder: Path) -> dict[str, Any]:
        """Size on disk; memory and speed in a process of its own, beside the same of 16 bits."""
        found: dict[str, Any] = {"plain_bytes": 2 * load.parameter_count(self.tuned.base)}
        if not self.measure:
            return found
        self.tell.line(say("quantize.weighing"))
        memory = {"exported": footprint.of(folder)}
        if merge.stored_dtype(self.tuned.base) != "float32":
            memory["base"] = footprint.of(self.tuned.base)
        return {**found, "memory": memory}


def _put(module: Any, rounded: Rounded) -> Rounded:
    module.weight.data.copy_(rounded.weight)
    return rounded


def _versions(package: str) -> dict[str, str]:
    from importlib.metadata import version

    return {package: version(package)}


def lines(record: dict[str, Any]) -> list[str]:
    """The record for a terminal."""
    size, plain = (readable_size(record[k]) for k in ("weight_bytes", "plain_bytes"))
    shown = {
        "agreement": f"{100 * record['top1_agreement']:.1f}",
        "nats": f"{record['divergence_nats']:.2g}",
        "positions": record["positions"],
    }
    said = [
        say("quantize.done", out=record["folder"], type=record["type"], size=size, plain=plain),
        say("quantize.proven", **shown),
    ]
    said += lines_of_loss(record["loss"])
    said.append(say("gguf.answers", **record["answers"]))
    for which, facts in record.get("memory", {}).items():
        if facts:
            said.append(say(f"quantize.memory.{which}", **footprint.shown(facts)))
    return [
        *said,
        *record["notes"],
        *record["warnings"],
        say("quantize.next", out=record["folder"]),
    ]
