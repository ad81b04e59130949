"""Learnt prompts: PEFT's encoders, our layouts, PEFT's positions, and answers that do not depend on
the company a question is in."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import tiny

from tunewright.bench.certificate import distance, full_width
from tunewright.core.errors import CompatError, ConfigError
from tunewright.core.registry import methods
from tunewright.core.types import Attached, Sample
from tunewright.engine.tree import build_tree, under_root
from tunewright.models import anatomy
from tunewright.models.kernels import tree_attention
from tunewright.models.kernels.tree_attention import TreePlan
from tunewright.models.load import stock_attention

KINDS = ["prompt_tuning", "p_tuning", "prefix_tuning", "p_tuning_v2"]
FAMILIES = ["llama", "qwen3", "mistral", "gemma2", "gemma3_text", "gpt2"]
M = 9
"""Virtual tokens: more than the window of the tiny families that have one."""


def put(kind: str, model: Any, **settings: Any) -> Attached:
    entry = methods.get(kind)
    assert entry is not None
    torch.manual_seed(7)
    attached = entry.function(
        entry.config(**{"num_tokens": M, **settings}), model, anatomy.of(model), "tiny"
    )
    assert isinstance(attached, Attached)
    return attached


def samples() -> list[Sample]:
    return tiny.dialogues() + tiny.pairs() + tiny.nothing_shared()


def peft_alone(attached: Attached, chosen: list[Sample]) -> dict[str, torch.Tensor]:
    """Gradients of PEFT's own forward and Transformers' own loss, one sample at a time."""
    model = attached.model.get_base_model()
    for module in attached.model.modules():
        module.__dict__.pop("forward", None)
    model.set_attn_implementation(stock_attention(model))
    branches = [b for s in chosen for b in s.branches]
    for b in branches:
        labels = torch.full((1, len(b.tokens)), -100)
        labels[0, b.learnt] = torch.tensor([b.tokens[i] for i in b.learnt])
        attached.model(
            input_ids=torch.tensor([b.tokens]),
            labels=labels,
            num_items_in_batch=sum(len(x.learnt) for x in branches),
            use_cache=False,
        ).loss.backward()
    return tiny.gradients(attached)


@pytest.mark.wide("prefix_tuning-llama", "prompt_tuning-gemma3_text")
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", KINDS)
def test_both_layouts_give_the_gradient_of_pefts_own_forward(kind: str, family: str) -> None:
    """Windows are shorter than the prompt, softcaps are on, trees fork: every row sees of the
    prompt what PEFT's model lets it see."""
    for dtype, limit in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        model = tiny.make_model(family)
        attached = put(kind, model)
        attached.model.to(dtype)
        found = {}
        with full_width() if dtype is torch.float64 else torch.enable_grad():
            for name in ("tree", "padded"):
                tiny.make_stepper(model, attached, name, rows_per_pass=60).gradients(samples())
                found[name] = tiny.gradients(attached)
            theirs = peft_alone(attached, samples())
        assert theirs.keys() == set(attached.parameters)
        for ours in found.values():
            assert max(distance(ours[name], theirs[name]) for name in theirs) <= limit


