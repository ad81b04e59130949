"""Rows that nobody reads are left out of the last block, and nothing that is read changes."""

from __future__ import annotations

import pytest
import torch
from helpers import tiny

from tunewright.core.types import Branch, Sample
from tunewright.engine.loaded import computing_in
from tunewright.engine.policy import Policy
from tunewright.models.kernels.last_block import LastBlock
from tunewright.models.scalar_heads import put_heads

FAMILIES = ("llama", "qwen2", "qwen3", "gemma2", "gpt2", "gpt_neox")


def pairs() -> list[Sample]:
    """Two samples of two branches that share a long question; only the answers are learnt."""
    made = []
    for k in range(2):
        question = [3 + (7 * i + k) % 50 for i in range(20)]
        branches = [
            Branch([*question, 60 + a, 61 + k, 62], [20, 21, 22], [1.0] * 3) for a in range(2)
        ]
        made.append(Sample(branches, k))
    return made


def gradients(
    family: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> tuple[torch.Tensor, dict[str, torch.Tensor], list[int]]:
    """(log-probabilities, gradient of each parameter, rows of each product of the last MLP)."""
    model = tiny.make_model(family).requires_grad_(True)
    with monkeypatch.context() as patch, computing_in(model, "tree"):
        if whole:
            patch.setattr(LastBlock, "worth", lambda self, read, num_rows: False)
        policy, seen = Policy(model, model, "tree"), list[int]()
        mlp = LastBlock(model).mlp
        assert mlp is not None
        next(mlp.children()).register_forward_hook(
            lambda module, given, out: seen.append(given[0].shape[-2])
        )
        out = policy(pairs()).logprob
        (out * torch.linspace(0.5, 1.5, len(out))).sum().backward()
    return (
        out.detach(),
        {name: p.grad for name, p in model.named_parameters() if p.grad is not None},
        seen,
    )


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probabilities_and_gradients_are_those_of_all_rows(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    few, all_rows = (gradients(family, whole, monkeypatch) for whole in (False, True))
    assert few[2][-1] < all_rows[2][-1]
    assert torch.allclose(few[0], all_rows[0], atol=1e-5)
    assert few[1].keys() == all_rows[1].keys()
    size = max(float(g.abs().max()) for g in all_rows[1].values())
    for name, gradient in all_rows[1].items():
        assert float((few[1][name] - gradient).abs().max()) <= 1e-5 * size, name


def test_a_score_is_read_at_the_last_row_of_every_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny.make_model("llama")
    put_heads(model, tiny.attach_all(model), ("score",))
    torch.nn.init.normal_(next(model.score.parameters()))
    scores = []
    for whole in (False, True):
        with monkeypatch.context() as patch, computing_in(model, "tree"), torch.no_grad():
            if whole:
                patch.setattr(LastBlock, "worth", lambda self, read, num_rows: False)
            policy = Policy(model, model, "tree")
            policy.heads = ("score",)
            scores.append(policy(pairs()).score)
    assert torch.allclose(*scores, atol=1e-5) and float(scores[0].abs().max()) > 0


def test_where_blocks_share_modules_nothing_is_left_out() -> None:
    model = tiny.make_model("llama")
    model.model.layers[-1].mlp = model.model.layers[0].mlp
    found = LastBlock(model)
    assert not found.modules and found.mlp is None and not found.worth([1], 100)


def test_looking_at_the_mlp_draws_nothing_and_leaves_its_dropout_on() -> None:
    model = tiny.make_model("llama").train()
    model.model.layers[-1].mlp.act_fn = torch.nn.Sequential(
        model.model.layers[-1].mlp.act_fn, torch.nn.Dropout(0.5)
    )
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert LastBlock(model).mlp is not None
    assert (
        torch.equal(before, torch.get_rng_state()) and model.model.layers[-1].mlp.act_fn[1].training
    )
