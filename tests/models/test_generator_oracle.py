"""The generator against Transformers' own `generate`, which is asked one prompt at a time without
padding: greedy tokens, draws, log-probabilities, ends, and the state in which a model is left."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.seeds import stream_seed
from tunewright.engine.decoding import batch
from tunewright.engine.decoding.answers import Answer, AnsweringModel, answer, answering, stream
from tunewright.engine.loaded import use_layout
from tunewright.engine.policy import Policy
from tunewright.engine.rollouts.sampling import Drawn, How, Sampler

TOKENS = 10
"""Longest answer: with a prompt, far longer than the sliding windows (`tiny.WINDOW`)."""
GAP = 1e-4
"""Least distance of the likeliest token's logit from the next one's in any answer that is compared.
Logits of one text computed in two ways differ by 1e-5 to 3e-5 here (float32), so no answer hangs on
rounding."""
DELTA = {
    "head_dim": 16, "layer_types": ["linear_attention", "full_attention"], "linear_num_value_heads": 4, "linear_num_key_heads": 2,
    "linear_key_head_dim": 8, "linear_value_head_dim": 8,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2}
MAMBA = {"mamba_d_state": 8, "mamba_d_conv": 4, "mamba_expand": 2}
FAMILIES: dict[str, dict[str, Any]] = {
    **{name: {} for name in ("llama", "qwen2", "qwen3", "mistral", "phi3", "gemma2")},
    **{name: {} for name in ("gemma3_text", "gpt2", "gpt_neox")},
    "mixtral": {**EXPERTS, "num_local_experts": 4},
    "olmoe": {**EXPERTS, "num_experts": 4},
}
HYBRID: dict[str, dict[str, Any]] = {
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"], "num_hidden_layers": 3, "block_multiple_of": 16},
    "qwen3_5_text": DELTA,
    "qwen3_next": {**DELTA, **EXPERTS, "num_experts": 4, "moe_intermediate_size": 16, "shared_expert_intermediate_size": 16},
    "jamba": {
        **MAMBA, "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2,
        "expert_layer_offset": 1,
    },
    "mamba2": {"num_heads": 4, "head_dim": 24, "state_size": 8, "n_groups": 1, "chunk_size": 16, "expand": 2},
}  # fmt: skip
"""Families whose blocks keep a state of their own instead of, or beside, keys and values."""
SEEDS = {"mamba2": 1}
"""Seed of the weights, where those of seed 0 bring a tie closer than GAP."""


@dataclass
class Words:
    """A tokenizer whose text says every token: `t5 t17`."""

    count: int = tiny.VOCABULARY

    def build(self) -> Any:
        from tokenizers import Tokenizer, models, pre_tokenizers
        from transformers import PreTrainedTokenizerFast

        vocabulary = {f"t{i}": i for i in range(self.count)}
        backend = Tokenizer(models.WordLevel(vocabulary, unk_token="t0"))
        backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        return PreTrainedTokenizerFast(tokenizer_object=backend, clean_up_tokenization_spaces=False)


TOKENIZER = Words().build()


def renderer_of(tokenizer: Any, stops: Any) -> Any:
    """What answering asks of a renderer, for a template without thoughts."""
    return SimpleNamespace(
        tokenizer=tokenizer,
        stop_ids=stops,
        reads_marks=False,
        read=lambda ids: tokenizer.decode(list(ids), skip_special_tokens=True),
        decode=lambda ids: tokenizer.decode(list(ids)),
    )


def tokens_of(found: Answer) -> list[int]:
    """The token ids of an answer, read from its text."""
    return [int(word[1:]) for word in found.text.split()]


def built(family: str, **changes: Any) -> Any:
    settings = {**FAMILIES, **HYBRID}[family]
    return tiny.make_model(family, seed=SEEDS.get(family, 0), **{**settings, **changes})


def asking(model: Any, stops: tuple[int, ...] = (), attached: Any = None) -> AnsweringModel:
    return answering(model, attached, renderer_of(TOKENIZER, stops))


def make_prompts(count: int = 200, seed: int = 1) -> list[list[int]]:
    """`count` prompts of 1 to 60 tokens: half of them exactly like others, a third sharing a long
    beginning at several depths, some the beginning of others."""
    draw = random.Random(seed)
    trunk, deeper = tiny.words(draw, 40), tiny.words(draw, 8)
    apart = [tiny.words(draw, 1 + draw.randrange(60)) for _ in range(count // 5)]
    forked = [trunk + tiny.words(draw, 1 + i) for i in range(count // 20)]
    forked += [trunk[: 3 * i + 2] + tiny.words(draw, 2) for i in range(count // 20)]
    forked += [trunk + deeper + tiny.words(draw, 1 + i % 12) for i in range(count // 20)]
    begun = [trunk[: 4 * i + 1] for i in range(count // 20)]
    different = [*apart, *forked, *begun]
    prompts = different + [draw.choice(different) for _ in range(count - len(different))]
    draw.shuffle(prompts)
    return prompts


class Oracle:
    """Transformers' greedy `generate`, one prompt at a time; equal prompts once."""

    def __init__(self, model: Any, **more: Any) -> None:
        self.model, self.more = model, more
        self.known: dict[tuple[int, ...], list[int]] = {}
        self.gap = float("inf")

    def __call__(self, prompt: list[int], count: int = TOKENS) -> list[int]:
        """The first `count` tokens, past any stop."""
        key = tuple(prompt)
        if len(self.known.get(key, [])) < count:
            self.known[key] = self._ask(prompt, count)
        return self.known[key][:count]

    def _ask(self, prompt: list[int], count: int) -> list[int]:
        ids = torch.tensor([prompt])
        with torch.inference_mode(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            out = self.model.generate(
                input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=count, eos_token_id=None, pad_token_id=0,
                return_dict_in_generate=True, output_logits=True,
            )  # fmt: skip
        best = torch.stack(out.logits)[:, 0].topk(2).values
        self.gap = min(self.gap, float((best[:, 0] - best[:, 1]).min()))
        written: list[int] = out.sequences[0, len(prompt) :].tolist()
        return written

    def stopped(self, prompt: list[int], stops: tuple[int, ...], count: int = TOKENS) -> list[int]:
        """The tokens up to the first stop, without it."""
        return until(self(prompt, count), stops)


def until(written: list[int], stops: tuple[int, ...]) -> list[int]:
    return written[: next((i for i, token in enumerate(written) if token in stops), len(written))]


def stops_of(texts: list[list[int]]) -> tuple[int, ...]:
    """Two tokens that end some of the answers and leave others whole."""
    often = Counter(token for written in texts for token in set(written[2:]))
    return tuple([t for t, n in often.most_common() if n < 0.4 * len(texts)][:2])


# ---- greedy tokens


SHOWN = ("llama", "gemma3_text", "qwen3_5_text")
"""Families with a cache of each kind: keys and values, a window, a state."""


@pytest.mark.wide("llama", rest="slow")
@pytest.mark.parametrize(
    "family",
    [
        pytest.param(name, marks=() if name in SHOWN else pytest.mark.slow)
        for name in (*FAMILIES, *HYBRID)
    ],
)
def test_greedy_tokens_are_those_of_generate_for_200_prompts(family: str) -> None:
    """`slow`: the other families, of which fifty prompts are asked below."""
    greedy_tokens_are_those_of_generate(family, make_prompts())


@pytest.mark.wide("qwen3", "gemma2", "gpt2", rest="slow")
@pytest.mark.parametrize("family", [name for name in (*FAMILIES, *HYBRID) if name not in SHOWN])
def test_greedy_tokens_are_those_of_generate_for_50_prompts(family: str) -> None:
    greedy_tokens_are_those_of_generate(family, make_prompts()[:50])


def greedy_tokens_are_those_of_generate(family: str, prompts: list[list[int]]) -> None:
    model = built(family)
    assert len({tuple(p) for p in prompts}) <= max(100, len(prompts) - 5)
    assert min(map(len, prompts)) <= 4 and 50 <= max(map(len, prompts)) <= 60
    oracle = Oracle(model)
    free = [oracle(prompt) for prompt in prompts]
    stops = stops_of(free)
    found = answer(asking(model, stops), prompts, max_new_tokens=TOKENS)
    assert [tokens_of(one) for one in found] == [oracle.stopped(p, stops) for p in prompts]
    ends = Counter(one.end for one in found)
    assert set(ends) == {"stop", "limit"} and min(ends.values()) >= len(prompts) // 14
    assert oracle.gap > GAP


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "lfm2"])
def test_an_answer_does_not_depend_on_who_is_asked_beside_it(family: str) -> None:
    model, prompts = built(family), make_prompts(40, seed=3)
    made = asking(model)
    together = answer(made, prompts, max_new_tokens=TOKENS)
    assert [answer(made, [p], max_new_tokens=TOKENS)[0] for p in prompts[:8]] == together[:8]
    assert answer(made, prompts[::-1], max_new_tokens=TOKENS) == together[::-1]
    assert answer(made, [], max_new_tokens=TOKENS) == []


