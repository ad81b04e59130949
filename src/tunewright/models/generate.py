"""Answers from a model: greedy or sampled, many questions at once, with the model's stock attention."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def stock_attention(model: Any) -> Iterator[None]:
    """Inside, `model` (the causal model) uses a stock attention, as it will wherever it is used after training."""
    before = model.config._attn_implementation
    was_training = model.training
    model.set_attn_implementation("sdpa" if getattr(model, "_supports_sdpa", True) else "eager")
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        model.train(was_training)


@contextmanager
def dense_head_input(model: Any) -> Iterator[None]:
    """Inside, the output head sees contiguous rows.

    While it reads prompts, Transformers hands the head a strided slice (the last row of each), and PyTorch's product then copies the whole head weight
    once per prompt: 60 prompts cost SmolLM2 3.3 GiB and more than a second.
    """
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:])) if head is not None else None
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


def answer(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    stop_ids: list[int],
    *,
    max_new_tokens: int = 64,
    batch_tokens: int = 8192,
    check: Callable[[], None] | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> list[str]:
    """Greedy answers to `prompts` (token ids that end where the answer begins), in their order, without the stop token.

    Prompts of similar length are answered together, at most `batch_tokens` prompt tokens at once. `check` is called between batches and may raise.
    """
    import torch

    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    answers = [""] * len(prompts)
    with stock_attention(model), dense_head_input(model), torch.inference_mode():
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and (stop - start + 1) * (len(prompts[order[stop]]) + max_new_tokens) <= batch_tokens:
                stop += 1
            batch = order[start:stop]
            for i, text in zip(batch, _one_batch(model, tokenizer, [prompts[i] for i in batch], stop_ids, max_new_tokens), strict=True):
                answers[i] = text
            start = stop
            if on_batch:
                on_batch(start)
            if check:
                check()
    return answers


def _one_batch(model: Any, tokenizer: Any, prompts: list[list[int]], stop_ids: list[int], max_new_tokens: int) -> list[str]:
    import torch

    longest = max(len(p) for p in prompts)
    # Padding stands on the left and is masked by position; any id serves.
    pad = stop_ids[0] if stop_ids else 0
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    out = model.generate(
        input_ids=ids,
        attention_mask=mask,
        generation_config=generation_config(model, stop_ids, max_new_tokens, pad),
    )
    return [decode_answer(tokenizer, row[longest:].tolist(), stop_ids) for row in out]


def generation_config(model: Any, stop_ids: list[int], max_new_tokens: int, pad: int, temperature: float = 0.0) -> Any:
    """Greedy at temperature 0. Sampling defaults that a model's folder brings are left out on purpose: before and after must differ by training alone."""
    from transformers import GenerationConfig

    settings: dict[str, Any] = {"do_sample": False} if temperature == 0 else {"do_sample": True, "temperature": temperature}
    return GenerationConfig(max_new_tokens=max_new_tokens, eos_token_id=stop_ids or None, pad_token_id=pad, **settings)


def decode_answer(tokenizer: Any, ids: list[int], stop_ids: list[int]) -> str:
    """Text up to the first stop token."""
    for i, token in enumerate(ids):
        if token in stop_ids:
            ids = ids[:i]
            break
    return str(tokenizer.decode(ids, skip_special_tokens=True)).strip()


def stream(
    model: Any, tokenizer: Any, prompt: list[int], stop_ids: list[int], *, max_new_tokens: int = 512, temperature: float = 0.0
) -> Iterator[str]:
    """Pieces of one answer as they are made; joined they are the answer. The model's attention must be a stock one."""
    import threading

    import torch
    from transformers import TextIteratorStreamer

    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True, skip_special_tokens=True)
    pad = stop_ids[0] if stop_ids else 0
    ids = torch.tensor([prompt], device=model.device)
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode(), dense_head_input(model):
                model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    generation_config=generation_config(model, stop_ids, max_new_tokens, pad, temperature),
                    streamer=streamer,
                )
        except BaseException as e:
            failed.append(e)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    yield from streamer
    thread.join()
    if failed:
        raise failed[0]
