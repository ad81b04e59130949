"""Gates of the hard concrete kind and the differences behind them (Louizos et al. 2018, arXiv
1712.01312; Guo et al. 2021), for `methods.diff_pruning`.

Apart from the method because these classes need torch when they are defined, and the list of
methods must load without it.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from tunewright.core.seeds import stream_seed


class Settings(Protocol):
    """What gates are told (`DiffPruningConfig`)."""

    @property
    def stretch(self) -> tuple[float, float]: ...
    @property
    def temperature(self) -> float: ...
    @property
    def open_at_start(self) -> float: ...
    @property
    def structured(self) -> bool: ...


class Shared(Protocol):
    """What all gated matrices of a model have in common."""

    seed: int
    step: int
    fixed: bool

    @property
    def config(self) -> Settings: ...
    def versions(self) -> tuple[int, ...]:
        """Changes whenever a difference or a gate does."""

    def threshold(self) -> float:
        """Magnitude of the smallest difference that is kept."""


LEAK = 1e-3
"""What a gate that is closed without noise lets through, times sigmoid(a)."""


def noisy(
    shape: tuple[int, ...], a: Tensor, generator: torch.Generator, c: Settings
) -> tuple[Tensor, Tensor]:
    """(z, dz / da) of gates with parameters a under the next noise of `generator`."""
    low, high = c.stretch
    u = torch.rand(shape, generator=generator, device=a.device, dtype=a.dtype).clamp_(
        1e-6, 1 - 1e-6
    )
    s = torch.logit(u).add_(a).div_(c.temperature).sigmoid_()
    z = s * (high - low) + low
    inside = (z > 0) & (z < 1)
    return z.clamp_(0, 1), s.mul_(1 - s).mul_((high - low) / c.temperature).mul_(inside)


def quiet(a: Tensor, c: Settings) -> Tensor:
    """z of gates with parameters a, without noise."""
    s = torch.sigmoid(a)
    return torch.maximum(s * LEAK, (s * (c.stretch[1] - c.stretch[0]) + c.stretch[0]).clamp_(max=1))


class Gated(torch.autograd.Function):
    """z * w under the noise of one seed. Saves its inputs only; the noise is drawn again for the
    gradient."""

    @staticmethod
    def forward(
        ctx: Any, w: Tensor, gate: Tensor, group: Tensor | None, seed: int, c: Settings
    ) -> Tensor:
        ctx.save_for_backward(w, gate, group)
        ctx.seed, ctx.config = seed, c
        generator = torch.Generator(device=w.device).manual_seed(seed)
        z, _ = noisy(w.shape, gate, generator, c)
        out = z.mul_(w)
        return out if group is None else out.mul_(noisy((), group, generator, c)[0])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        w, gate, group = ctx.saved_tensors
        g, generator = grads[0], torch.Generator(device=w.device).manual_seed(ctx.seed)
        z, slope = noisy(w.shape, gate, generator, ctx.config)
        if group is None:
            return g * z, slope.mul_(g).mul_(w), None, None, None
        zg, slope_g = noisy((), group, generator, ctx.config)
        along = g * w
        return z * g * zg, slope.mul_(along).mul_(zg), (along * z).sum() * slope_g, None, None


class OpenGates(torch.autograd.Function):
    """sum sigmoid(a - shift), times the same of the whole matrix's gate. Scalar."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, group: Tensor | None, shift: float) -> Tensor:
        ctx.save_for_backward(gate, group)
        ctx.shift = shift
        total = torch.sigmoid(gate - shift).sum()
        return total if group is None else total * torch.sigmoid(group - shift)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gate, group = ctx.saved_tensors
        p = torch.sigmoid(gate - ctx.shift)
        if group is None:
            return p.mul_(1 - p).mul_(grads[0]), None, None
        q, total = torch.sigmoid(group - ctx.shift), p.sum()
        return p.mul_(1 - p).mul_(grads[0] * q), grads[0] * total * q * (1 - q), None


class Difference(nn.Module):
    """The difference of one matrix, laid as its weight lies. Without gates (`gated` False) the
    difference is what it is."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, ...],
        device: torch.device,
        dtype: torch.dtype,
        shared: Shared,
        gated: bool,
        turned: bool,
    ):
        super().__init__()
        c = shared.config
        self.w = nn.Parameter(torch.zeros(shape, device=device, dtype=dtype))
        self.gate = (
            nn.Parameter(torch.full(shape, c.open_at_start, device=device, dtype=dtype))
            if gated
            else None
        )
        self.group = (
            nn.Parameter(torch.tensor(c.open_at_start, device=device, dtype=dtype))
            if gated and c.structured
            else None
        )
        self.name, self.shared, self.turned = name, shared, turned
        self.kept: tuple[object, Tensor] | None = None

    def mean_delta(self) -> Tensor:
        """z * w without noise, a new tensor; nothing is cut."""
        if self.gate is None:
            return self.w.detach().clone()
        z = quiet(self.gate.detach(), self.shared.config)
        if self.group is not None:
            z.mul_(quiet(self.group.detach(), self.shared.config))
        return z.mul_(self.w.detach())

    @torch.no_grad()
    def pruned(self) -> Tensor:
        """What is saved: the differences that are among the largest of the whole model, 0
        elsewhere."""
        delta = self.mean_delta()
        return (
            delta
            if self.gate is None
            else delta.mul_(delta.abs() >= max(self.shared.threshold(), 1e-30))
        )

    def delta(self, kind: torch.dtype) -> Tensor:
        """The difference as this forward pass uses it, in dtype `kind`."""
        if self.training and torch.is_grad_enabled() and self.w.requires_grad:
            self.kept = None
            assert self.gate is not None
            if self.shared.fixed:
                return (self.w * (self.gate > 0)).to(kind)
            seed = stream_seed(self.shared.seed, self.name, self.shared.step)
            return Gated.apply(self.w, self.gate, self.group, seed, self.shared.config).to(kind)
        key = (self.shared.versions(), kind)
        if self.kept is None or self.kept[0] != key:
            self.kept = (key, self.pruned().to(kind))
        return self.kept[1]

    def forward(self, x: Tensor) -> Tensor:
        delta = self.delta(x.dtype)
        return x @ delta if self.turned else torch.nn.functional.linear(x, delta)