# ---- methods, beside PEFT's own `generate`


def peft_configs() -> dict[str, Any]:
    from peft import IA3Config, LoraConfig, PrefixTuningConfig, PromptTuningConfig

    task: Any = {"task_type": "CAUSAL_LM"}
    targets = ["q_proj", "v_proj", "down_proj"]
    lora: Any = {**task, "r": 4, "lora_alpha": 8, "target_modules": targets}
    return {
        "lora": LoraConfig(**lora),
        "dora": LoraConfig(**lora, use_dora=True),
        "ia3": IA3Config(**task, target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]),
        "prefix_tuning": PrefixTuningConfig(**task, num_virtual_tokens=5),
        "prompt_tuning": PromptTuningConfig(**task, num_virtual_tokens=5),
    }  # fmt: skip


def put_on(kind: str, family: str, place: Path) -> tuple[Any, Any, Any]:
    """(the PEFT model that the oracle asks, our causal model, our `Attached` on it)."""
    from peft import get_peft_model

    from tunewright.methods import saved

    torch.manual_seed(2)
    theirs = get_peft_model(built(family), peft_configs()[kind]).eval()
    with torch.no_grad():
        for parameter in theirs.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape) * (0.6 if kind == "ia3" else 0.3))
    theirs.save_pretrained(str(place), save_embedding_layers=False)
    causal = built(family)
    return theirs, causal, saved.put_on(causal, place)


