"""Where LoRA starts: at a part of the weights (PiSSA, OLoRA), at the data of the run (EVA), at the
quantisation error of the base (LoftQ).

PiSSA and OLoRA take what A and B start with out of the weight: y = (W - s B0 A0) x + s B A x. PEFT
writes the difference into W. Here W stays and the start is subtracted beside it, y = W x + s [B,
-B0] [A; A0] x, which is the same function, because then the base is the base for everybody: it can
be switched to, a half-precision W is not rounded a second time, and what is saved is a plain LoRA
of twice the rank that fits the untouched base. PEFT's own conversion after training has the same
form. The price is the product with the frozen half.

EVA (Paischer et al. 2024, arXiv 2410.07170): A starts at the directions in which the inputs of its
layer vary most, B at zero, so the model is the base at step 0. PEFT finds the directions by an
incremental decomposition while rows run through the model.

LoftQ (Li et al. 2023, arXiv 2310.08659), with one round of its alternation: for a base Q =
quantised(W), B A is the best product of that rank for W - Q, so the model at step 0 is nearer to
the unquantised base than the quantised one is. The weights W are read again from the model's files,
one matrix at a time; the quantised base stays the base for everybody. PEFT offers the same for
bases of bitsandbytes only (`replace_lora_weights_loftq`); ours are not.
"""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import CompatError, ModelError, problem
from tunewright.core.files import write_json
from tunewright.core.registry import usual_rate
from tunewright.core.types import Attached, Model
from tunewright.core.words import say
from tunewright.methods.peft import attach_peft, settings_of

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from torch import Tensor

MARK = "tunewright_start.json"
"""Stands in the folder of an adapter that fits only a base quantised as its own was."""
LONGEST, AT_ONCE, MOST_PASSES = 512, 8, 400
"""Tokens of a row that EVA reads, rows in one pass, and passes after which it gives up."""


def start_from_weights(wrapped: PeftModel, how: str) -> Attached:
    """Let PEFT compute the start of every LoRA layer (`pissa`, `pissa_niter_4`, `olora`), keep it
    beside what trains and put the weight back."""
    import torch

    from tunewright.methods.layers import WithStart

    layers: list[Any] = [m for m in wrapped.modules() if "default" in getattr(m, "lora_A", {})]
    for layer in layers:
        weight = layer.get_base_layer().weight
        untouched = weight.detach().clone()  # OLoRA writes into the tensor, PiSSA replaces it
        with torch.no_grad():
            if how == "olora":
                layer.olora_init("default")
            else:
                layer.pissa_init("default", how)
        weight.data = untouched
        layer.lora_A["default"] = WithStart(layer.lora_A["default"].weight, 0, 1.0)
        layer.lora_B["default"] = WithStart(layer.lora_B["default"].weight, 1, -1.0)
    attached = attach_peft(wrapped)
    attached.save = lambda folder: _save(wrapped, folder)
    attached.tensors = lambda: {
        name: t for name, t in wrapped.named_buffers() if name.endswith(".start")
    }
    attached.learning_rate = usual_rate("pissa")
    return attached


def _save(wrapped: PeftModel, folder: Path) -> None:
    """A plain LoRA of twice the rank in PEFT's layout: [A; A0] and [B, -B0] with the same scale."""
    from peft import get_peft_model_state_dict
    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import save_file

    config = copy.copy(settings_of(wrapped))
    # rsLoRA divides by the root of the rank, the others by the rank.
    stronger = 2**0.5 if config.use_rslora else 2
    config.lora_alpha *= stronger
    config.r *= 2
    config.rank_pattern = {name: 2 * rank for name, rank in (config.rank_pattern or {}).items()}
    config.alpha_pattern = {
        name: stronger * alpha for name, alpha in (config.alpha_pattern or {}).items()
    }
    config.inference_mode = True
    tensors = {}
    module: Any
    for name, module in wrapped.named_modules():
        if "default" in getattr(module, "lora_A", {}):
            for part in ("lora_A", "lora_B"):
                tensors[f"{name}.{part}.weight"] = (
                    getattr(module, part)["default"].weight.detach().cpu().contiguous()
                )
        elif (
            "default" in getattr(module, "trainable_tokens_delta", {})
            and module.tied_adapter is None
        ):
            tensors[f"{name}.trainable_tokens_delta"] = (
                module.trainable_tokens_delta["default"].detach().cpu().contiguous()
            )
    if config.modules_to_save:
        stored = get_peft_model_state_dict(wrapped, save_embedding_layers=False)
        tensors |= {
            name: tensor.detach().cpu().contiguous().clone()
            for name, tensor in stored.items()
            if ".lora_" not in name and "trainable_tokens" not in name
        }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(folder))


