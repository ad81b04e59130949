"""A tiny model that adds, and compares, two numbers with written steps in its thought, as digits;
its template is of Qwen3's shape."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers import families
from tunewright.core.types import Message

CHARACTERS = "0123456789+=;,>?abcdefghijklmnopqrstuvwxyz \n"
WORDS = ("system", "user", "assistant", "<think>", "</think>")


def tokenizer() -> Any:
    """A token for each character."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocab = {c: i for i, c in enumerate(CHARACTERS)}
    made = Tokenizer(models.WordLevel(vocab, unk_token="z"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    made.decoder = decoders.Fuse()
    made.add_special_tokens([AddedToken(s, special=True, normalized=False) for s in families.IM])
    made.add_tokens([AddedToken(s, special=False, normalized=False) for s in WORDS])
    whole = PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    whole.chat_template = families.QWEN3_SWITCH
    return whole


def summed(a: int, b: int) -> tuple[str, str, str]:
    """(question, thought, answer) of a sum, digit by digit from the right."""
    low = a % 10 + b % 10
    high = a // 10 + b // 10 + low // 10
    thought = f"{a % 10}+{b % 10}={low};{a // 10}+{b // 10}+{low // 10}={high}"
    return f"{a:02d}+{b:02d}", thought, f"{a + b}"


def larger(a: int, b: int) -> tuple[str, str, str]:
    """(question, thought, answer) of which number is larger, digit by digit from the left."""
    return f"{a:02d}?{b:02d}", f"{a // 10},{b // 10};{a % 10},{b % 10}", f"{max(a, b):02d}"


Task = Callable[[int, int], tuple[str, str, str]]


def pairs(seed: int = 0) -> list[tuple[int, int]]:
    """All pairs of numbers below 100, shuffled: the first ones are held out."""
    found = [(a, b) for a in range(100) for b in range(100)]
    random.Random(seed).shuffle(found)
    return found


def whole(task: Task, a: int, b: int) -> str:
    """The answer with its thought."""
    _, thought, answer = task(a, b)
    return f"<think>\n{thought}\n</think>\n\n{answer}"


def taught(place: Path, held: int, steps: int = 900, batch: int = 64) -> Path:
    """A model that was taught both tasks on all pairs but the first `held`, in a folder."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    from tunewright.text.renderer import Renderer

    torch.manual_seed(0)
    words = tokenizer()  # beside a configuration of Qwen2's another pipeline would be made of it
    renderer = Renderer(words)
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=64, intermediate_size=128, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=256,
        tie_word_embeddings=True, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    model = AutoModelForCausalLM.from_config(config)
    draw, known = random.Random(1), pairs()[held:]
    optimizer = torch.optim.AdamW(model.parameters(), 4e-3, betas=(0.9, 0.98))
    for step in range(steps):
        rows = []
        for i, (a, b) in enumerate(draw.sample(known, batch)):
            task = larger if i % 4 == 0 else summed
            turns = [Message("user", task(a, b)[0]), Message("assistant", whole(task, a, b))]
            rows.append(renderer.render(turns))
        most = max(len(row.ids) for row in rows)
        pad = words.pad_token_id
        ids = torch.tensor([row.ids + [pad] * (most - len(row.ids)) for row in rows])
        labels = torch.full_like(ids, -100)
        for i, row in enumerate(rows):
            first, after = row.spans[0]
            labels[i, first:after] = ids[i, first:after]
        for group in optimizer.param_groups:
            group["lr"] = 4e-3 * min(1.0, (step + 1) / 50) * (1 - 0.95 * step / steps)
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(place)
    words.save_pretrained(str(place))
    return place


def right_steps(target: Path, held: list[tuple[int, int]], think: bool | None = True) -> float:
    """The share of held-out sums to which a model writes exactly the right steps and answer."""
    from tunewright.core.telling import Quiet
    from tunewright.engine.decoding.answers import answer
    from tunewright.serve.answering import open_target

    opened = open_target(str(target), Quiet(), dtype="float32", think=think)
    asked = [[Message("user", summed(a, b)[0])] for a, b in held]
    found = answer(
        opened.answering, [opened.renderer.prompt(one) for one in asked], max_new_tokens=48
    )
    wanted = [whole(summed, a, b) for a, b in held]
    return sum(one.text == text for one, text in zip(found, wanted, strict=True)) / len(held)
