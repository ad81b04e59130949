"""The gradient certificate: the engine's gradient against stock Transformers, one sample at a time,
on the same model and the same rows.

The oracle shares nothing with the engine but the model's files: its own attention, its own norms
and adapters, its own loss (`model(input_ids, labels, num_items_in_batch)`), batch 1, no padding,
gradients summed over the samples. Compared is ||g - g'|| / ||g'|| of every tensor that trains, with
adapters randomised first (at LoRA's start half of the gradients are exactly zero). float64: at most
1e-9, so the algebra is right. float32: at most 1e-5, or twice the oracle's own float32 error
against float64 where that is larger. The oracle's error is one draw of rounding, and where a kernel
adds up in another order (chunks of linear attention) ours may be several times as large by chance:
once every tensor of the same step has been shown equal in float64, float32 may be ten times the
oracle's own error away.

Transformers narrows to float32 inside of norms, softmax and loss whatever dtype the model has, so a
float64 comparison would stop at 1e-8. `full_width` lifts exactly those casts, for both sides alike.
"""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.registry import methods, objectives
from tunewright.core.seeds import stream_seed
from tunewright.core.types import Attached, Sample
from tunewright.core.words import say

LIMITS = {"float64": 1e-9, "float32": 1e-5}
OWN_ERROR_FACTOR = 2.0
"""In float32 the engine may be as far from the truth as twice what the oracle itself is."""
PROVEN_ERROR_FACTOR = 10.0
"""The same, once float64 has shown that the algebra is right: a wrong mask or a lost term would be
off by far more than 1e-9 there."""
NOISE = 0.02
"""Standard deviation of the noise on a tensor that starts at zero."""

Build = Callable[[str], Any]
"""dtype -> a causal language model of that dtype, the same weights every time it is called, nothing
training."""
Attach = Callable[[Any], Attached]
Gradients = dict[str, Any]


@dataclass(frozen=True)
class Gap:
    """One tensor of one comparison."""

    dtype: str
    rows_per_pass: int
    tensor: str
    gap: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether the gap is within its limit; a NaN is not."""
        return self.gap <= self.limit


@dataclass
class Certificate:
    """All gaps, and what the engine computed for them."""

    gaps: list[Gap] = field(default_factory=list)
    num_samples: int = 0
    logical_tokens: int = 0
    physical_rows: dict[int, int] = field(default_factory=dict)
    """rows_per_pass -> token rows computed."""
    passes: dict[int, int] = field(default_factory=dict)
    loss_gap: dict[str, float] = field(default_factory=dict)
    """dtype -> largest relative difference of the step's loss."""

    @property
    def passed(self) -> bool:
        """True when something was compared and every gap is within its limit."""
        return bool(self.gaps) and all(g.passed for g in self.gaps)

    def worst(self, dtype: str) -> Gap:
        """The tensor that comes closest to (or goes furthest beyond) its limit."""
        return max(
            (g for g in self.gaps if g.dtype == dtype),
            key=lambda g: g.gap / g.limit if g.gap == g.gap else float("inf"),
        )

    def lines(self) -> list[str]:
        """What `tunewright bench` prints."""
        rows = ", ".join(
            f"{self.physical_rows[n]} ({self.passes[n]})"
            for n in sorted(self.physical_rows, reverse=True)
        )
        told = [
            say("certificate.head", samples=self.num_samples, tokens=self.logical_tokens, rows=rows)
        ]
        for dtype in dict.fromkeys(g.dtype for g in self.gaps):
            worst = self.worst(dtype)
            verdict = say(
                "certificate.passed"
                if all(g.passed for g in self.gaps if g.dtype == dtype)
                else "certificate.failed"
            )
            count = len({g.tensor for g in self.gaps if g.dtype == dtype})
            told.append(
                say(
                    "certificate.line",
                    dtype=dtype,
                    verdict=verdict,
                    gap=f"{worst.gap:.1e}",
                    limit=f"{worst.limit:.1e}",
                    tensor=worst.tensor,
                    count=count,
                    loss=f"{self.loss_gap[dtype]:.1e}",
                )
            )
        return told


