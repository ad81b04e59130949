"""The same arithmetic in fewer visits to memory, for the parts of a block that are not matrix
products, on a CPU.

Half of a small model's step is not matrix products: a norm written in float32 steps makes nine
tensors of the size of its input, and every one is paid in page faults. Each replacement here is put
on single module instances, is checked against the module's own forward on random rows when it is
put there, and steps aside where they differ or where the module's own weights train. Nothing of a
model's code is copied.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

_FORMS: dict[tuple[Any, ...], tuple[bool, bool] | None] = {}
"""What `_fitting_form` found."""
_without_gradient: ContextVar[bool] = ContextVar("fused_without_gradient", default=False)


@contextlib.contextmanager
def fused_without_gradient() -> Iterator[None]:
    """Inside, the fused forms also serve passes without gradient. Outside of it such a pass is an
    answer being written, which stays the model's own to the bit."""
    token = _without_gradient.set(True)
    try:
        yield
    finally:
        _without_gradient.reset(token)


def may_fuse() -> bool:
    """Whether fused forms serve the pass that is running."""
    return torch.is_grad_enabled() or _without_gradient.get()


def _wide(x: Tensor) -> torch.dtype:
    return torch.promote_types(x.dtype, torch.float32)


class _RMSNorm(torch.autograd.Function):
    """y = x / sqrt(mean(x^2) + eps) * scale, for a scale that does not train (Zhang and Sennrich
    2019). x (..., D)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, eps: float, round_first: bool) -> Tensor:
        wide = _wide(x)
        norm = torch.linalg.vector_norm(x, 2, -1, keepdim=True, dtype=wide)
        r = torch.rsqrt(norm * norm / x.shape[-1] + eps)
        ctx.save_for_backward(x, scale, r)
        # Converting first is one pass over whole vectors; a product of two dtypes goes number
        # by number.
        y = x.to(wide).mul_(r) if x.dtype != wide else x * r
        # Llama rounds before it scales, Gemma after.
        return y.to(x.dtype).mul_(scale) if round_first else (y * scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, scale, r = ctx.saved_tensors
        gs, x_wide = (grads[0] * scale).to(r.dtype), x.to(r.dtype)
        dot = torch.linalg.vecdot(gs, x_wide).unsqueeze(-1)
        dx = gs.addcmul_(x_wide, dot * (r * r) / x.shape[-1], value=-1).mul_(r)
        return dx.to(x.dtype), None, None, None


class _LowRankLinear(torch.autograd.Function):
    """y = x W^T + b + s (x A^T) B^T with W, b frozen. x (N, I), W (O, I), A (R, I), B (O, R). The
    sums stay in one buffer each way."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
    ) -> Tensor:
        a16, b16 = a.to(x.dtype), (b * scale).to(x.dtype)
        low = x @ a16.t()
        y = torch.nn.functional.linear(x, weight, bias)
        y.addmm_(low, b16.t())
        ctx.save_for_backward(x, weight, a16, b16, low)
        ctx.scale, ctx.dtypes = scale, (a.dtype, b.dtype)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a16, b16, low = ctx.saved_tensors
        g = grads[0]
        g_low = g @ b16
        dx = None
        if ctx.needs_input_grad[0]:
            dx = g @ weight
            dx.addmm_(g_low, a16)
        da = (g_low.t() @ x).to(ctx.dtypes[0])
        # The long side last: half the time of g^T low.
        db = (low.t() @ g).t().to(ctx.dtypes[1]).mul_(ctx.scale)
        return dx, None, None, da, db, None


def low_rank_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None, a: Tensor, b: Tensor, scale: float
) -> Tensor:
    """A frozen linear layer with a LoRA update (Hu et al. 2021): x (..., I) -> (..., O)."""
    flat = x.reshape(-1, x.shape[-1])
    return _LowRankLinear.apply(flat, weight, bias, a, b, scale).view(
        *x.shape[:-1], weight.shape[0]
    )


