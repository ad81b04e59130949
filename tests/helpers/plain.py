"""Trainings by plain Transformers code, as people write them by hand, right and wrong. Nothing of
the code under test."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

THINGS = ["mill", "ford", "barn", "quay", "moor", "glen", "pier", "holt"]
COLOURS = ["red", "blue", "green", "gold", "pink", "grey"]
Labels = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
"""(ids, attention, labels of the answers alone) -> labels."""


def rows(count: int = 16) -> list[dict[str, str]]:
    """Questions whose answers follow from nothing but the row."""
    found = []
    for i in range(count):
        thing = THINGS[i % len(THINGS)] + str(i // len(THINGS))
        colours = COLOURS[i * 5 % 6], COLOURS[(i * i + i // 6) % 6]
        found.append({"question": f"the {thing}?", "answer": f"{colours[0]} or {colours[1]}"})
    return found


def write(path: Path, given: list[dict[str, Any]]) -> Path:
    path.write_text(json.dumps(given), encoding="utf-8")
    return path


def batch(
    tokenizer: Any,
    given: list[dict[str, str]],
    *,
    form: str = "",
    stop: bool = True,
    most: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(ids, attention, labels) of rows, padded on the right. `form` takes the place of the chat
    template."""
    texts, begins = [], []
    for row in given:
        messages = [{"role": "user", "content": row["question"]}]
        before = form.replace("{q}", row["question"]) or tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True
        )
        text = before + row["answer"] + (tokenizer.eos_token if stop else "")
        texts.append(tokenizer(text)["input_ids"][:most])
        begins.append(len(tokenizer(before)["input_ids"]))
    longest = max(map(len, texts))
    pad = tokenizer.pad_token_id
    ids = torch.tensor([text + [pad] * (longest - len(text)) for text in texts])
    lengths = torch.tensor([len(text) for text in texts])[:, None]
    places = torch.arange(longest)[None]
    attention = (places < lengths).long()
    learnt = (places >= torch.tensor(begins)[:, None]) & (attention == 1)
    return ids, attention, ids.masked_fill(~learnt, -100)


def train(
    base: Path,
    out: Path,
    given: list[dict[str, str]] | None = None,
    *,
    labels: Labels = lambda ids, attention, answers: answers,
    steps: int = 90,
    rate: float = 4e-3,
    lora: bool = False,
    **how: Any,
) -> Path:
    """Train the model of `base` and save it, with Transformers' log, in `out`."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(base)
    model: Any = AutoModelForCausalLM.from_pretrained(base)
    if lora:
        settings = LoraConfig(
            r=16, lora_alpha=32, target_modules="all-linear", task_type="CAUSAL_LM"
        )
        model = get_peft_model(model, settings)
    ids, attention, answers = batch(tokenizer, given or rows(), **how)
    wanted = labels(ids, attention, answers)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=rate)
    log = []
    model.train()
    for step in range(steps):
        some = torch.randperm(len(ids))[:12]
        loss = model(input_ids=ids[some], attention_mask=attention[some], labels=wanted[some]).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        figures = {"loss": loss.item(), "grad_norm": norm.item(), "learning_rate": rate}
        log.append({"step": step + 1, **figures})
    model.save_pretrained(out)
    if not lora:
        tokenizer.save_pretrained(out)
    state = {"global_step": steps, "log_history": log}
    (out / "trainer_state.json").write_text(json.dumps(state), encoding="utf-8")
    return out


def edit(path: Path, **keys: Any) -> None:
    """Change keys of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    path.write_text(json.dumps({**content, **keys}), encoding="utf-8")
