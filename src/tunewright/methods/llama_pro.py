"""LLaMA Pro: new blocks between the old ones train, and the old ones stay as they are (Wu et al.
2024, arXiv 2401.02415).

The L blocks are cut into `blocks` groups of (nearly) equal length, and after each group stands a
copy of its last block. A block adds to its input,

    x' = x + attention(norm(x)),   x'' = x' + mlp(norm(x'))

so a copy whose two output projections are zero hands on what it is given: at step 0 the larger
model is the base, bit for bit. Only the copies learn, and what they learn adds to what the old
blocks know. Putting the zeros back switches the method off.

The result is a plain model with more blocks. Saved are the new blocks alone; `export merge` writes
the whole.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from tunewright.core.errors import ModelError, Problem, problem
from tunewright.core.registry import method
from tunewright.core.types import Attached, Model
from tunewright.core.words import say
from tunewright.methods import saved
from tunewright.methods.base_weights import BaseWeights
from tunewright.methods.selecting import attach_part
from tunewright.methods.targets import MethodSection
from tunewright.models.anatomy import Anatomy
from tunewright.models.anatomy import of as anatomy_of
from tunewright.models.shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig

SHARE = 4
"""Default: one new block for so many old ones, as 8 for the paper's 32."""
BY_NUMBER = (
    "mlp_only_layers",
    "full_attn_idxs",
    "cross_attention_layers",
    "attn_layer_indices",
    "first_k_dense_replace",
    "num_kv_shared_layers",
    "block_types",
)
"""Entries of configurations that name blocks by their numbers, which change when blocks are put
between."""
EVERY = (
    "attn_layer_period",
    "expert_layer_period",
    "decoder_sparse_step",
    "moe_layer_freq",
    "interleave_moe_layer_step",
    "hybrid_layer_ids",
)
"""Entries that make every n-th block another one, where they are above 1."""
WHOLE = ("hidden_size_per_layer_input", "altup_num_inputs")
"""Entries under which a block is more than an addition to its input: tables with a row for each
block, several streams of hidden rows."""


class LlamaProConfig(MethodSection):
    """New blocks, which start as doing nothing, train between the frozen ones."""

    blocks: int | None = Field(default=None, gt=0)
    """How many new blocks. Default: one for each 4 of the model, at least one."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        return int(
            wanted(self, shape.layers) * (shape.block_weights // shape.layers + 2 * shape.hidden)
        )

    def grown(self, shape: ModelShape) -> ModelShape:
        """The shape that a model of this shape has with the new blocks."""
        layers = shape.layers + wanted(self, shape.layers)
        matrices = {
            role: replace(m, count=m.count * layers // shape.layers)
            for role, m in shape.matrices.items()
        }
        return replace(shape, layers=layers, matrices=matrices)


def wanted(config: LlamaProConfig, layers: int) -> int:
    """How many new blocks a model of `layers` blocks gets."""
    return config.blocks or max(1, layers // SHARE)


def places(layers: int, new: int) -> list[int]:
    """Numbers of the old blocks after which a new one stands: the last of each of `new` groups."""
    return [round((group + 1) * layers / new) - 1 for group in range(new)]


def expand(model: Model, config: LlamaProConfig, anatomy: Anatomy) -> list[str]:
    """Put the new blocks into `model` and its configuration. Returns their names.

    Raises ModelError: E-METHOD-70 for more new blocks than old ones, E-METHOD-71 for a family whose
    blocks cannot be numbered anew.
    """
    layers, new = len(anatomy.blocks), wanted(config, len(anatomy.blocks))
    if new > layers:
        raise ModelError(problem("E-METHOD-70", "method.blocks", blocks=new, there=layers))
    root = anatomy.blocks[0].rpartition(".")[0]
    text = model.config.get_text_config()
    holder: Any = model.get_submodule(root)
    outputs = [
        name for role in ("attention.output", "mlp.down") for name in anatomy.roles.get(role, [])
    ]
    after = places(layers, new)
    reason = _why_not(holder, text, anatomy, outputs, [anatomy.blocks[i] for i in after])
    if reason:
        raise ModelError(problem("E-METHOD-71", "method", family=anatomy.family, cause=reason))
    before = _said(model)
    order = [
        (i, made) for i in range(layers) for made in ((False, True) if i in after else (False,))
    ]
    blocks = [
        _silent(holder[i], anatomy.blocks[i], outputs) if made else holder[i] for i, made in order
    ]
    for key, value in list(vars(text).items()):
        if (
            isinstance(value, list) and len(value) == layers
        ):  # one entry a block, such as the kinds of layers
            setattr(text, key, [value[i] for i, _ in order])
    text.num_hidden_layers = len(blocks)
    del holder[:]
    holder.extend(blocks)
    for number, block in enumerate(blocks):
        for module in block.modules():
            if isinstance(getattr(module, "layer_idx", None), int):
                module.layer_idx = number
    if not _hands_on(model, before):
        raise ModelError(
            problem(
                "E-METHOD-71",
                "method",
                family=anatomy.family,
                cause=say("methods.blocks_not_silent"),
            )
        )
    return [f"{root}.{number}" for number, (_, made) in enumerate(order) if made]


def _why_not(
    holder: nn.Module,
    text: PreTrainedConfig,
    anatomy: Anatomy,
    outputs: list[str],
    copied: list[str],
) -> str:
    """Why the blocks of a model cannot be copied and numbered anew; empty where they can."""
    import torch

    if not isinstance(holder, torch.nn.ModuleList) or len(holder) != len(anatomy.blocks):
        return type(holder).__name__
    stated = _stated_reason(text)
    if stated:
        return stated
    # Both halves of a block need an output that can be silenced.
    return next(
        (block for block in copied if sum(name.startswith(f"{block}.") for name in outputs) < 2), ""
    )


def _stated_reason(text: PreTrainedConfig) -> str:
    """The entry of a configuration because of which blocks cannot be put between; empty where there
    is none."""
    found = [
        key
        for key in ("scale_attn_by_inverse_layer_idx", *BY_NUMBER, *WHOLE)
        if vars(text).get(key)
    ]
    found += [
        key
        for key in EVERY
        if isinstance(vars(text).get(key), list) or (vars(text).get(key) or 0) > 1
    ]
    return found[0] if found else ""


def obstacles(config: LlamaProConfig, model_config: PreTrainedConfig) -> list[Problem]:
    """What in a model's configuration speaks against new blocks, before its weights are read."""
    text = model_config.get_text_config()
    reason = _stated_reason(text)
    return (
        [problem("E-METHOD-71", "method", family=text.model_type, cause=reason)] if reason else []
    )


