"""The scheduler of answers and its memory: an answer is the same alone and in any company."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.core.pace import Pace
from tunewright.engine.decoding import batch, ways, writer
from tunewright.engine.decoding.batch import Ask, Written, column_bytes
from tunewright.engine.decoding.drawing import Sampling
from tunewright.engine.decoding.lookup import Lookup
from tunewright.engine.decoding.writer import Writer
from tunewright.engine.policy import Policy
from tunewright.models.dense import DenseStep
from tunewright.models.kernels.packed import Packed, Packs, can_pack

PACKS = can_pack(torch.device("cpu"), torch.float32)


def prompts_of(count: int, longest: int, vocabulary: int = 190, seed: int = 0) -> list[list[int]]:
    draw = random.Random(seed)
    made = [tiny.words(draw, draw.randint(1, longest)) for _ in range(count)]
    # Some begin alike, and two are the same.
    made[1], made[2] = made[0] + made[1], list(made[0])
    return [[token % vocabulary for token in prompt] for prompt in made]


def writer_of(model: Any, attached: Any = None, **settings: Any) -> Writer:
    root = attached.model if attached is not None else model
    return Writer(Policy(root, model, "tree"), settings.pop("stops", frozenset()), **settings)


def tokens_of(found: list[list[Written]]) -> list[list[int]]:
    return [one.tokens for group in found for one in group]


def luck_of(answers: int, limit: int, seed: int) -> torch.Tensor:
    return torch.rand(
        answers, limit, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    )


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_answers_that_queue_for_memory_come_out_the_same(family: str) -> None:
    model = tiny.make_model(family, seed=2)
    prompts = prompts_of(14, 20)
    asks = [Ask(prompt, 9) for prompt in prompts]
    free = writer_of(model).write(asks)
    seen: list[int] = []
    tight = writer_of(model, cache_bytes=3 * 29 * column_bytes(Policy(model, model, "tree")))
    take = batch.Batch._take

    def watched(self: Any, hidden: torch.Tensor) -> torch.Tensor:
        seen.append(len(self.rows))
        return take(self, hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch.Batch, "_take", watched)
        assert tokens_of(tight.write(asks)) == tokens_of(free)
    # Rows of 29 columns: three have room, more of the shorter ones.
    assert 1 < max(seen) < 14
    none = writer_of(model, cache_bytes=0)
    assert tokens_of(none.write(asks)) == tokens_of(free)  # one at a time, never none


@pytest.mark.wide("llama", "gemma2")
@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3_text", "gemma2", "phi3"])
def test_groups_are_drawn_as_each_answer_alone(family: str) -> None:
    """Answers to one prompt hold it once, end at different times, and their windows pass its end."""
    model = tiny.make_model(family, seed=4)
    prompts = prompts_of(7, 24)
    how = Sampling(1.0)
    stops = frozenset(range(0, 200, 17))
    luck = [luck_of(4, 14, i) for i in range(len(prompts))]
    together = writer_of(model, stops=stops, rows=12).write(
        [Ask(p, 14, 4, how, own) for p, own in zip(prompts, luck, strict=True)], logprobs=True
    )
    alone = writer_of(model, stops=stops, rows=1)
    lengths = set()
    for prompt, numbers, group in zip(prompts, luck, together, strict=True):
        for i, one in enumerate(group):
            (own,) = alone.write([Ask(prompt, 14, 1, how, numbers[i : i + 1])], logprobs=True)[0]
            assert own.tokens == one.tokens and own.end == one.end
            assert own.logprobs == pytest.approx(one.logprobs, abs=2e-4)
            lengths.add(len(one.tokens))
    assert len(lengths) > 1


def test_an_answer_can_be_cancelled_while_others_go_on() -> None:
    model = tiny.make_model("llama", seed=1)
    prompts = prompts_of(5, 9)
    whole = tokens_of(writer_of(model).write([Ask(p, 12) for p in prompts]))
    seen: dict[int, list[int]] = {}

    def asked(i: int, prompt: list[int]) -> Ask:
        def on_token(number: int, token: int) -> bool:
            seen.setdefault(i, []).append(token)
            return i != 3 or len(seen[i]) < 5

        return Ask(prompt, 12, on_token=on_token)

    found = tokens_of(writer_of(model).write([asked(i, p) for i, p in enumerate(prompts)]))
    assert found == [whole[0], whole[1], whole[2], whole[3][:5], whole[4]]
    assert [seen[i] for i in range(5)] == found


def test_settings_and_limits_are_those_of_each_request() -> None:
    model = tiny.make_model("qwen2", seed=1)
    prompts = prompts_of(4, 9)
    asks = [
        Ask(prompts[0], 3),
        Ask(prompts[1], 11, sampling=Sampling(1.0), luck=luck_of(1, 11, 5)),
        Ask(prompts[2], 0),
        Ask(prompts[3], 7, sampling=Sampling(0.7, top_k=5), luck=luck_of(1, 7, 6)),
    ]
    told: list[tuple[int, int, int]] = []
    found = writer_of(model).write(asks, progress=lambda *now: told.append(now))
    assert tokens_of(found) == [tokens_of(writer_of(model).write([ask]))[0] for ask in asks]
    assert [len(tokens) for tokens in tokens_of(found)] == [3, 11, 0, 7]
    assert told[-1] == (4, 21, 21) and told[0][1] == 3


@pytest.mark.parametrize("family", ["llama", "gemma2", "gpt_neox"])
def test_who_joins_a_running_batch_is_answered_as_alone(family: str) -> None:
    """Asks come one by one, in the middle of guesses too; one is cancelled while it is written, one
    before."""
    model = tiny.make_model(family, seed=2)
    prompts = prompts_of(9, 12)
    prompts[0] = prompts[0][:3] * 4  # repeats itself, so that its next tokens are guessed
    how = [Sampling(1.0) if i % 3 == 2 else Sampling() for i in range(9)]
    asks = [
        Ask(p, 12, 1 + i % 2, h, luck_of(1 + i % 2, 12, i))
        for i, (p, h) in enumerate(zip(prompts, how, strict=True))
    ]
    made = writer_of(model, rows=4)
    alone = [[one.tokens for one in made.write([ask])[0]] for ask in asks]
    made = writer_of(model, rows=4)
    ended: list[tuple[int, int]] = []
    with made.opened(prompts[0]) as running:
        jobs = []
        for i, ask in enumerate(asks):
            jobs.append(running.add(ask, lambda n, _, i=i: ended.append((i, n))))
            for _ in range(1 + 3 * (i == 0)):
                running.step()
        gone = running.add(asks[0])
        running.cancel(gone)
        running.cancel(jobs[8])
        while running.step():
            pass
    for i, job in enumerate(jobs[:8]):
        assert [one.tokens for one in job.written] == alone[i], i
    assert all(len(one.tokens) < 12 for one in [*jobs[8].written, *gone.written])
    assert {(i, n) for i in range(8) for n in range(1 + i % 2)} <= set(ended)
    assert not any(i == 9 for i, _ in ended) and running.step() is False


def test_the_next_token_is_the_likeliest_of_those_that_are_left_and_the_scores_are_the_models() -> (
    None
):
    model = tiny.make_model("llama", seed=1)
    prompts = prompts_of(4, 9)
    plain = writer_of(model).write([Ask(p, 6) for p in prompts], logprobs=True)
    banned = [group[0].tokens[0] for group in plain]

    def without(i: int, number: int, z_V: torch.Tensor) -> None:
        z_V[banned[i]] = -torch.inf

    asks = [
        Ask(p, 6, adjust=lambda n, z, i=i: without(i, n, z), alternatives=3)
        for i, p in enumerate(prompts)
    ]
    for i, ((one,), (free,)) in enumerate(zip(writer_of(model).write(asks), plain, strict=True)):
        assert banned[i] not in one.tokens
        first = one.scores[0]
        # What is not allowed is still what the model says.
        assert first.likeliest[0] == (banned[i], pytest.approx(free.logprobs[0], abs=1e-5))
        assert one.tokens[0] == first.likeliest[1][0]
        assert first.logprob == pytest.approx(first.likeliest[1][1])
        assert len(one.scores) == 6 and all(len(s.likeliest) == 3 for s in one.scores)


@pytest.mark.parametrize("kind", ["lora", "none"])
@pytest.mark.parametrize("family", ["llama", "qwen3", "phi3", "mistral", "smollm3"])
def test_packed_weights_and_plain_ones_write_the_same(family: str, kind: str) -> None:
    model = tiny.make_model(family, seed=6)
    attached = tiny.attach_lora(model) if kind == "lora" else None
    if attached is not None:
        with torch.no_grad():
            for name, p in attached.model.named_parameters():
                if "lora_B" in name:
                    p.normal_(generator=torch.Generator().manual_seed(len(name))).mul_(2.0)
    asks = [Ask(p, 10) for p in prompts_of(6, 12)]
    packed = writer_of(model, attached)
    found = tokens_of(packed.write(asks))
    assert tokens_of(writer_of(model, attached, packed=False).write(asks)) == found
    own = Writer(Policy(packed.policy.model, model, "tree"), frozenset(), needs_layout="padded")
    assert tokens_of(own.write(asks)) == found
    if PACKS:
        dense = DenseStep.of(model, Packs())
        assert dense is not None
        block = dense.blocks[0]
        assert isinstance(block.attention.packed, Packed) and block.mlp.apart
        assert (block.attention.packed.low is not None) == (kind == "lora")
    if attached is not None:
        assert attached.disabled is not None
        with attached.disabled():
            base = tokens_of(packed.write(asks))
        assert base != found
        assert base == tokens_of(writer_of(tiny.make_model(family, seed=6)).write(asks))
        # What trains has moved: the next answers are those of the new weights.
        with torch.no_grad():
            for name, p in attached.model.named_parameters():
                if "lora_B" in name:
                    p.neg_()
        assert tokens_of(packed.write(asks)) != found


def test_weights_that_change_are_packed_anew() -> None:
    model = tiny.make_model("llama", seed=6)
    asks = [Ask(p, 10) for p in prompts_of(6, 12)]
    made = writer_of(model)
    first = tokens_of(made.write(asks))
    with torch.no_grad():
        for name, p in model.named_parameters():
            if name.endswith("proj.weight"):
                p.mul_(-1)
    again = tokens_of(made.write(asks))
    assert again != first and again == tokens_of(writer_of(model, packed=False).write(asks))


def test_a_block_that_somebody_changed_takes_its_own_step() -> None:
    """What sits on a block, not on its linear layers, is never left out."""
    model = tiny.make_model("llama", seed=6)
    asks = [Ask(p, 10) for p in prompts_of(4, 12)]
    plain = tokens_of(writer_of(model).write(asks))
    block = model.model.layers[1]
    hook = block.register_forward_hook(lambda m, given, out: -out)
    assert DenseStep.of(model, None) is None
    changed = tokens_of(writer_of(model).write(asks))
    ids = torch.tensor([asks[0].prompt])
    own = model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=10
    )
    assert changed[0] == own[0, ids.shape[1] :].tolist() and changed != plain
    hook.remove()
    assert tokens_of(writer_of(model).write(asks)) == plain


def test_a_step_that_is_wrong_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fused step of a family whose code says something else steps aside, and so do our own
    keys and values."""
    model = tiny.make_model("llama", seed=9)
    asks = [Ask(p, 8) for p in prompts_of(4, 12)]
    right = tokens_of(writer_of(model, needs_layout="padded").write(asks))
    taken: list[str] = []
    for way in (ways.TreeWay, ways.CacheWay):
        read = way.read

        def watched(self: Any, *args: Any, read: Any = read) -> Any:
            taken.append("dense" if getattr(self, "dense", None) else type(self).__name__)
            return read(self, *args)

        monkeypatch.setattr(way, "read", watched)
    monkeypatch.setattr("tunewright.models.dense._rotated", lambda x, cos, sin: x)
    ways._verdicts.clear()
    assert tokens_of(writer_of(model).write(asks)) == right
    assert taken == ["dense", "TreeWay", "TreeWay"]  # tried, tried, taken
    monkeypatch.setattr(
        "tunewright.models.kernels.answer_attention.AnswerMemory.attend",
        lambda self, index, q, k, v, *how: torch.zeros_like(q),
    )
    ways._verdicts.clear()
    taken.clear()
    assert tokens_of(writer_of(model).write(asks)) == right
    assert taken[:2] == ["dense", "TreeWay"] and taken[-1] == "CacheWay"
    ways._verdicts.clear()


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "phi3", "qwen3"])
def test_guessed_tokens_change_the_steps_and_not_the_answer(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.make_model(family, seed=5)
    prompt = [7, 9, 11, 13, 8, 6, 21, 9, 11, 13]
    wanted = tokens_of(writer_of(model, needs_layout="padded").write([Ask(prompt, 60)]))
    sizes: list[int] = []
    step = ways.TreeWay.step

    def watched(self: Any, ids: torch.Tensor) -> torch.Tensor:
        sizes.append(len(ids))
        return step(self, ids)

    made = writer_of(model)
    made.write([Ask(prompt, 1)])  # the way is tried
    monkeypatch.setattr(ways.TreeWay, "step", watched)
    assert tokens_of(made.write([Ask(prompt, 60)])) == wanted
    # A tiny model repeats itself, which is what can be guessed.
    different = len({tuple(wanted[0][i : i + 3]) for i in range(58)})
    assert len(sizes) <= (12 if different < 9 else 58 if different < 55 else 59)
    sizes.clear()
    stop = wanted[0][40]
    first = wanted[0].index(stop)
    stopped = writer_of(model, stops=frozenset([stop])).write([Ask(prompt, 60)])[0][0]
    assert stopped.tokens == wanted[0][: first + 1] and stopped.end == "stop"
    # Others beside it, and draws, are not guessed.
    sizes.clear()
    both = tokens_of(made.write([Ask(prompt, 9), Ask(prompt[::-1], 9)]))
    assert both[0] == wanted[0][:9] and set(sizes) <= {1, 2}


def test_a_text_that_repeats_is_guessed_whole() -> None:
    found = Lookup([1, 2, 3, 4, 5, 6, 1, 2, 3])
    assert found.guess() == [4, 5, 6, 1, 2, 3, 4, 5]
    found.add(9)
    assert found.guess() == []
    found.learn(8, 2)
    for token in (1, 2, 3):
        found.add(token)
    assert found.guess() == [9, 1]  # the newest occurrence, and as many as were right
    found.learn(2, 2)
    assert found.guess() == [9, 1, 2, 3]
    again = Lookup([5] * 4)
    assert again.guess() == [5] * 8


@pytest.mark.skipif(not PACKS, reason="no packed layout on this processor")
def test_an_answer_is_written_with_packed_weights_and_they_go_when_they_are_let_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny.make_model("llama", seed=3)
    used: list[int] = []
    product = Packed.__call__

    def counted(self: Packed, x: torch.Tensor) -> torch.Tensor:
        used.append(len(x))
        return product(self, x)

    monkeypatch.setattr(Packed, "__call__", counted)
    found = writer_of(model)
    found.write([Ask([3, 4, 5, 6, 7, 8, 9], 6)])
    assert found.packs is not None and found.packs._kept
    # Query, key and value of each block are one product at each of the steps after the first token.
    assert len(used) >= 5 * model.config.num_hidden_layers
    found.forget()
    assert not found.packs._kept
    plain = writer_of(model, packed=False)
    used.clear()
    plain.write([Ask([3, 4, 5, 6, 7, 8, 9], 6)])
    assert plain.packs is None and not used


@pytest.mark.parametrize(("slow", "fast"), [(2, 1), (1, 2)])
def test_a_decode_settles_on_the_count_of_threads_that_is_faster(
    monkeypatch: pytest.MonkeyPatch, slow: int, fast: int
) -> None:
    now, in_use = [0.0], [2]
    spent: dict[int, int] = {}
    step = ways.TreeWay.step

    def taking_time(self: Any, ids: torch.Tensor) -> torch.Tensor:
        now[0] += 4.0 if in_use[0] == slow else 1.0
        spent[in_use[0]] = spent.get(in_use[0], 0) + 1
        return step(self, ids)

    def paced(counts: tuple[int, ...]) -> Pace:
        counts = (1, 2) if counts else ()
        return Pace(
            counts,
            clock=lambda: now[0],
            use=lambda count: in_use.__setitem__(0, count),
            in_use=lambda: in_use[0],
        )

    monkeypatch.setattr(ways.TreeWay, "step", taking_time)
    monkeypatch.setattr(writer, "Pace", paced)
    writer_of(tiny.make_model("llama", seed=3)).write([Ask([3, 4, 5, 6, 7, 8, 9], 60)])
    assert spent[slow] <= 6 and spent[fast] >= 40
    assert in_use[0] == 2  # the process gets its own count back
