"""Answers while training: the same tokens as Transformers' own greedy generation, log-probabilities
equal to a plain forward pass, honest draws."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.engine.decoding.drawing import pick
from tunewright.engine.loaded import use_layout
from tunewright.engine.policy import Policy
from tunewright.engine.rollouts.sampling import How, Sampler

PROMPTS = [[5, 9, 17, 33, 40], [6, 6], [5, 9, 17], [8, 3, 100, 44, 21, 60, 7, 7, 12]]
FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2", "gpt_neox", "phi3"]


def sampler(
    model: Any,
    attached: Any = None,
    layout: str = "tree",
    stops: tuple[int, ...] = (),
    rows: int = 96,
) -> Sampler:
    use_layout(model, layout)
    return Sampler(
        Policy(attached.model if attached else model, model, layout), frozenset(stops), rows
    )


def plain_logprobs(model: Any, tokens: list[int], temperature: float = 1.0) -> torch.Tensor:
    """log p of every token after the first, through the stock model."""
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    with torch.no_grad():
        z = model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0].float() / temperature
    model.set_attn_implementation(before)
    return torch.log_softmax(z, -1)[torch.arange(len(tokens) - 1), torch.tensor(tokens[1:])]


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_equal_those_of_a_plain_pass(family: str, layout: str) -> None:
    model = tiny.make_model(family)
    how = How(3, 12, temperature=0.7)
    drawn = sampler(model, layout=layout).draw(PROMPTS, how, 0, 1)
    assert [len(answers) for answers in drawn] == [3] * 4
    for prompt, answers in zip(PROMPTS, drawn, strict=True):
        for answer in answers:
            expected = plain_logprobs(model, prompt + answer.tokens, 0.7)[len(prompt) - 1 :]
            assert len(answer.tokens) == 12 and answer.logprobs == pytest.approx(
                expected.tolist(), abs=2e-4
            )


@pytest.mark.parametrize("layout", ["tree", "padded"])
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_greedy_answers_are_transformers_own_and_end_at_a_stop_token(
    family: str, layout: str
) -> None:
    model = tiny.make_model(family, seed=5)
    free = sampler(model, layout=layout).draw(PROMPTS, How(1, 16, temperature=0), 0, 1)
    stop = free[0][0].tokens[4]
    drawn = sampler(model, layout=layout, stops=(stop,)).draw(
        PROMPTS, How(1, 16, temperature=0), 0, 1
    )
    model.set_attn_implementation("eager")
    for prompt, (answer,) in zip(PROMPTS, drawn, strict=True):
        ids = torch.tensor([prompt])
        out = model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=16,
            eos_token_id=stop,
            pad_token_id=0,
        )
        assert answer.tokens == out[0, len(prompt) :].tolist()
        assert answer.finished == (answer.tokens[-1] == stop)
    assert drawn[0][0].finished and len(drawn[0][0].tokens) <= 5


def test_draws_depend_on_seed_step_and_answer_and_not_on_the_batches() -> None:
    model = tiny.make_model("llama")
    how = How(4, 10)
    stops = tuple(range(3, 60))  # many, so that answers leave the batch at different times
    whole = sampler(model, stops=stops).draw(PROMPTS, how, 7, 2)
    apart = sampler(model, stops=stops, rows=4).draw(PROMPTS, how, 7, 2)
    assert [[a.tokens for a in answers] for answers in whole] == [
        [a.tokens for a in answers] for answers in apart
    ]
    lengths = {len(a.tokens) for answers in whole for a in answers}
    assert len(lengths) > 2 and any(not a.finished for answers in whole for a in answers) | (
        max(lengths) <= 10
    )
    for other in (
        sampler(model, stops=stops).draw(PROMPTS, how, 8, 2),
        sampler(model, stops=stops).draw(PROMPTS, how, 7, 3),
    ):
        assert [[a.tokens for a in answers] for answers in whole] != [
            [a.tokens for a in answers] for answers in other
        ]
    for prompt, answers in zip(PROMPTS, whole, strict=True):
        for answer in answers:
            expected = plain_logprobs(model, prompt + answer.tokens)[len(prompt) - 1 :]
            assert answer.logprobs == pytest.approx(expected.tolist(), abs=2e-4)
            assert all(t not in stops for t in answer.tokens[:-1])


@pytest.mark.parametrize("kind", ["lora", "prompt_tuning", "prefix_tuning"])
@pytest.mark.parametrize("layout", ["tree", "padded"])
def test_what_trains_takes_part_in_the_answers(kind: str, layout: str) -> None:
    from tunewright.core.registry import methods
    from tunewright.core.types import Branch, Sample
    from tunewright.models import anatomy

    model = tiny.make_model("llama")
    entry = methods.get(kind)
    assert entry is not None
    torch.manual_seed(0)
    attached = entry.function(entry.config(), model, anatomy.of(model), "tiny")
    tiny.randomise(attached, spread=0.3)
    made = sampler(model, attached, layout)
    drawn = made.draw(PROMPTS, How(2, 6), 0, 1)
    for prompt, answers in zip(PROMPTS, drawn, strict=True):
        for answer in answers:
            tokens = prompt + answer.tokens
            branch = Branch(
                tokens, list(range(len(prompt), len(tokens))), [1.0] * len(answer.tokens)
            )
            with torch.no_grad():
                again = made.policy([Sample([branch], 0)]).logprob
            assert answer.logprobs == pytest.approx(again.tolist(), abs=2e-4)


def test_picks_follow_the_probabilities_top_p_and_top_k() -> None:
    chances = torch.tensor([[0.5, 0.0, 0.3, 0.15, 0.05]], dtype=torch.float64)
    luck = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    rows = chances.log().expand(2000, -1)
    counts = torch.bincount(pick(rows, luck, How(1, 1)), minlength=5) / 2000
    assert counts.tolist() == pytest.approx([0.5, 0, 0.3, 0.15, 0.05], abs=1e-3)
    counts = torch.bincount(pick(rows, luck, How(1, 1, top_p=0.7)), minlength=5) / 2000
    assert counts.tolist() == pytest.approx([0.625, 0, 0.375, 0, 0], abs=1e-3)
    counts = torch.bincount(pick(rows, luck, How(1, 1, top_k=3)), minlength=5) / 2000
    assert counts.tolist() == pytest.approx([0.5 / 0.95, 0, 0.3 / 0.95, 0.15 / 0.95, 0], abs=1e-3)
    assert pick(rows[:1], torch.tensor([1.0], dtype=torch.float64), How(1, 1)).tolist() == [4]