def _said(model: Model) -> Tensor | None:
    """The logits of a few tokens; None on the meta device."""
    import torch

    device = next(model.parameters()).device
    if device.type == "meta":
        return None
    ids = torch.arange(3, 11, device=device)[None] % model.config.get_text_config().vocab_size
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def _hands_on(model: Model, before: Tensor | None) -> bool:
    """Whether the model with new blocks still is the base. An expert or a scale that nobody
    silenced shows here."""
    import torch

    try:
        after = _said(model)
    except (
        RuntimeError,
        IndexError,
        ValueError,
        AttributeError,
        TypeError,
    ):  # a part of the model does not know so many blocks
        return False
    return (
        before is None
        or after is None
        or bool(torch.allclose(after, before, rtol=1e-3, atol=1e-3 * float(before.abs().max())))
    )


def _silent(block: nn.Module, name: str, outputs: list[str]) -> nn.Module:
    """A copy of a block that adds nothing."""
    import torch

    # All modules share the model's configuration, which says by what attention they compute: a copy
    # of its own would not follow a change of layout.
    shared = {
        id(config): config
        for config in (getattr(module, "config", None) for module in block.modules())
        if config is not None
    }
    made = copy.deepcopy(block, dict(shared))
    for module in made.modules():
        # A faster form on the old module (`kernels/fused.py`) would compute with the old weights.
        vars(module).pop("forward", None)
    with torch.no_grad():
        for output in outputs:
            if output.startswith(f"{name}."):
                for p in made.get_submodule(output.removeprefix(f"{name}.")).parameters():
                    p.zero_()
    return made


def load_blocks(
    config: LlamaProConfig, model: Model, folder: Path, base_path: str, trainable: bool
) -> Attached:
    """The saved blocks of `folder` between those of `model`. Raises ModelError (E-METHOD-41,
    E-METHOD-42) where they do not fit."""
    attached = llama_pro(config, model, anatomy_of(model), base_path or saved.read(folder).base)
    saved.fill(model, attached.parameters, folder, trainable)
    return attached


@method(
    "llama_pro",
    LlamaProConfig,
    source="arXiv 2401.02415",
    trains="new blocks between the old ones",
    load=load_blocks,
    obstacles=obstacles,
    rate=1e-4,
)
def llama_pro(config: LlamaProConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
    """Train new blocks between the frozen ones. Raises ModelError (E-METHOD-70, E-METHOD-71)."""
    for p in model.parameters():
        p.requires_grad_(False)
    new = tuple(f"{name}." for name in expand(model, config, anatomy))
    part = BaseWeights(
        model, [name for name, _ in model.named_parameters() if name.startswith(new)], keep=True
    )
    return attach_part(part, "llama_pro", config, base_path)
