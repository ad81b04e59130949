"""PiSSA and OLoRA: LoRA that starts at a part of the weights themselves, with the base left as it
is.

Both papers take what A and B start with out of the weight: y = (W - s B0 A0) x + s B A x. PEFT
writes the difference into W. Here W stays and the start is subtracted beside it, y = W x + s [B,
-B0] [A; A0] x, which is the same function, because then the base is the base for everybody: it can
be switched to, a half-precision W is not rounded a second time, and what is saved is a plain LoRA
of twice the rank that fits the untouched base. PEFT's own conversion after training has the same
form. The price is the product with the frozen half.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.types import Attached

if TYPE_CHECKING:
    from torch import Tensor


def start_from_weights(wrapped: Any, how: str) -> Attached:
    """Let PEFT compute the start of every LoRA layer (`pissa`, `pissa_niter_4`, `olora`), keep it
    beside what trains and put the weight back."""
    import torch

    from tunewright.methods.lora import attach_peft

    layers = [m for m in wrapped.modules() if "default" in getattr(m, "lora_A", {})]
    for layer in layers:
        weight = layer.get_base_layer().weight
        untouched = weight.detach().clone()  # OLoRA writes into the tensor, PiSSA replaces it
        with torch.no_grad():
            if how == "olora":
                layer.olora_init("default")
            else:
                layer.pissa_init("default", how)
        weight.data = untouched
        layer.lora_A["default"] = _with_start()(layer.lora_A["default"].weight, 0, 1.0)
        layer.lora_B["default"] = _with_start()(layer.lora_B["default"].weight, 1, -1.0)
    attached = attach_peft(wrapped)
    attached.save = lambda folder: _save(wrapped, folder)
    attached.tensors = lambda: {
        name: t for name, t in wrapped.named_buffers() if name.endswith(".start")
    }
    attached.learning_rate = 1e-4
    return attached


def _with_start() -> Any:
    """The class of one of the two matrices, made late because it needs torch."""
    import torch
    from torch import nn

    class WithStart(nn.Module):
        """A trained matrix and, beside it along `axis`, `sign` times what it was at the start.
        Stands where PEFT has an nn.Linear."""

        bias = None

        def __init__(self, weight: Tensor, axis: int, sign: float):
            super().__init__()
            self.trained = nn.Parameter(weight.detach().float().contiguous())
            self.register_buffer("start", sign * self.trained.detach().clone())
            self.axis = axis

        @property
        def weight(self) -> Tensor:
            start: Any = self.start
            return torch.cat([self.trained, start], self.axis)

        def forward(self, x: Tensor) -> Tensor:
            return torch.nn.functional.linear(x, self.weight)

    return WithStart


def _save(wrapped: Any, folder: Path) -> None:
    """A plain LoRA of twice the rank in PEFT's layout: [A; A0] and [B, -B0] with the same scale."""
    import copy

    from peft.utils import SAFETENSORS_WEIGHTS_NAME
    from safetensors.torch import save_file

    config = copy.copy(wrapped.peft_config["default"])
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
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / SAFETENSORS_WEIGHTS_NAME, metadata={"format": "pt"})
    config.save_pretrained(str(folder))