@pytest.mark.parametrize("kind", KINDS)
def test_log_probabilities_are_those_of_pefts_model(kind: str) -> None:
    model = tiny.make_model("gemma2")
    attached = put(kind, model)
    ours = tiny.make_stepper(model, attached).policy(samples()).logprob.detach()
    model.set_attn_implementation("eager")
    parts = []
    for b in (b for s in samples() for b in s.branches):
        with torch.no_grad():
            z = torch.log_softmax(
                attached.model(input_ids=torch.tensor([b.tokens])).logits[0, -len(b.tokens) :], -1
            )
        parts.append(torch.stack([z[i - 1, b.tokens[i]] for i in b.learnt]))
    assert float((ours - torch.cat(parts)).abs().max()) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_a_fault_in_where_the_prompt_stands_is_seen_by_the_choice_of_layout(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.core.config import EngineConfig
    from tunewright.engine.opening import Loaded

    model = tiny.make_model("llama")
    attached = put(kind, model)

    def chosen() -> str:
        return Loaded(model, attached, 0).choose_layout(EngineConfig(), "float32")[0]

    assert chosen() == "tree"
    real = under_root

    def shifted(tree: Any, count: int) -> Any:
        tree = real(tree, count)
        tree.position = [p + 1 if i >= count else p for i, p in enumerate(tree.position)]
        return tree

    monkeypatch.setattr("tunewright.engine.policy.under_root", shifted)
    assert chosen() == "padded"


@pytest.mark.parametrize("kind", ["prompt_tuning", "p_tuning"])
def test_rows_of_the_prompt_are_counted_once_a_tree_and_once_a_padded_row(kind: str) -> None:
    model = tiny.make_model("llama")
    attached = put(kind, model)
    chosen = tiny.system_prompt()
    tree = tiny.make_stepper(model, attached).policy(chosen).num_rows
    padded = tiny.make_stepper(model, attached, "padded").policy(chosen).num_rows
    assert tree == tiny.trie_rows(chosen) + M
    assert padded == len(chosen) * (max(max(b.learnt) for s in chosen for b in s.branches) + M)


def test_a_prefix_adds_no_rows() -> None:
    model = tiny.make_model("llama")
    assert tiny.make_stepper(model, put("p_tuning_v2", model)).policy(
        tiny.dialogues()
    ).num_rows == tiny.trie_rows(tiny.dialogues())


# Keys without queries.


@pytest.mark.parametrize("window", [None, 1, 4, 11])
@pytest.mark.parametrize("virtual", [1, 5, 140])
def test_every_row_sees_exactly_the_virtual_keys_and_ancestors_it_may(
    virtual: int, window: int | None
) -> None:
    """Against a mask written row by row from the definition."""
    tree = under_root(build_tree(tiny.dialogues() + tiny.long_sample()), virtual)
    blocks = TreePlan(tree, torch.device("cpu"), 0, 1, virtual).blocks_for(window)
    seen = torch.zeros(tree.num_rows - virtual, tree.num_rows, dtype=torch.bool)
    for block in blocks:
        keys = torch.cat([torch.arange(a, b) for a, b in block.ranges])
        seen[block.start : block.stop, keys] = True
        if block.hidden is not None:
            seen[block.start : block.stop, keys[block.first_hidden :]] = ~block.hidden
    wanted = torch.tensor(
        [
            [
                j <= i < tree.subtree_end[j]
                and (window is None or tree.depth[i] - tree.depth[j] < window)
                for j in range(tree.num_rows)
            ]
            for i in range(virtual, tree.num_rows)
        ]
    )
    assert torch.equal(seen, wanted)


@pytest.mark.parametrize("softcap", [None, 3.0])
@pytest.mark.parametrize("window", [None, 6])
def test_attention_with_more_keys_than_queries_is_masked_attention(
    window: int | None, softcap: float | None
) -> None:
    """Forward and backward in float64 against scores, mask and softmax written out."""
    generator = torch.Generator().manual_seed(0)
    tree = under_root(build_tree(tiny.dialogues()), M)
    T = tree.num_rows - M
    q, k, v = (
        torch.randn(1, heads, rows, 8, generator=generator, dtype=torch.float64, requires_grad=True)
        for heads, rows in ((4, T), (2, T + M), (2, T + M))
    )
    mask = torch.tensor(
        [
            [
                j <= i < tree.subtree_end[j]
                and (window is None or tree.depth[i] - tree.depth[j] < window)
                for j in range(T + M)
            ]
            for i in range(M, T + M)
        ]
    )
    scores = q @ k.repeat_interleave(2, 1).transpose(2, 3) * 8**-0.5
    scores = softcap * torch.tanh(scores / softcap) if softcap else scores
    plain = (
        torch.softmax(scores.masked_fill(~mask, -torch.inf), -1) @ v.repeat_interleave(2, 1)
    ).transpose(1, 2)
    for keep, backend in ((0, "blocks"), (1 << 30, "blocks"), (0, "flex")):
        ours, _ = tree_attention.tree_attention(
            None,
            q,
            k,
            v,
            None,
            sliding_window=window,
            softcap=softcap,
            tree_plan=TreePlan(tree, torch.device("cpu"), keep, 1, M, backend=backend),
        )
        assert torch.allclose(ours, plain, rtol=0, atol=1e-12)
        weight = torch.randn(
            plain.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64
        )
        theirs = torch.autograd.grad((plain * weight).sum(), (q, k, v), retain_graph=True)
        for got, wanted in zip(
            torch.autograd.grad((ours * weight).sum(), (q, k, v)), theirs, strict=True
        ):
            assert torch.allclose(got, wanted, rtol=0, atol=1e-12)


# What each kind is.


def test_prefix_tuning_has_a_projection_and_p_tuning_v2_has_none() -> None:
    with_network, direct = (
        put("prefix_tuning", tiny.make_model("llama")),
        put("p_tuning_v2", tiny.make_model("llama")),
    )
    assert (
        with_network.model.peft_config["default"].prefix_projection
        and not direct.model.peft_config["default"].prefix_projection
    )
    # 2 layers, keys and values, 2 heads of 12: the numbers that the layers see; v2 trains exactly
    # these.
    assert [tuple(p.shape) for p in tiny.trained(direct).values()] == [(M, 2 * 2 * 2 * 12)]
    assert len(with_network.parameters) == 5
    assert with_network.learning_rate != direct.learning_rate


def test_p_tuning_changes_nothing_inside_the_model_and_its_encoder_is_chosen() -> None:
    for encoder, part in (("mlp", "mlp_head"), ("lstm", "lstm_head")):
        attached = put("p_tuning", tiny.make_model("llama"), encoder=encoder, encoder_size=16)
        assert any(part in name for name in attached.parameters)
        assert all(name.startswith("prompt_encoder.") for name in attached.parameters)


def test_a_prompt_can_start_as_a_text(tmp_path: Path) -> None:
    from helpers import story

    folder = story.model_folder(tmp_path / "model")
    from tunewright.models.load import load_model
    from tunewright.text.tokenizer import load_tokenizer

    model = load_model(folder, dtype="float32")
    attached = put("prompt_tuning", model, text="hello there", num_tokens=7)
    ids = load_tokenizer(folder)("hello there", add_special_tokens=False)["input_ids"]
    rows = model.get_input_embeddings().weight[[ids[i % len(ids)] for i in range(7)]]
    assert torch.equal(attached.model.virtual_prompt().rows, rows)
    with pytest.raises(ConfigError) as caught:
        put("prompt_tuning", load_model(folder, dtype="float32"), text="")
    assert [p.code for p in caught.value.problems] == ["E-METHOD-29"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_prompt_longer_than_the_context_is_refused(kind: str) -> None:
    with pytest.raises(CompatError) as caught:
        put(kind, tiny.make_model("llama"), num_tokens=512)
    assert [p.code for p in caught.value.problems] == ["E-METHOD-27"]
    assert put(kind, tiny.make_model("llama"), num_tokens=511).parameters


def test_a_prompt_longer_than_the_context_is_refused_before_any_weight_is_read_and_a_shorter_one_takes_its_room(
    tmp_path: Path,
) -> None:
    from helpers import story

    from tunewright.core.runfile import load_run
    from tunewright.core.telling import Quiet
    from tunewright.models.load import load_config
    from tunewright.run.prepare import prepare

    folder, rows = (
        story.model_folder(tmp_path / "model"),
        story.rows_file(tmp_path / "rows.json", 24),
    )
    context = load_config(folder).max_position_embeddings
    flags = {"model": str(folder), "data.train": str(rows), "out": str(tmp_path / "run")}
    with pytest.raises(CompatError) as caught:
        prepare(
            load_run(None, ["method.kind=prompt_tuning", f"method.num_tokens={context}"], flags),
            Quiet(),
        )
    assert [p.code for p in caught.value.problems] == ["E-METHOD-27"]
    whole = prepare(load_run(None, ["method.kind=lora"], flags), Quiet()).data
    longest = max(len(b.tokens) for s in whole.train for b in s.branches)
    short = prepare(
        load_run(
            None, ["method.kind=prompt_tuning", f"method.num_tokens={context - longest + 1}"], flags
        ),
        Quiet(),
    ).data
    assert len(short.train) < len(whole.train)
    assert max(len(b.tokens) for s in short.train for b in s.branches) < longest


# Answers.


def greedy(attached: Attached, prompt: list[int], count: int) -> list[int]:
    """One token after the other, everything computed afresh each time, through the engine's own
    forward."""
    from tunewright.core.types import Branch

    model = attached.model.get_base_model()
    policy = tiny.make_stepper(model, attached).policy
    tokens = list(prompt)
    for _ in range(count):
        with torch.no_grad():
            tree = build_tree([Sample([Branch([*tokens, 0], [len(tokens)], [1.0])], 0)])
            hidden = policy._tree_hidden(tree)[-1]
            tokens.append(int(model.lm_head(hidden).argmax()))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_what_the_trained_model_says_and_do_not_depend_on_company(
    kind: str, family: str
) -> None:
    from tunewright.engine.decoding.batch import Ask
    from tunewright.engine.decoding.writer import Writer
    from tunewright.engine.policy import Policy

    draw = random.Random(3)
    model = tiny.make_model(family)
    attached = put(kind, model)
    prompts = [tiny.words(draw, n) for n in (4, 11, 7, 4)]
    wanted = [greedy(attached, p, 6) for p in prompts]
    writer = Writer(Policy(attached.model, model, "tree"), frozenset())

    def written(asked: list[list[int]]) -> list[list[int]]:
        return [one.tokens for (one,) in writer.write([Ask(p, 6) for p in asked])]

    assert written(prompts) == wanted
    assert [written([p])[0] for p in prompts] == wanted
    ids = torch.tensor([prompts[1]])
    assert attached.disabled is not None
    with attached.disabled():
        base = written(prompts[1:2])
    plain = tiny.make_model(family).generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=6,
        pad_token_id=0,
    )
    assert base == [plain[0, len(prompts[1]) :].tolist()]


@pytest.mark.parametrize("kind", KINDS)
def test_switched_off_neither_layout_sees_the_prompt(kind: str) -> None:
    model = tiny.make_model("llama")
    attached = put(kind, model)
    assert attached.disabled is not None
    for name in ("tree", "padded"):
        policy = tiny.make_stepper(model, attached, name).policy
        with torch.no_grad():
            on = policy(tiny.dialogues()).logprob
            with attached.disabled():
                off = policy(tiny.dialogues()).logprob
            policy.model = model
            assert torch.equal(off, policy(tiny.dialogues()).logprob)
        assert not torch.equal(on, off)


def test_a_prompt_that_a_run_goes_on_with_takes_its_room_of_the_context_as_a_new_one_does(
    tmp_path: Path,
) -> None:
    from helpers import story

    from tunewright.core.runfile import load_run
    from tunewright.core.telling import Quiet
    from tunewright.methods.saved import virtual_tokens
    from tunewright.models.load import load_config, load_model
    from tunewright.run.prepare import prepare

    folder, data = story.model_folder(tmp_path / "model"), story.rows_file(tmp_path / "rows.json")
    context = load_config(folder).max_position_embeddings
    flags = {"model": str(folder), "data.train": str(data), "data.held_out": 0}
    longest = max(
        len(s.branches[0].tokens) for s in prepare(load_run(None, [], flags), Quiet()).data.train
    )
    for kind, tokens in (
        ("prompt_tuning", context - longest + 1),
        ("p_tuning_v2", context - longest - 1),
    ):
        put(kind, load_model(folder, dtype="float32"), num_tokens=tokens).save(tmp_path / kind)
        assert virtual_tokens(tmp_path / kind) == tokens
        fresh = prepare(
            load_run(None, [f"method.kind={kind}", f"method.num_tokens={tokens}"], flags),
            Quiet(),
            out_matters=False,
        ).data
        continued = prepare(
            load_run(None, [f"adapter={tmp_path / kind}"], flags), Quiet(), out_matters=False
        ).data
        assert [s.branches[0].tokens for s in continued.train] == [
            s.branches[0].tokens for s in fresh.train
        ]
        assert continued.report["rows_dropped"] == fresh.report["rows_dropped"]
    assert virtual_tokens(tmp_path) == 0