@pytest.mark.wide("lora-llama", "prefix_tuning-llama", rest="slow")
@pytest.mark.parametrize(
    ("kind", "family"),
    [
        *((kind, "llama") for kind in ("lora", "dora", "ia3", "prefix_tuning", "prompt_tuning")),
        *((kind, "mistral") for kind in ("lora", "prefix_tuning", "prompt_tuning")),
        ("lora", "qwen3_5_text"),
    ],
)
def test_answers_with_a_method_on_are_those_of_peft(kind: str, family: str, tmp_path: Path) -> None:
    theirs, causal, attached = put_on(kind, family, tmp_path / "adapter")
    prompts = make_prompts(40, seed=2)
    oracle, plain = Oracle(theirs), Oracle(built(family))
    wanted = [oracle(prompt, 8) for prompt in prompts]
    made = asking(causal, (), attached)
    assert [tokens_of(one) for one in answer(made, prompts, max_new_tokens=8)] == wanted
    assert attached.disabled is not None
    with attached.disabled():
        without = answer(made, prompts, max_new_tokens=8)
    assert [tokens_of(one) for one in without] == [plain(prompt, 8) for prompt in prompts] != wanted
    assert [tokens_of(one) for one in answer(made, prompts, max_new_tokens=8)] == wanted
    assert min(oracle.gap, plain.gap) > GAP


def test_rows_that_a_method_added_are_never_written() -> None:
    """The base's own vocabulary ends at 150: no answer of the base holds an id from there on."""
    model, prompts = built("llama"), make_prompts(20)
    made = answering(model, None, renderer_of(TOKENIZER, ()), vocabulary=150)
    ids = [tokens_of(one) for one in answer(made, prompts, max_new_tokens=TOKENS)]
    with torch.no_grad():
        model.lm_head.weight[150:] = 0  # a zero is never the likeliest of 150 large numbers
    oracle = Oracle(model)
    assert ids == [oracle(prompt) for prompt in prompts] and max(map(max, ids)) < 150


