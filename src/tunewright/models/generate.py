"""Answers from a model: greedy or sampled, many questions at once, with the model's stock
attention.

Whoever wants an answer, in whatever command, gives an `AnsweringModel`, and `answering` alone makes
one: it puts the method where it generates and knows the stops and the room of the context, so no
command can ask the base in place of the run, run past a stop or past the end of the context.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from tunewright.core.errors import ModelError, problem
from tunewright.core.telling import silent
from tunewright.core.types import Attached
from tunewright.models.limits import ANSWER_ROWS
from tunewright.models.load import context_of

End = Literal["stop", "limit", "context", "no_room"]
"""How an answer ended: by a stop token; at the most tokens asked for; at the end of the context;
before it began, because the question fills the context."""


@dataclass(frozen=True)
class Answer:
    """One answer, without its stop token, and how it ended."""

    text: str
    end: End
    tokens: list[int] = field(default_factory=list)
    """The token ids written, without the stop token."""


@dataclass(frozen=True)
class AnsweringModel:
    """What answers: the model with its method on it, and the form in which it is asked. Made by
    `answering` only."""

    causal: Any
    attached: Attached | None
    renderer: Any
    """Template, tokenizer and stop tokens."""
    vocabulary: int | None = None
    """Ids from here on are never written: rows that a method added to the base, when the base
    itself is asked."""

    @property
    def tokenizer(self) -> Any:
        return self.renderer.tokenizer

    @property
    def stop_ids(self) -> list[int]:
        return list(self.renderer.stop_ids)

    @property
    def generator(self) -> Any:
        """The object whose `generate` has the method in it."""
        return self.causal if self.attached is None else self.attached.generator or self.causal

    def room(self, asked: int) -> int | None:
        """Tokens that an answer may have after a question of `asked` tokens; None where the model
        names no limit."""
        context = room_of(
            self.causal, self.causal if self.attached is None else self.attached.model
        )
        return None if context is None else max(0, context - asked)


def answering(
    causal: Any, attached: Attached | None, renderer: Any, *, vocabulary: int | None = None
) -> AnsweringModel:
    """The causal model with the method on it, ready to be asked: the one way to an answer."""
    return AnsweringModel(causal, attached, renderer, vocabulary)


def room_of(causal: Any, model: Any) -> int | None:
    """Tokens that question and answer may have together: the context less what a learnt prompt
    takes of it. None where the model names no limit."""
    context = context_of(causal.config)
    prompt = getattr(model, "virtual_prompt", lambda: None)()
    return None if context is None else context - (prompt.num_tokens if prompt is not None else 0)


@contextmanager
def stock_attention(model: Any) -> Iterator[None]:
    """Inside, `model` (the causal model) uses a stock attention, as it will wherever it is used
    after training."""
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

    While it reads prompts, Transformers hands the head a strided slice (the last row of each), and
    PyTorch's product then copies the whole head weight once per prompt: 60 prompts cost SmolLM2 3.3
    GiB and more than a second.
    """
    head = model.get_output_embeddings()
    hook = (
        head.register_forward_pre_hook(lambda _, given: (given[0].contiguous(), *given[1:]))
        if head is not None
        else None
    )
    try:
        yield
    finally:
        if hook is not None:
            hook.remove()


@contextmanager
def own_settings(model: Any) -> Iterator[None]:
    """Inside, `generate` of the causal model follows our settings alone, and libraries say nothing
    into the answer.

    Transformers fills what is not set from the folder's generation config (a repetition penalty, a
    longest length), with a notice for some of it.
    """
    from transformers import GenerationConfig

    before = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        with silent(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        model.generation_config = before


def answer(
    model: AnsweringModel,
    prompts: list[list[int]],
    *,
    max_new_tokens: int | Sequence[int] = 64,
    check: Callable[[], None] | None = None,
    progress: Callable[[int, int, int], None] | None = None,
) -> list[Answer]:
    """Greedy answers to `prompts` (token ids that end where the answer begins), in their order.

    `max_new_tokens` is the most tokens of an answer, one number or one for each prompt. An answer
    ends at the end of the context; a question that fills the context gets an empty one. `progress`
    is called about once a decoding step with (answers done, tokens written so far, most tokens that
    may be written in all); `check` as often, and may raise.
    """
    import torch

    asked = [max_new_tokens] * len(prompts) if isinstance(max_new_tokens, int) else max_new_tokens
    whole = model.room(0)
    rooms = [
        most if whole is None else max(0, min(most, whole - len(p)))
        for p, most in zip(prompts, asked, strict=True)
    ]
    answers = [Answer("", "no_room")] * len(prompts)
    done, written, most = rooms.count(0), 0, sum(rooms)

    def step(rows: int) -> None:
        nonlocal written
        written += rows
        if progress:
            progress(done, min(written, most), most)
        if check:
            check()

    with (
        stock_attention(model.causal),
        dense_head_input(model.causal),
        own_settings(model.causal),
        torch.inference_mode(),
    ):
        for batch in _batches(prompts, rooms, whole):
            before = written
            found = _one_batch(model, [prompts[i] for i in batch], [rooms[i] for i in batch], step)
            for i, ids in zip(batch, found, strict=True):
                answers[i] = _answer(model, ids, "context" if rooms[i] < asked[i] else "limit")
            done, written = done + len(batch), before + sum(len(answers[i].tokens) for i in batch)
            if progress:
                progress(done, written, most)
    return answers


def _batches(
    prompts: list[list[int]], rooms: Sequence[int], whole: int | None
) -> Iterator[list[int]]:
    """Prompts that are answered together: of similar length, at most `ANSWER_ROWS` token rows with
    what they may write, and none so long that its neighbours' answers lead it out of the context
    (`whole`)."""
    order = sorted((i for i, room in enumerate(rooms) if room), key=lambda i: len(prompts[i]))
    start = 0
    while start < len(order):
        stop, longest = start + 1, rooms[order[start]]
        while stop < len(order):
            asked = len(prompts[order[stop]])
            longest = max(longest, rooms[order[stop]])
            if whole is not None and asked + longest > whole:
                break
            if (stop - start + 1) * (asked + longest) > ANSWER_ROWS:
                break
            stop += 1
        yield order[start:stop]
        start = stop


def _one_batch(
    model: AnsweringModel, prompts: list[list[int]], rooms: list[int], step: Callable[[int], None]
) -> list[list[int]]:
    """The token ids written after each prompt, at most its `rooms`; what follows a stop token means
    nothing. `step` is called after each decoding step with the number of rows it wrote."""
    import torch

    longest = max(len(p) for p in prompts)
    # Padding stands on the left and is masked by position; any id serves.
    pad = model.stop_ids[0] if model.stop_ids else 0
    device = model.causal.device
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts], device=device)
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    settings = generation_config(
        model.causal, model.stop_ids, max(rooms), pad, vocabulary=model.vocabulary
    )

    def count(so_far: Any, scores: Any, **_: Any) -> Any:
        step(len(so_far))  # a learnt prompt answers questions of one length at a time
        return torch.zeros(len(so_far), dtype=torch.bool, device=so_far.device)

    out = model.generator.generate(
        input_ids=ids, attention_mask=mask, generation_config=settings, stopping_criteria=[count]
    )
    return [row[longest : longest + room].tolist() for row, room in zip(out, rooms, strict=True)]