def start_from_rows(attached: Attached, wrapped: PeftModel, rank: int) -> Attached:
    """Let the A matrices of a fresh PEFT LoRA (`init_lora_weights="eva"`) be set by `look`, before
    the first step."""

    def look(rows: Sequence[list[int]]) -> None:
        import peft

        batches, passes = _batches(rows, 2 * rank, wrapped.device), [0]

        def forward(model: Model, inputs: dict[str, Tensor]) -> None:
            passes[0] += 1
            if passes[0] > MOST_PASSES:
                raise CompatError(
                    problem(
                        "E-METHOD-61",
                        "method.rank",
                        rank=rank,
                        tokens=sum(len(row) for row in rows),
                    )
                )
            model(**inputs, use_cache=False)

        if not batches:
            raise CompatError(
                problem(
                    "E-METHOD-61", "method.rank", rank=rank, tokens=sum(len(row) for row in rows)
                )
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            peft.initialize_lora_eva_weights(
                wrapped, batches, forward_fn=forward, show_progress_bar=False
            )
        wrapped.eval()

    attached.look = look
    return attached


def _batches(
    rows: Sequence[list[int]], fewest: int, device: torch.device
) -> list[dict[str, Tensor]]:
    """Padded rows with their masks, each batch of at least `fewest` tokens: PEFT passes over
    smaller ones."""
    import torch

    groups: list[list[list[int]]] = []
    for row in sorted((row[:LONGEST] for row in rows if row), key=len):
        if groups and (len(groups[-1]) < AT_ONCE or sum(map(len, groups[-1])) < fewest):
            groups[-1].append(row)
        else:
            groups.append([row])
    if len(groups) > 1 and sum(map(len, groups[-1])) < fewest:
        groups[-2] += groups.pop()
    batches = []
    for group in groups:
        if sum(map(len, group)) < fewest:
            continue
        width = max(map(len, group))
        ids = torch.tensor([row + [row[-1]] * (width - len(row)) for row in group], device=device)
        mask = torch.tensor(
            [[1] * len(row) + [0] * (width - len(row)) for row in group], device=device
        )
        batches.append({"input_ids": ids, "attention_mask": mask})
    return batches


def start_from_rounding(attached: Attached, wrapped: PeftModel, niter: int | None) -> Attached:
    """Set A and B of a fresh PEFT LoRA on a quantised base to the best product for what quantising
    took away.

    Raises CompatError (E-METHOD-60) where the base is not quantised, ModelError (E-METHOD-62) where
    its unquantised weights cannot be found.
    """
    import torch

    from tunewright.models.quantised import QuantLinear

    layers = [
        (name, m) for name, m in wrapped.named_modules() if "default" in getattr(m, "lora_A", {})
    ]
    if not all(isinstance(layer.get_base_layer(), QuantLinear) for _, layer in layers):
        raise CompatError(problem("E-METHOD-60", "base.bits"))
    originals = _Originals(Path(str(wrapped.get_base_model().name_or_path)))
    for name, layer in layers:
        quantised = layer.get_base_layer().weight.float()
        rest = originals.of(name.removeprefix("base_model.model."), quantised) - quantised
        rank = layer.r["default"]
        U, S, V = (
            torch.linalg.svd(rest, full_matrices=False)
            if niter is None
            else _fast_svd(rest, rank, niter)
        )
        root = (S[:rank] / layer.scaling["default"]).sqrt()
        with torch.no_grad():
            layer.lora_A["default"].weight.copy_(root[:, None] * V[:rank])
            layer.lora_B["default"].weight.copy_(U[:, :rank] * root)
    own_save = attached.save

    def save(folder: Path) -> None:
        own_save(folder)
        write_json(folder / MARK, {"start": "loftq"})

    attached.save = save
    return bound_to_its_base(attached)


def bound_to_its_base(attached: Attached) -> Attached:
    """An adapter that holds a correction of its quantised base cannot be folded into the
    unquantised one: the correction would be made twice."""
    attached.merge, attached.merge_reason = None, say("methods.loftq_no_merge")
    return attached


def is_bound(folder: Path) -> bool:
    """Whether the adapter of a folder fits only a base quantised as its own was."""
    return (Path(folder) / MARK).is_file()


def _fast_svd(matrix: Tensor, rank: int, niter: int) -> tuple[Tensor, Tensor, Tensor]:
    import torch

    U, S, V = torch.svd_lowrank(matrix, q=min(rank + 8, *matrix.shape), niter=niter)
    return U, S, V.T


class _Originals:
    """The unquantised matrices of a model folder, one at a time."""

    def __init__(self, folder: Path):
        from safetensors import safe_open

        self.folder, self.place = folder, {}
        for path in sorted(folder.glob("*.safetensors")) if folder.is_dir() else []:
            with safe_open(path, framework="pt") as stored:
                self.place.update(dict.fromkeys(stored.keys(), path))

    def of(self, module: str, quantised: Tensor) -> Tensor:
        """The weight of a module in float32, lying as `quantised` does. A name may lack the prefix
        under which Transformers puts the model."""
        from safetensors import safe_open

        parts = f"{module}.weight".split(".")
        name = next(
            (n for n in (".".join(parts[i:]) for i in range(len(parts) - 1)) if n in self.place),
            None,
        )
        if name is not None:
            with safe_open(self.place[name], framework="pt") as stored:
                weight = stored.get_tensor(name).float().to(quantised.device)
            # GPT-2 stores its weights turned; which way they lie shows in which is near the
            # quantised one.
            for candidate in (weight, weight.T):
                if candidate.shape == quantised.shape:
                    gap = float((candidate - quantised).norm() / candidate.norm())
                    if math.isfinite(gap) and gap < 0.5:
                        return candidate
        raise ModelError(problem("E-METHOD-62", str(self.folder), module=module))