# ---- drawn answers


STOPS = tuple(range(3, 12))
"""Many, so that answers end at different times."""
HOWS = {
    "plain": How(3, 10),
    "warm": How(3, 10, temperature=1.4),
    "top_p": How(3, 10, top_p=0.8),
    "top_k": How(3, 10, top_k=5),
    "both": How(3, 10, temperature=0.8, top_p=0.9, top_k=20),
    "greedy": How(1, 10, temperature=0),
}


def sampler(family: str, rows: int = 96, check: Callable[[], None] | None = None) -> Sampler:
    model = built(family)
    layout = "padded" if family in HYBRID else "tree"
    use_layout(model, layout)
    return Sampler(Policy(model, model, layout), frozenset(STOPS), rows, check)


def by_hand(model: Any, prompts: list[list[int]], how: How) -> tuple[list[list[list[int]]], float]:
    """(tokens of every answer, least distance of a draw from another token): a whole forward pass
    for every token, and the first token of the vocabulary whose summed probability passes the
    answer's number."""
    generator = torch.Generator().manual_seed(stream_seed(7, "rollout", 2))
    luck = torch.rand(
        len(prompts) * how.num_answers, how.max_new_tokens, generator=generator, dtype=torch.float64
    )
    found, margin = [], 1.0
    for place, prompt in enumerate(prompts):
        answers = []
        for k in range(how.num_answers):
            written: list[int] = []
            while len(written) < how.max_new_tokens and not set(STOPS) & set(written[-1:]):
                number = float(luck[place * how.num_answers + k, len(written)])
                token, near = one_draw(model, prompt + written, how, number)
                margin = min(margin, near)
                written.append(token)
            answers.append(written)
        found.append(answers)
    return found, margin


def one_draw(model: Any, ids: list[int], how: How, number: float) -> tuple[int, float]:
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    chance = torch.softmax(logits / (how.temperature or 1.0), -1).tolist()
    order = sorted(range(len(chance)), key=lambda i: -chance[i])
    if how.temperature == 0:
        return order[0], chance[order[0]] - chance[order[1]]
    kept, summed = [], 0.0
    for token in order[: how.top_k or len(order)]:
        if summed >= how.top_p:
            break
        kept.append(token)
        summed += chance[token]
    before = 0.0
    for token in sorted(kept):
        after = before + chance[token] / summed
        if number < after:
            return token, min(number - before, after - number)
        before = after
    raise AssertionError("the probabilities sum to less than the number")


@pytest.mark.wide("both-llama", "greedy-llama", "both-qwen3_next")
@pytest.mark.parametrize(
    ("name", "family"),
    [*((name, "llama") for name in HOWS), ("both", "mistral"), ("both", "qwen3_next")],
)
def test_draws_are_those_of_a_loop_by_hand_whatever_the_batching(name: str, family: str) -> None:
    how, prompts = HOWS[name], make_prompts(20, seed=4)[:6]
    prompts.append(prompts[0])
    drawn = {rows: draw(sampler(family, rows), prompts, how) for rows in (1, 5, 96)}
    tokens = {rows: [[a.tokens for a in some] for some in all_] for rows, all_ in drawn.items()}
    wanted, margin = by_hand(built(family), prompts, how)
    assert tokens[96] == tokens[5] == tokens[1] == wanted
    assert margin > 1e-6  # probabilities computed in two ways differ by a tenth of that
    flat = [one for some in drawn[96] for one in some]
    assert all(one.finished == (one.tokens[-1] in STOPS) for one in flat)
    assert {one.finished for one in flat} == {True, False} or name == "greedy"
    if how.temperature > 0:
        assert wanted[0] != wanted[-1]  # equal prompts, different answers


def draw(made: Sampler, prompts: list[list[int]], how: How) -> list[list[Drawn]]:
    return made.draw(prompts, how, 7, 2)


