"""A student of a model's own family: the same model with some of its blocks left out, as a folder
to train from.

Blocks that stand at even distances are kept, the first and the last among them, with the
embeddings, norms and the head. Such a student answers nonsense until it is trained, but it starts
far ahead of random weights (Sanh et al. 2019, DistilBERT, arXiv 1910.01108, who kept every second
block). Before the folder is kept, its logits are compared with those of the model with the same
blocks left out.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, UsageError
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.export.folder import appearing, require_free
from tunewright.models import anatomy, load
from tunewright.text.tokenizer import load_tokenizer

TOLERANCE = 1e-4
"""Largest difference of the logits, as a share of the largest one, in float32."""


def kept_blocks(total: int, wanted: int) -> list[int]:
    """Which of `total` blocks are kept: `wanted` at even distances."""
    if wanted == 1:
        return [0]
    return [round(i * (total - 1) / (wanted - 1)) for i in range(wanted)]


def shrink(
    model: str, out: Path, *, blocks: str = "half", tell: Tell | None = None
) -> dict[str, Any]:
    """Write `model` with fewer blocks into `out`. `blocks` is a number or `half`.

    Returns `kept` (numbers of the blocks), `blocks` before and after, and the numbers of
    parameters. Raises UsageError for a number out of range (E-OBJ-08) or an `out` that is taken,
    and ModelError for a model that is not plain (E-OBJ-07).
    """
    require_free(out)
    found = opening.find(model, tell or Tell())
    if found.adapter is not None:
        raise ModelError.of("E-OBJ-07", model, cause=say("shrink.adapter"))
    whole: Any = load.load_model(found.source.folder, dtype="auto")
    names = anatomy.of(whole).blocks
    wanted = len(names) // 2 if blocks == "half" else int(blocks) if blocks.isdigit() else 0
    if not 1 <= wanted < len(names):
        raise UsageError.of("E-OBJ-08", "--blocks", blocks=blocks, most=len(names) - 1)
    kept = kept_blocks(len(names), wanted)
    small = without_blocks(whole, kept, model)
    before = sum(p.numel() for p in whole.parameters())
    with appearing(out, "shrinking") as temporary:
        small.save_pretrained(str(temporary))
        gap = _gap(whole, load.load_model(temporary, dtype="auto"), names, kept)
        if not gap <= TOLERANCE:
            cause = say("shrink.differs", gap=f"{gap:.1e}")
            raise ModelError.of("E-OBJ-07", model, cause=cause)
        load_tokenizer(found.tokenizer_folder).save_pretrained(str(temporary))
    return {
        "folder": str(out),
        "kept": kept,
        "blocks_before": len(names),
        "blocks": wanted,
        "parameters_before": before,
        "parameters": sum(p.numel() for p in small.parameters()),
    }


def without_blocks(whole: Any, kept: list[int], where: str) -> Any:
    """A new model with the `kept` ones of the blocks of `whole`, in its dtype. Raises ModelError
    for a family whose weights then find no place."""
    from transformers import AutoModelForCausalLM

    names = anatomy.of(whole).blocks
    small: Any = AutoModelForCausalLM.from_config(
        _config(whole, kept, len(names)), dtype=whole.dtype
    )
    missing, extra = small.load_state_dict(_state(whole, names, kept), strict=False)
    if missing or extra:
        raise ModelError.of("E-OBJ-07", where, cause=", ".join([*missing, *extra][:3]))
    small.generation_config = whole.generation_config
    return small


def hand_on(*given: Any, **named: Any) -> Any:
    """What a block that is left out computes: nothing."""
    return given[0] if given else named["hidden_states"]


def _config(whole: Any, kept: list[int], total: int) -> Any:
    """The configuration of the model with the `kept` ones of its `total` blocks."""
    config = copy.deepcopy(whole.config)
    text = config.get_text_config()
    for key, value in list(vars(text).items()):
        # One entry a block, such as the kinds of layers.
        if isinstance(value, list) and len(value) == total:
            setattr(text, key, [value[i] for i in kept])
    text.num_hidden_layers = len(kept)
    return config


def _state(whole: Any, names: list[str], kept: list[int]) -> dict[str, Any]:
    """The weights of the `kept` blocks under their new names, and all that is in no block."""
    renamed = {f"{names[old]}.": f"{names[new]}." for new, old in enumerate(kept)}
    state = {}
    for name, tensor in whole.state_dict().items():
        prefix = next((block + "." for block in names if name.startswith(block + ".")), None)
        if prefix is None:
            state[name] = tensor
        elif prefix in renamed:
            state[renamed[prefix] + name.removeprefix(prefix)] = tensor
    return state


def _gap(whole: Any, small: Any, names: list[str], kept: list[int]) -> float:
    """Largest difference of the two models' logits when the left-out blocks of `whole` hand on what
    they are given. Leaves `whole` so."""
    import torch

    for number, name in enumerate(names):
        if number not in kept:
            whole.get_submodule(name).forward = hand_on
    ids = torch.arange(3, 35)[None] % whole.config.get_text_config().vocab_size
    with torch.no_grad():
        first, second = (m.float()(input_ids=ids, use_cache=False).logits for m in (whole, small))
    return float((first - second).abs().max() / first.abs().max())


def lines(result: dict[str, Any]) -> list[str]:
    """The result for a reader."""
    return [
        say(
            "shrink.done",
            folder=result["folder"],
            blocks=result["blocks"],
            before=result["blocks_before"],
            parameters=f"{result['parameters']:,}",
            parameters_before=f"{result['parameters_before']:,}",
        )
    ]
