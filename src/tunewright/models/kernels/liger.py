"""Liger's kernels (arXiv 2410.10989) for norms and gated MLPs on CUDA, where the package is there.

Each is put on single module instances and asked first: on random rows its output and its gradient
must be those of the module's own forward. What differs, or fails, steps aside. Rotary embedding
stays the model's own: Liger would have to be put into Transformers' code for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tunewright.models.kernels.fused import may_fuse, norm_parts

LIMITS = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 5e-3}
"""Largest difference from the module's own forward, as a share of the norm of what is compared: a
few roundings."""
ROWS = 32
FORMS = ((0.0, "llama"), (1.0, "gemma"), (0.0, "gemma"), (0.0, "none"))
"""(what is added to the weight, how Liger names where it rounds), tried in this order."""

Forward = Callable[[Tensor], Tensor]


def accelerate(model: nn.Module) -> int:
    """Put Liger's forms on `model`, which stays the same function. Returns how many modules were
    replaced; 0 where the package is not installed."""
    try:
        from liger_kernel.ops.rms_norm import LigerRMSNormFunction
        from liger_kernel.ops.swiglu import LigerSiLUMulFunction
    except Exception:  # without Triton its import fails in many ways
        return 0
    known: dict[Any, Any] = {}
    count = 0
    for module in model.modules():
        if norm_parts(module) is not None:
            forms = [_norm(module, LigerRMSNormFunction, form) for form in FORMS]
        elif _is_gated(module):
            forms = [_gated(module, LigerSiLUMulFunction)]
        else:
            continue
        count += _put(module, forms, known)
    return count


def _norm(module: Any, function: Any, form: tuple[float, str]) -> Forward:
    parts = norm_parts(module)
    assert parts is not None
    _, eps = parts
    offset, casting = form

    def forward(x: Tensor) -> Tensor:
        # Not in place: the gradient may be read by the residual beside it.
        return function.apply(x, module.weight, eps, offset, casting, False)

    return forward


def _is_gated(module: Any) -> bool:
    return type(module).__name__.endswith("MLP") and all(
        isinstance(getattr(module, name, None), nn.Module)
        for name in ("gate_proj", "up_proj", "down_proj", "act_fn")
    )


def _gated(module: Any, function: Any) -> Forward:
    def forward(x: Tensor) -> Tensor:
        # The layers are looked up when they are needed: a method may have put its own there.
        hidden = function.apply(module.gate_proj(x), module.up_proj(x))
        return module.down_proj(hidden)

    return forward


def _put(module: Any, forms: list[Forward], known: dict[Any, Any]) -> bool:
    """Put the first form that agrees on `module`. What modules of one class and shape need is found
    out once; each is tried all the same, for its weights are its own."""
    own = module.forward
    kind = (type(module), *(tuple(p.shape) for p in module.parameters()))
    order = range(len(forms)) if kind not in known else [known[kind]]
    for number in order:
        if number is not None and _agrees(module, own, forms[number]):
            known[kind] = number
            module.forward = _while_learning(own, forms[number])
            return True
    known.setdefault(kind, None)
    return False


def _while_learning(own: Forward, ours: Forward) -> Any:
    """`ours` where fused forms serve; answers are written by the module's own forward."""

    def forward(x: Tensor, *rest: Any, **named: Any) -> Any:
        if may_fuse() and not rest and not named:
            return ours(x)
        return own(x, *rest, **named)

    return forward


def _agrees(module: Any, own: Forward, ours: Forward) -> bool:
    weight = next(module.parameters())
    wide = module.gate_proj.in_features if _is_gated(module) else len(weight)
    draw = torch.Generator().manual_seed(0)
    rows, towards = (torch.randn(1, ROWS, wide, generator=draw).to(weight) for _ in range(2))
    try:
        found = []
        for forward in (own, ours):
            x = rows.clone().requires_grad_()
            with torch.enable_grad():
                y = forward(x)
                found.append((y.detach(), *torch.autograd.grad(y, x, towards)))
    except Exception:  # a kernel that fails here is not used; the module's own forward is
        return False
    limit = LIMITS.get(weight.dtype, 1e-9)
    return all(
        ours.dtype == wanted.dtype and _distance(ours, wanted) <= limit
        for ours, wanted in zip(found[1], found[0], strict=True)
    )


def _distance(ours: Tensor, wanted: Tensor) -> float:
    return float((ours.double() - wanted.double()).norm() / wanted.double().norm())
