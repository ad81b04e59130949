"""Log-probabilities of labels through the chunked head, against log_softmax over all logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tunewright.models.kernels import label_head
from tunewright.models.kernels.label_head import Head, label_logprobs

ROWS, WIDTH, VOCABULARY = 37, 12, 53


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(
        *shape, generator=torch.Generator().manual_seed(seed + sum(shape)), dtype=torch.float64
    )


def labels(count: int = 60, rows: int = ROWS) -> tuple[torch.Tensor, torch.Tensor]:
    """Sources in no order; many rows predict several tokens, the same one twice, or none."""
    generator = torch.Generator().manual_seed(3)
    source = torch.randint(0, rows, (count,), generator=generator)
    target = torch.randint(0, VOCABULARY, (count,), generator=generator)
    source[:4], target[:4] = 5, torch.tensor([1, 2, 2, 52])
    return source, target


def reference(
    hidden: torch.Tensor,
    source: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor,
    bias: Any,
    scale: float,
    softcap: float | None,
) -> torch.Tensor:
    z = hidden @ weight.T
    z = (z if bias is None else z + bias) * scale
    if softcap:
        z = softcap * torch.tanh(z / softcap)
    return torch.log_softmax(z, -1)[source, target]


FORMS: list[tuple[bool, float, float | None]] = [
    (False, 1.0, None),
    (True, 1.0, None),
    (False, 0.25, None),
    (False, 1.0, 3.0),
    (True, 1.7, 2.0),
]


@pytest.mark.parametrize(("with_bias", "scale", "softcap"), FORMS)
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 36, 37, 38, 512])
def test_values_and_gradients_equal_log_softmax(
    with_bias: bool,
    scale: float,
    softcap: float | None,
    trains: bool,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(label_head, "CHUNK", chunk)
    hidden, weight = (
        draw(ROWS, WIDTH).requires_grad_(),
        draw(VOCABULARY, WIDTH).requires_grad_(trains),
    )
    bias = draw(VOCABULARY).requires_grad_(trains) if with_bias else None
    source, target = labels()
    ours = label_logprobs(hidden, source, target, Head(weight, bias, scale, softcap))
    theirs = reference(hidden, source, target, weight, bias, scale, softcap)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    towards = draw(len(source))
    learning = [
        hidden,
        *([weight] if trains else []),
        *([bias] if trains and bias is not None else []),
    ]
    got = torch.autograd.grad(ours, learning, towards)
    wanted = torch.autograd.grad(theirs, learning, towards)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_a_head_with_an_adapter_is_called_not_read() -> None:
    class Adapted(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(draw(VOCABULARY, WIDTH), requires_grad=False)
            self.a, self.b = (
                torch.nn.Parameter(draw(2, WIDTH)),
                torch.nn.Parameter(draw(VOCABULARY, 2)),
            )

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x @ self.weight.T + (x @ self.a.T) @ self.b.T

    module, hidden = Adapted(), draw(ROWS, WIDTH).requires_grad_()
    source, target = labels()
    ours = label_logprobs(hidden, source, target, Head(module.weight, None, module=module))
    theirs = reference(hidden, source, target, module.weight + module.b @ module.a, None, 1.0, None)
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    learning = (hidden, module.a, module.b)
    for a, b in zip(
        torch.autograd.grad(ours.sum(), learning),
        torch.autograd.grad(theirs.sum(), learning),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


def test_without_gradient_the_values_are_the_same() -> None:
    hidden, weight = draw(ROWS, WIDTH), draw(VOCABULARY, WIDTH)
    source, target = labels()
    with torch.no_grad():
        ours = label_logprobs(hidden, source, target, Head(weight, None, 1.0, 2.0))
    torch.testing.assert_close(
        ours, reference(hidden, source, target, weight, None, 1.0, 2.0), rtol=1e-12, atol=1e-12
    )


def test_hidden_rows_and_weights_are_left_as_they_were() -> None:
    hidden, weight = draw(ROWS, WIDTH).requires_grad_(), draw(VOCABULARY, WIDTH)
    before = hidden.detach().clone(), weight.clone()
    label_logprobs(hidden, *labels(), Head(weight, draw(VOCABULARY), 1.0, 2.0)).sum().backward()
    assert torch.equal(hidden, before[0])
    assert torch.equal(weight, before[1])


@pytest.mark.parametrize("vocabulary", [256, 512, 300])
def test_bfloat16_sums_in_float32(vocabulary: int) -> None:
    # Sums of many equal small numbers are where a bfloat16 accumulator stalls: at 256 it no longer
    # moves by 1.
    hidden, weight = (
        torch.zeros(3, WIDTH, dtype=torch.bfloat16).requires_grad_(),
        torch.zeros(vocabulary, WIDTH, dtype=torch.bfloat16),
    )
    ours = label_logprobs(hidden, torch.tensor([0, 1, 2]), torch.tensor([0, 5, 7]), Head(weight))
    assert ours.dtype is torch.float32
    torch.testing.assert_close(
        ours, torch.full((3,), -float(torch.tensor(float(vocabulary)).log()))
    )


@pytest.mark.parametrize(
    ("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 0.05), (torch.float16, 0.01)]
)
def test_lower_precisions_come_close(dtype: torch.dtype, most: float) -> None:
    source, target = labels()
    exact_hidden = draw(ROWS, WIDTH).to(dtype).double().requires_grad_()
    weight = draw(VOCABULARY, WIDTH).to(dtype)
    hidden = exact_hidden.detach().to(dtype).requires_grad_()
    ours = label_logprobs(hidden, source, target, Head(weight))
    theirs = reference(exact_hidden, source, target, weight.double(), None, 1.0, None)
    assert ours.dtype is torch.float32
    assert float((ours.double() - theirs).detach().abs().max()) <= 10 * most
    (got,), (wanted,) = (
        torch.autograd.grad(ours.sum(), hidden),
        torch.autograd.grad(theirs.sum(), exact_hidden),
    )
    assert float((got.double() - wanted).norm() / wanted.norm()) <= most


def test_very_large_logits_do_not_overflow() -> None:
    hidden, weight = (
        draw(4, WIDTH).float().mul(1e4).requires_grad_(),
        draw(VOCABULARY, WIDTH).float(),
    )
    ours = label_logprobs(hidden, torch.arange(4), torch.arange(4), Head(weight))
    assert bool(torch.isfinite(ours).all())
    assert bool(torch.isfinite(torch.autograd.grad(ours.sum(), hidden)[0]).all())


def test_a_trained_head_keeps_no_logits_between_forward_and_backward() -> None:
    hidden, weight = draw(ROWS, WIDTH).requires_grad_(), draw(VOCABULARY, WIDTH).requires_grad_()
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(
        lambda t: kept.append(t.numel()) or t, lambda t: t
    ):
        label_logprobs(hidden, *labels(), Head(weight))
    assert max(kept) < ROWS * VOCABULARY


@pytest.mark.parametrize(("with_bias", "scale", "softcap"), FORMS)
@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("chunk", [7, 512])
def test_the_spread_of_a_row_equals_logsumexp_and_mean(
    with_bias: bool,
    scale: float,
    softcap: float | None,
    trains: bool,
    chunk: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(label_head, "CHUNK", chunk)
    hidden, weight = (
        draw(ROWS, WIDTH).requires_grad_(),
        draw(VOCABULARY, WIDTH).requires_grad_(trains),
    )
    bias = draw(VOCABULARY).requires_grad_(trains) if with_bias else None
    source, target = labels()
    ours = label_head.label_scores(hidden, source, target, Head(weight, bias, scale, softcap))
    z = hidden @ weight.T
    z = (z if bias is None else z + bias) * scale
    z = softcap * torch.tanh(z / softcap) if softcap else z
    theirs = (
        torch.log_softmax(z, -1)[source, target],
        torch.logsumexp(z, -1)[source],
        torch.log_softmax(z, -1).mean(-1)[source],
    )
    learning = [
        hidden,
        *([weight] if trains else []),
        *([bias] if trains and bias is not None else []),
    ]
    towards = draw(3, len(source))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)
    # Each alone, and all at once with a square, as smoothing and the z-loss use them.
    losses = [lambda s, k=k: (s[k] * towards[k]).sum() for k in range(3)] + [
        lambda s: ((s[0] + s[1] ** 2 - 0.3 * s[2]) * towards[0]).sum()
    ]
    for loss in losses:
        got, wanted = (
            torch.autograd.grad(loss(s), learning, retain_graph=True, allow_unused=True)
            for s in (ours, theirs)
        )
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(
                a, torch.zeros_like(a) if b is None else b, rtol=1e-10, atol=1e-10
            )


@pytest.mark.parametrize("trains", [False, True])
@pytest.mark.parametrize("chunk", [1, 7, 37, 128])
def test_a_function_of_all_logits_of_a_row_has_its_gradient(
    trains: bool, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(label_head, "VALUE_CHUNK", chunk)
    hidden, weight = (
        draw(ROWS, WIDTH).requires_grad_(),
        draw(VOCABULARY, WIDTH).requires_grad_(trains),
    )
    other, towards = draw(ROWS, VOCABULARY, seed=9), draw(ROWS)

    def function(z: torch.Tensor, rows: slice) -> torch.Tensor:
        return (torch.softmax(z, -1) * other[rows]).sum(-1) ** 2

    ours = label_head.row_values(hidden, Head(weight, None, 0.7, 4.0), function)
    theirs = function(4.0 * torch.tanh(hidden @ weight.T * 0.7 / 4.0), slice(None))
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    learning = [hidden, *([weight] if trains else [])]
    for a, b in zip(
        torch.autograd.grad(ours, learning, towards),
        torch.autograd.grad(theirs, learning, towards),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        torch.testing.assert_close(
            label_head.row_values(hidden, Head(weight, None, 0.7, 4.0), function),
            theirs,
            rtol=1e-11,
            atol=1e-11,
        )


def test_nothing_of_rows_times_vocabulary_is_kept_for_the_backward_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        label_head, "VALUE_CHUNK", 7
    )  # what a chunk needs while it is worked on is smaller than all rows
    source, target = labels()
    for trains in (False, True):
        hidden, weight = (
            draw(ROWS, WIDTH).requires_grad_(),
            draw(VOCABULARY, WIDTH).requires_grad_(trains),
        )
        kept: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(
            lambda t, kept=kept: kept.append(t.numel()) or t, lambda t: t
        ):
            label_head.label_scores(hidden, source, target, Head(weight))
            label_head.row_values(hidden, Head(weight), lambda z, rows: torch.logsumexp(z, -1))
        assert max(kept) < ROWS * VOCABULARY
