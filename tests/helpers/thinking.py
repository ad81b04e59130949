"""Tiny models whose template has the shape of Qwen3's, taught by heart what to think and answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from helpers import families, story
from tunewright.core.types import Message


def base_folder(place: Path, family: str = "qwen3", **changes: Any) -> Path:
    """A two-block random model in a folder with the tokenizer of a family that thinks."""
    known = families.MARKED if family in families.MARKED else families.THINKING
    tokenizer = families.tokenizer_of(family, known)
    sizes = {"vocab_size": 512, "max_position_embeddings": 512, **changes}
    folder = story.model_folder(place, "qwen2", **sizes)
    tokenizer.save_pretrained(str(folder))
    return folder


def teach(folder: Path, rows: dict[str, str], *, steps: int = 120, rate: float = 6e-3) -> Path:
    """Teach the model of a folder these answers by heart, all weights, thoughts as they come."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from tunewright.engine.naming import renderer_of

    torch.manual_seed(0)
    renderer = renderer_of(AutoTokenizer.from_pretrained(folder), folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    made = [renderer.render([Message("user", q), Message("assistant", a)]) for q, a in rows.items()]
    most = max(len(row.ids) for row in made)
    ids = torch.tensor([row.ids + [0] * (most - len(row.ids)) for row in made])
    labels = torch.full_like(ids, -100)
    for i, row in enumerate(made):
        first, after = row.spans[0]
        labels[i, first:after] = ids[i, first:after]
    mask = torch.tensor([[1] * len(r.ids) + [0] * (most - len(r.ids)) for r in made])
    optimizer = torch.optim.AdamW(model.parameters(), rate)
    model.train()
    for _ in range(steps):
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if float(loss.detach()) < 0.02:
            break
    assert float(loss.detach()) < 0.05, float(loss.detach())
    model.save_pretrained(folder)
    return folder