def generation_config(
    model: Any,
    stop_ids: list[int],
    max_new_tokens: int,
    pad: int,
    temperature: float = 0.0,
    vocabulary: int | None = None,
) -> Any:
    """Greedy at temperature 0. Settings that a model's folder brings are left out on purpose:
    before and after must differ by training alone."""
    from transformers import GenerationConfig

    settings: dict[str, Any] = (
        {"do_sample": False}
        if temperature == 0
        else {"do_sample": True, "temperature": temperature}
    )
    rows = model.get_input_embeddings().weight.shape[0]
    if vocabulary is not None and vocabulary < rows:
        settings["suppress_tokens"] = list(range(vocabulary, rows))
    return GenerationConfig(
        max_new_tokens=max_new_tokens, eos_token_id=stop_ids or None, pad_token_id=pad, **settings
    )


def _answer(model: AnsweringModel, ids: list[int], cut: End) -> Answer:
    """The answer that token ids spell up to the first stop token; `cut` is how it ended where there
    is none."""
    stop = next((i for i, token in enumerate(ids) if token in model.stop_ids), None)
    return Answer(
        str(model.tokenizer.decode(ids[:stop], skip_special_tokens=True)).strip(),
        cut if stop is None else "stop",
        ids[:stop],
    )


def stream(
    model: AnsweringModel,
    prompt: list[int],
    on_piece: Callable[[str], None],
    *,
    max_new_tokens: int = 512,
    temperature: float = 0.0,
) -> Answer:
    """One answer; `on_piece` gets it in pieces as they are made. Raises ModelError for a question
    that fills the context."""
    import threading

    import torch

    room = model.room(len(prompt))
    if room == 0:
        raise ModelError(
            problem("E-MODEL-57", "", tokens=f"{len(prompt):,}", context=f"{model.room(0):,}")
        )
    most = max_new_tokens if room is None else min(room, max_new_tokens)
    streamer = _streamer(model)
    pad = model.stop_ids[0] if model.stop_ids else 0
    ids = torch.tensor([prompt], device=model.causal.device)
    settings = generation_config(
        model.causal, model.stop_ids, most, pad, temperature, model.vocabulary
    )
    written: list[Any] = []
    failed: list[BaseException] = []

    def work() -> None:
        try:
            with torch.inference_mode(), dense_head_input(model.causal):
                written.append(
                    model.generator.generate(
                        input_ids=ids,
                        attention_mask=torch.ones_like(ids),
                        generation_config=settings,
                        streamer=streamer,
                    )
                )
        except BaseException as e:
            failed.append(e)
            streamer.end()

    thread = threading.Thread(target=work, daemon=True)
    with own_settings(model.causal):
        thread.start()
        for piece in streamer:
            on_piece(piece)
        thread.join()
    if failed:
        raise failed[0]
    return _answer(
        model,
        written[0][0, len(prompt) :].tolist(),
        "context" if most < max_new_tokens else "limit",
    )


def _streamer(model: AnsweringModel) -> Any:
    """The text of an answer as its tokens come, without the stop token, which need not be a special
    one."""
    from transformers import TextIteratorStreamer

    stops = set(model.stop_ids)

    class Pieces(TextIteratorStreamer):
        def put(self, value: Any) -> None:
            if self.next_tokens_are_prompt or not stops & set(value.flatten().tolist()):
                super().put(value)

    return Pieces(model.tokenizer, skip_prompt=True, skip_special_tokens=True)
