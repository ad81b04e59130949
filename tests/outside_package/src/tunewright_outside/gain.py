"""A trained factor on every channel that a feed-forward part adds to the residual stream."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.registry import methods
from tunewright.core.types import Attached, Needs
from tunewright.models.anatomy import Anatomy
from tunewright.models.anatomy import of as anatomy_of

PART = "outside_gain"


class GainConfig(Section):
    """A factor on every channel of each block's feed-forward output.

    It starts at 1, and folds into the last matrix of the feed-forward part.
    """

    every: int = Field(default=1, ge=1)
    """Give factors to every n-th block only."""

    def trainable_numbers(self, shape: Any) -> int:
        """How many numbers train, for the estimate before anything is loaded."""
        return len(range(0, shape.layers, self.every)) * int(shape.hidden)


def load(config: GainConfig, model: Any, folder: Path, base_path: str, trainable: bool) -> Attached:
    """The saved factors of `folder` on `model`."""
    import torch
    from safetensors.torch import load_file

    described = json.loads((folder / "tunewright_method.json").read_text(encoding="utf-8"))
    attached = gain(
        config, model, anatomy_of(model), base_path or described["base_model_name_or_path"]
    )
    stored = load_file(str(folder / "method.safetensors"))
    with torch.no_grad():
        for name in attached.parameters:
            p = model.get_parameter(name)
            p.copy_(stored[name])
            p.requires_grad_(trainable)
    return attached


@methods.register(
    "gain",
    GainConfig,
    source="https://example.org/gain",
    trains="a factor for every channel of a block",
    load=load,
)
def gain(config: GainConfig, model: Any, anatomy: Anatomy, base_path: str) -> Attached:
    """Put the factors on `model`; nothing else trains."""
    import torch

    state = {"on": True}
    places: list[tuple[Any, Any]] = []
    names, hooks = [], []
    for block in anatomy.blocks[:: config.every]:
        (down,) = (m for m in anatomy.roles["mlp.down"] if m.startswith(f"{block}."))
        module, holder = model.get_submodule(down), model.get_submodule(block)
        width = module.weight.shape[1 if type(module).__name__ == "Conv1D" else 0]
        zero = torch.zeros(width, dtype=torch.float32, device=module.weight.device)
        holder.register_parameter(PART, torch.nn.Parameter(zero))
        names.append(f"{block}.{PART}")
        places.append((module, holder))

        def after(module: Any, given: Any, output: Any, holder: Any = holder) -> Any:
            factor = 1 + getattr(holder, PART)
            return output * factor.to(output.dtype) if state["on"] else output

        hooks.append(module.register_forward_hook(after))

    @contextlib.contextmanager
    def disabled() -> Iterator[None]:
        state["on"] = False
        try:
            yield
        finally:
            state["on"] = True

    def merge() -> Any:
        with torch.no_grad():
            for module, holder in places:
                factor = (1 + getattr(holder, PART)).to(module.weight.dtype)
                turned = type(module).__name__ == "Conv1D"
                module.weight.mul_(factor if turned else factor[:, None])
                if module.bias is not None:
                    module.bias.mul_(factor)
                delattr(holder, PART)
        for hook in hooks:
            hook.remove()
        places.clear()
        return model

    def save(folder: Path) -> None:
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        tensors = {n: model.get_parameter(n).detach().to("cpu").clone() for n in names}
        save_file(tensors, str(folder / "method.safetensors"), metadata={"format": "pt"})
        described = {
            "kind": "gain",
            "config": config.model_dump(),
            "base_model_name_or_path": base_path,
        }
        (folder / "tunewright_method.json").write_text(json.dumps(described), encoding="utf-8")

    return Attached(
        parameters=names,
        model=model,
        needs=Needs(frozen_base=True),
        save=save,
        disabled=disabled,
        merge=merge,
        learning_rate=5e-3,
    )