def certify(
    build: Build,
    attach: Attach,
    samples: Sequence[Sample],
    *,
    dtypes: tuple[str, ...] = ("float64", "float32"),
    rows_per_pass: tuple[int, ...] = (1 << 30, 64, 1),
    layout: str = "tree",
    attention: str = "blocks",
    oracle_attention: str | None = None,
    own_loss: bool = True,
    seed: int = 0,
) -> Certificate:
    """Compare the engine with the oracle on the gradient of one optimiser step over `samples`.

    Every model is a fresh one from `build`, so nothing has to be restored. `oracle_attention` None:
    the model's stock choice. `own_loss` False: the oracle's loss is PyTorch's cross-entropy of the
    model's logits and the next tokens, for decoders taken out of translation models, whose own loss
    does not look ahead. Raises ValueError for samples with weights other than 1: the oracle's own
    loss has no weights.
    """
    if any(w != 1.0 for s in samples for b in s.branches for w in b.weights):
        raise ValueError("the oracle's own loss knows no weights: give samples of weight 1")
    noise = _random_values(build, attach, seed)
    found = Certificate(
        num_samples=len(samples),
        logical_tokens=sum(len(b.tokens) for s in samples for b in s.branches),
    )
    truth: Gradients | None = None
    # The truth is needed for the limit of float32 even when float64 itself is not asked for.
    for dtype in sorted({*dtypes, "float64"}, key=lambda name: name != "float64"):
        oracle, oracle_loss = _oracle(
            build, attach, samples, dtype, noise, oracle_attention, own_loss
        )
        if dtype == "float64":
            truth = oracle
        if dtype not in dtypes:
            continue
        assert truth is not None
        proven = found.passed and dtype != "float64"
        limits = {name: _limit(dtype, oracle[name], truth[name], proven) for name in oracle}
        found.loss_gap[dtype] = 0.0
        for rows, ours, report in _engine(
            build, attach, samples, dtype, noise, rows_per_pass, layout, attention
        ):
            found.physical_rows[rows], found.passes[rows] = report.physical_rows, report.passes
            found.loss_gap[dtype] = max(
                found.loss_gap[dtype], abs(report.loss - oracle_loss) / max(abs(oracle_loss), 1e-30)
            )
            found.gaps += [
                Gap(dtype, rows, name, distance(ours[name], oracle[name]), limits[name])
                for name in oracle
            ]
    return found


def distance(ours: Any, oracle: Any) -> float:
    """||g - g'|| / ||g'|| in float64; 0 when both are zero, infinite when only the oracle is."""
    import torch

    a, b = ours.double(), oracle.double()
    size, gap = float(torch.linalg.vector_norm(b)), float(torch.linalg.vector_norm(a - b))
    return gap / size if size else (0.0 if gap == 0.0 else float("inf"))


def _limit(dtype: str, oracle: Any, truth: Any, proven: bool) -> float:
    own_error = distance(oracle, truth) if dtype != "float64" else 0.0
    return max(LIMITS[dtype], (PROVEN_ERROR_FACTOR if proven else OWN_ERROR_FACTOR) * own_error)


def _trainable(attached: Attached) -> dict[str, Any]:
    wanted = set(attached.parameters)
    return {name: p for name, p in attached.model.named_parameters() if name in wanted}


def _random_values(build: Build, attach: Attach, seed: int) -> Gradients:
    """Values for everything that trains, float32-representable, so that both dtypes hold the same
    numbers: as attached, plus noise."""
    import torch

    torch.manual_seed(stream_seed(seed, "certificate"))
    values = {}
    for name, p in _trainable(attach(build("float32"))).items():
        spread = float(p.detach().std()) if p.numel() > 1 else 0.0
        values[name] = (
            p.detach().cpu() + torch.randn(p.shape) * (0.5 * spread if spread > 0 else NOISE)
        ).float()
    return values


def _start(build: Build, attach: Attach, dtype: str, values: Gradients) -> tuple[Any, Attached]:
    """A fresh model with the method on it, everything of it in `dtype`, and the randomised values
    put in."""
    import torch

    causal = build(dtype)
    attached = attach(causal)
    attached.model.to(getattr(torch, dtype))
    with torch.no_grad():
        for name, p in _trainable(attached).items():
            p.copy_(values[name])
    attached.model.eval()
    if dtype == "float64" and hasattr(causal, "set_experts_implementation"):
        # PyTorch's grouped product of experts has no float64 form; the loop over experts has.
        causal.set_experts_implementation("eager")
    return causal, attached