@pytest.mark.parametrize(
    ("temperature", "family"),
    [
        *((1.0, family) for family in ("llama", "qwen2", "gemma2", "phi3", "mixtral", *HYBRID)),
        (0.7, "mistral"),
        (0.0, "llama"),
    ],
)
def test_log_probabilities_are_those_of_a_plain_pass(temperature: float, family: str) -> None:
    how, prompts = How(2, 10, temperature=temperature), make_prompts(20, seed=5)[:5]
    plain = built(family)
    count = 0
    for prompt, answers in zip(prompts, draw(sampler(family), prompts, how), strict=True):
        for one in answers:
            with torch.no_grad():
                logits = plain(
                    input_ids=torch.tensor([prompt + one.tokens]), use_cache=False
                ).logits[0, len(prompt) - 1 : -1]
            logprob = torch.log_softmax(logits / (temperature or 1.0), -1)
            wanted = logprob.gather(1, torch.tensor(one.tokens)[:, None])[:, 0]
            # A recurrent layer sums step by step what a plain pass sums in chunks.
            near = 5e-4 if family in HYBRID else 1e-4
            assert one.logprobs == pytest.approx(wanted.tolist(), abs=near)
            count += len(one.tokens)
    assert count > 25


# ---- how an answer ends


@pytest.mark.parametrize("family", ["llama", "gpt2", "jamba"])
def test_an_answer_ends_at_its_stop_its_limit_or_the_end_of_the_context(family: str) -> None:
    model = built(family, max_position_embeddings=48)
    luck = random.Random(6)
    prompts = [tiny.words(luck, length) for length in (47, 5, 48, 30, 44, 60, 40)]
    oracle = Oracle(model)
    free = [oracle(p, min(16, 48 - len(p))) if len(p) < 48 else [] for p in prompts]
    stop = free[3][5]
    wanted = [until(text, (stop,)) for text in free]
    found = answer(asking(model, (stop,)), prompts, max_new_tokens=16)
    assert [tokens_of(one) for one in found] == wanted
    cut = ["context", "limit", "no_room", "limit", "context", "no_room", "context"]
    for one, text, full, end in zip(found, wanted, free, cut, strict=True):
        assert one.end == ("stop" if len(text) < len(full) else end)
    assert found[3].end == "stop" and {one.end for one in found} >= {"stop", "no_room", "context"}
    assert oracle.gap > GAP


@pytest.mark.parametrize("family", ["llama", "gemma2", "qwen3_next"])
def test_every_question_has_a_limit_of_its_own(family: str) -> None:
    model, prompts = built(family), make_prompts(40, seed=7)
    oracle = Oracle(model)
    stops = stops_of([oracle(prompt) for prompt in prompts])
    limits = [(1, 3, 6, TOKENS)[i % 4] for i in range(len(prompts))]
    seen: list[tuple[int, int, int]] = []
    found = answer(
        asking(model, stops),
        prompts,
        max_new_tokens=limits,
        progress=lambda *now: seen.append(now),  # type: ignore[misc]
    )
    wanted = [oracle.stopped(p, stops, n) for p, n in zip(prompts, limits, strict=True)]
    assert [one.tokens for one in found] == [tokens_of(one) for one in found] == wanted
    ends = ["limit" if len(w) == n else "stop" for w, n in zip(wanted, limits, strict=True)]
    assert [one.end for one in found] == ends and set(ends) == {"stop", "limit"}
    assert seen == sorted(seen) and seen[-1][0] == len(prompts)
    assert all(tokens <= most <= sum(limits) for _, tokens, most in seen)


# ---- the state in which a model is left


class Enough(Exception):
    """What `check` raises."""


class Countdown:
    """Raises at its n-th call."""

    def __init__(self, n: int) -> None:
        self.left = n

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Enough


def state_of(model: Any) -> dict[str, Any]:
    """What must be as it was: settings, modes, hooks and every module's own `forward`."""
    return {
        "attention": model.config._attn_implementation,
        "training": [module.training for module in model.modules()],
        "hooks": sum(
            len(module._forward_pre_hooks) + len(module._forward_hooks)
            for module in model.modules()
        ),
        "forwards": [module.__dict__.get("forward") for module in model.modules()],
        "settings": model.generation_config,
        "weights": [(name, p.data_ptr(), p._version) for name, p in model.named_parameters()],
        "gradients": [p.requires_grad for p in model.parameters()],
    }