def _scale(weight: Tensor, one: bool) -> Tensor:
    """Gemma adds 1 to the weight in float32: in bfloat16 the sum would round every channel's scale
    to 8 bits."""
    return weight.to(_wide(weight)) + 1 if one else weight


def norm_parts(module: nn.Module) -> tuple[Tensor, float] | None:
    """(weight, epsilon) of a root-mean-square norm; None for anything else."""
    weight = getattr(module, "weight", None)
    eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if (
        not type(module).__name__.endswith("RMSNorm")
        or not isinstance(weight, nn.Parameter)
        or weight.ndim != 1
        or not isinstance(eps, float)
    ):
        return None
    return weight, eps


@torch.no_grad()
def _fitting_form(module: nn.Module, weight: Tensor, eps: float) -> tuple[bool, bool] | None:
    """(adds one to the weight, rounds before scaling) of the form that equals the module's own
    forward best on random rows, or None."""
    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(64, len(weight), generator=generator) * 3).to(weight.dtype)
    own = module(x)
    fitting: list[tuple[float, tuple[bool, bool]]] = []
    for one in (False, True):
        for round_first in (True, False):
            ours = _RMSNorm.apply(x, _scale(weight, one), eps, round_first)
            if own.dtype == ours.dtype and torch.allclose(
                ours, own, rtol=4 * torch.finfo(weight.dtype).eps, atol=0
            ):
                # In half precision both orders of rounding are within the tolerance; the module's
                # own is the closest.
                fitting.append((float((ours - own).double().abs().sum()), (one, round_first)))
    return min(fitting, key=lambda entry: entry[0])[1] if fitting else None


def _form_of(module: nn.Module, weight: Tensor, eps: float) -> tuple[bool, bool] | None:
    """`_fitting_form`, found once for modules of one class with equal weights: a run opens its base
    twice."""
    content = weight.detach().contiguous().view(torch.uint8).numpy().tobytes()
    digest = hashlib.blake2b(content, digest_size=16).digest()
    settings = {k: v for k, v in vars(module).items() if isinstance(v, bool | int | float | str)}
    key = (type(module), weight.dtype, eps, repr(settings), digest)
    if "forward" in vars(module):  # somebody's own
        return _fitting_form(module, weight, eps)
    if key not in _FORMS:
        found = _fitting_form(module, weight, eps)
        if found is None:
            return None
        _FORMS[key] = found
    return _FORMS[key]


def norm_form(module: nn.Module) -> tuple[Tensor, float, bool] | None:
    """(weight, epsilon, whether 1 is added to the weight) of a norm that has the fused form, or
    None."""
    parts = norm_parts(module)
    if module not in _forms:
        _forms[module] = _form_of(module, *parts) if parts else None
    form = _forms[module]
    return None if parts is None or form is None else (*parts, form[0])


_forms: WeakKeyDictionary[nn.Module, tuple[bool, bool] | None] = WeakKeyDictionary()
"""The form of each norm that was looked at: it is a matter of its code, not of its weights."""


def _replace_norm(module: nn.Module) -> bool:
    parts = norm_parts(module)
    form = _form_of(module, *parts) if parts else None
    _forms[module] = form
    if parts is None or form is None:
        return False
    (_, eps), (one, round_first) = parts, form
    norm: Any = module
    own_forward = module.forward

    def forward(x: Tensor) -> Tensor:
        if norm.weight.requires_grad or not may_fuse():
            return own_forward(x)
        return _RMSNorm.apply(x, _scale(norm.weight, one), eps, round_first)

    norm.forward = forward
    return True


def accelerate(model: nn.Module) -> int:
    """Put the fused forms on `model`, which stays the same function. Returns how many modules were
    replaced; 0 away from a CPU."""
    if next(model.parameters()).device.type != "cpu":
        return 0
    return sum(_replace_norm(module) for module in model.modules() if not list(module.children()))
