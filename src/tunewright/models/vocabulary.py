"""Tokens put into a tokenizer after pre-training, and room for them in the model's embedding and head."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def add_tokens(tokenizer: Any, tokens: Sequence[str | int]) -> list[int]:
    """The ids of tokens: words are put into the tokenizer where it has them not (in order, so that the ids are always the same), numbers are ids."""
    from tokenizers import AddedToken

    words = [token for token in tokens if isinstance(token, str)]
    # A mark of a format is part of an answer, so it is no special token: those vanish when text is made of tokens.
    tokenizer.add_tokens([AddedToken(word, normalized=False, special=False) for word in words])
    return [int(tokenizer.convert_tokens_to_ids(token)) if isinstance(token, str) else token for token in tokens]


def make_room(model: Any, count: int) -> int:
    """Give embedding and head at least `count` rows; new ones are the mean of the old. Returns how many rows were added."""
    import torch

    old = int(model.get_input_embeddings().weight.shape[0])
    if count <= old:
        return 0
    trains = {id(p): p.requires_grad for p in model.parameters()}
    model.resize_token_embeddings(count, mean_resizing=False)
    model.requires_grad_(any(trains.values()))
    with torch.no_grad():
        for module in (model.get_input_embeddings(), model.get_output_embeddings()):
            if module is not None:
                module.weight[old:] = module.weight[:old].float().mean(0).to(module.weight.dtype)
                if getattr(module, "bias", None) is not None:
                    module.bias[old:] = 0
    return count - old


def highest_token(folder: Path) -> int:
    """The highest token of which the adapter in a PEFT folder holds a row; -1 where it holds none."""
    config = json.loads((Path(folder) / "adapter_config.json").read_text(encoding="utf-8"))
    found = config.get("token_indices") or config.get("trainable_token_indices") or []
    lists = list(found.values()) if isinstance(found, dict) else [found]
    return max((int(i) for ids in lists for i in ids), default=-1)