@pytest.mark.parametrize("calls", [1, 2])
@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_an_answer_that_is_cancelled_leaves_the_model_as_it_was(family: str, calls: int) -> None:
    model, prompts = built(family), make_prompts()
    use_layout(model, "tree" if family == "llama" else "padded")
    model.train()
    model.requires_grad_(True)
    before = state_of(model)
    made = asking(model)
    with pytest.raises(Enough):
        answer(made, prompts, max_new_tokens=TOKENS, check=Countdown(calls))
    assert state_of(model) == before
    few = prompts[:5]
    found = answer(made, few, max_new_tokens=TOKENS)
    assert state_of(model) == before
    oracle = Oracle(built(family))
    assert [tokens_of(one) for one in found] == [oracle(prompt) for prompt in few]
    use_layout(model, "padded")
    loss = model(input_ids=torch.tensor([few[0]]), labels=torch.tensor([few[0]])).loss
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize("family", ["llama", "lfm2"])
def test_a_draw_that_is_cancelled_leaves_the_model_as_it_was(family: str) -> None:
    made = sampler(family, check=Countdown(4))
    model, prompts = made.policy.causal[0], make_prompts(20)[:6]
    model.train()
    before = state_of(model)
    with pytest.raises(Enough):
        draw(made, prompts, HOWS["plain"])
    assert state_of(model) == before
    again = draw(made, prompts, HOWS["plain"])
    assert state_of(model) == before
    assert again == draw(sampler(family), prompts, HOWS["plain"])


# ---- one answer, in pieces


@pytest.mark.parametrize("family", ["llama", "gemma2", "lfm2"])
def test_the_pieces_of_a_stream_join_to_the_answer(family: str) -> None:
    model, prompts = built(family), make_prompts(20)[:6]
    oracle = Oracle(model)
    stop = oracle(prompts[0])[8]
    made = asking(model, (stop,))
    ends = set()
    for prompt in prompts:
        pieces: list[str] = []
        found = stream(made, prompt, pieces.append, max_new_tokens=TOKENS)
        assert "".join(pieces).strip() == found.text and f"t{stop}" not in found.text.split()
        assert tokens_of(found) == oracle.stopped(prompt, (stop,))
        assert len([piece for piece in pieces if piece]) >= min(2, len(tokens_of(found)))
        ends.add(found.end)
    assert ends == {"stop", "limit"} and oracle.gap > GAP


def test_pieces_are_whole_characters() -> None:
    """A token may hold half of a character; no piece does."""
    from helpers.building import make_tokenizer

    tokenizer = make_tokenizer()
    said = tokenizer.encode("什么是 a small 机器学习 model? 你好", add_special_tokens=False)
    model = built("llama", vocab_size=320)
    with Chosen(said):
        made = answering(model, None, renderer_of(tokenizer, ()))
        pieces: list[str] = []
        found = stream(made, [5], pieces.append, max_new_tokens=len(said))
    assert found.text == "什么是 a small 机器学习 model? 你好" == "".join(pieces).strip()
    assert len(said) > 30 and all("\ufffd" not in piece for piece in pieces)


class Chosen:
    """Inside, the words `words` are drawn, one after the other, whatever the model says."""

    def __init__(self, words: list[int]) -> None:
        self.words, self.n = words, 0

    def __enter__(self) -> None:
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(batch.Batch, "_drawn", lambda _, z_RV: (self._next(), None))

    def __exit__(self, *_: object) -> None:
        self.patch.undo()

    def _next(self) -> torch.Tensor:
        self.n += 1
        return torch.tensor([self.words[min(self.n, len(self.words)) - 1]])


def test_an_answer_ends_before_a_stop_text_and_no_piece_of_it_is_said() -> None:
    from helpers.building import make_tokenizer

    tokenizer = make_tokenizer()
    said = tokenizer.encode("a small model learns quickly", add_special_tokens=False)
    model = built("llama", vocab_size=320)
    made = answering(model, None, renderer_of(tokenizer, ()))
    pieces: list[str] = []
    with Chosen(said):
        found = stream(
            made, [5], pieces.append, max_new_tokens=len(said), stop_texts=["el lea", "never"]
        )
    assert found.text == "a small mod" == "".join(pieces).strip() and found.end == "stop"