@contextlib.contextmanager
def full_width() -> Iterator[None]:
    """Inside, a float64 tensor is never narrowed to float32 by `.float()`, `.to(float32)` or
    `dtype=float32`, a matrix product of float64 and float32 is float64, and a number beyond float32
    is filled in as float64. Other tensors are left alone."""
    import torch
    from torch.overrides import TorchFunctionMode

    products = (torch.matmul, torch.Tensor.matmul, torch.bmm, torch.Tensor.bmm)

    class KeepWide(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            kwargs = dict(kwargs or {})
            if args and isinstance(args[0], torch.Tensor) and args[0].dtype is torch.float64:
                if func is torch.Tensor.float:
                    return args[0]
                if func in (torch.Tensor.to, torch.Tensor.type):
                    args = (
                        args[0],
                        *(torch.float64 if a is torch.float32 else a for a in args[1:]),
                    )
                if kwargs.get("dtype") is torch.float32:
                    kwargs["dtype"] = torch.float64
            if func in products and {a.dtype for a in args[:2]} == {torch.float32, torch.float64}:
                # Rotary positions of older Transformers (5.17): the frequencies were kept wide.
                args = (*(a.double() for a in args[:2]), *args[2:])
            if func is torch.full and "dtype" not in kwargs and _is_wide(args[1:]):
                kwargs["dtype"] = torch.float64
            return func(*args, **kwargs)

    with KeepWide():
        yield


def _is_wide(values: tuple[Any, ...]) -> bool:
    """Whether a number has no place in float32: XGLM's least score, in float64."""
    import torch

    return any(isinstance(v, float) and abs(v) > torch.finfo(torch.float32).max for v in values)


def _width(dtype: str) -> Any:
    return full_width() if dtype == "float64" else contextlib.nullcontext()


def _oracle(
    build: Build,
    attach: Attach,
    samples: Sequence[Sample],
    dtype: str,
    values: Gradients,
    attention: str | None,
    own_loss: bool = True,
) -> tuple[Gradients, float]:
    """Gradients and loss of stock Transformers: one sample at a time, its own attention and its own
    loss, divided by the step's learnt tokens."""
    import torch

    from tunewright.models.load import stock_attention

    causal, attached = _start(build, attach, dtype, values)
    for module in attached.model.modules():
        # What this package put on single instances goes: the class's own forward is the stock one.
        module.__dict__.pop("forward", None)
    causal.set_attn_implementation(attention or stock_attention(causal))
    learnt = sum(len(b.learnt) for s in samples for b in s.branches)
    loss = 0.0
    with _width(dtype):
        for branch in (b for s in samples for b in s.branches):
            labels = torch.full((1, len(branch.tokens)), -100)
            labels[0, branch.learnt] = torch.tensor([branch.tokens[i] for i in branch.learnt])
            ids = torch.tensor([branch.tokens], device=causal.device)
            if own_loss:
                out = attached.model(
                    input_ids=ids,
                    labels=labels.to(causal.device),
                    num_items_in_batch=learnt,
                    use_cache=False,
                )
                part = out.loss
            else:
                z = attached.model(input_ids=ids, use_cache=False).logits[0, :-1]
                wanted = labels[0, 1:].to(z.device)
                part = torch.nn.functional.cross_entropy(z, wanted, reduction="sum") / learnt
            part.backward()
            loss += float(part.detach())
    gradients = _taken(attached)
    del causal, attached
    gc.collect()
    return gradients, loss


def _taken(attached: Attached) -> Gradients:
    import torch

    taken = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in _trainable(attached).items()
    }
    for p in attached.model.parameters():
        p.grad = None
    return taken


def _engine(
    build: Build,
    attach: Attach,
    samples: Sequence[Sample],
    dtype: str,
    values: Gradients,
    rows_per_pass: tuple[int, ...],
    layout: str,
    attention: str,
) -> Iterator[tuple[int, Gradients, Any]]:
    """(rows_per_pass, gradients, step report) of our engine as a run uses it, for every way of
    cutting the step."""
    from tunewright.engine.loaded import use_layout
    from tunewright.engine.policy import Policy
    from tunewright.engine.step import Stepper
    from tunewright.models.kernels.fused import accelerate

    causal, attached = _start(build, attach, dtype, values)
    use_layout(causal, layout)
    entry = objectives.get("sft")
    assert entry is not None
    with _width(dtype):
        accelerate(causal)
        import torch

        unused: Any = torch.optim.SGD([p for _, p in sorted(_trainable(attached).items())], lr=0.0)
        stepper = Stepper(
            Policy(attached.model, causal, layout),
            attached,
            entry.function(entry.config()),
            unused,
            1,
            None,
            0,
        )
        stepper.policy.attention = attention
        for rows in rows_per_pass:
            stepper.rows_per_pass = rows
            report = stepper.gradients(list(samples))
            yield rows, _taken(attached), report
    del causal, attached, stepper
    gc.collect()


def pick(samples: Sequence[Sample], count: int = 6, max_tokens: int = 256) -> list[Sample]:
    """A few short samples of weight 1 for a certificate that takes seconds. Prefers the shortest;
    an empty list if none is short enough."""
    plain = [
        s
        for s in samples
        if all(w == 1.0 for b in s.branches for w in b.weights)
        and all(b.learnt for b in s.branches)
    ]
    short = sorted(plain, key=lambda s: sum(len(b.tokens) for b in s.branches))[:count]
    return [s for s in short if sum(len(b.tokens) for b in s.branches) <= max_tokens]


def bench_certificate(
    folder: Path,
    samples: Sequence[Sample],
    *,
    method: str = "lora",
    config: Any = None,
    dtypes: tuple[str, ...] = ("float64", "float32"),
    count: int = 6,
    layout: str = "tree",
    attention: str = "blocks",
) -> Certificate:
    """The certificate on the user's own model and data: a few short samples, one pass and one
    sample a pass. Works on models it loads itself.

    `config` is the method's config (None: its defaults). Raises ValueError when no sample is short
    enough and of weight 1.
    """
    from tunewright.engine.loaded import put_new
    from tunewright.models import anatomy
    from tunewright.models.load import load_model

    chosen = pick(samples, count)
    if not chosen:
        raise ValueError("no sample of weight 1 is short enough for the certificate")
    entry = methods.get(method)
    assert entry is not None, method
    settings = entry.config() if config is None else config

    def attach(model: Any) -> Attached:
        return put_new(settings, model, anatomy.of(model), str(folder))

    return certify(
        lambda dtype: load_model(folder, dtype=dtype),
        attach,
        chosen,
        dtypes=dtypes,
        rows_per_pass=(1 << 30, 1),
        layout=layout,
        attention=attention,
    )
