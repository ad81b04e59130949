"""Diff pruning: a sparse difference to a frozen model, and which weights may differ is learnt (Guo
et al. 2021, arXiv 2012.07463).

Every weight i of the chosen matrices gets a difference w_i and a gate with parameter a_i (hard
concrete, Louizos et al. 2018, arXiv 1712.01312):

    u ~ U(0, 1)     s = sigmoid((log u - log(1 - u) + a) / temperature)     z = min(1, max(0, low +
    s (high - low)))     y = x (W + z * w)^T

with low < 0 < 1 < high, so that z is exactly 0 or 1 with positive probability. The expected number
of open gates is differentiable, sum_i sigmoid(a_i - temperature log(-low / high)), and its share of
all gates times `l0` is a named term of the loss. `structured` multiplies every gate of a matrix by
one more gate for the whole matrix. Without noise (measuring, answering, saving)

    z = max(sigmoid(a) / 1000, min(1, low + sigmoid(a) (high - low)))

The thousandth is ours: where fewer gates are open than weights may differ, the best of the closed
ones fill up the share, nearly at zero.

Two phases, as in the paper (section 3.3): after `settle` of the steps the largest `target` of all
differences z * w are kept and the mask is fixed; the rest of the steps trains the kept differences.
Fine-tuning under the final mask repairs what the cut broke; without it the cut is the last thing
that happens to the model. Measured without noise, the model is always the one that would be saved:
only the kept share of differences counts.

The noise of a step is a pure function of (seed of the run, module, step): drawn again in the
backward pass, equal in every pass and layout of a step and after a resume.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field, model_validator

from tunewright.core.errors import ConfigError, ModelError, problem
from tunewright.core.refusals import refused
from tunewright.core.registry import method, usual_rate
from tunewright.core.types import Attached, Model, Needs, Term
from tunewright.methods import saved
from tunewright.methods.targets import MethodSection, Names, chosen_roles
from tunewright.models.anatomy import Anatomy, shape_of
from tunewright.models.shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor

    from tunewright.methods.hard_concrete import Difference

FIXED = 1e4
"""Gate parameter of a weight whose gate is fixed: + open, - closed, whatever the noise."""
ESCAPE = 255
"""Code of a gap of 255 that goes on in the next byte."""


class DiffPruningConfig(MethodSection):
    """A learnt sparse difference to the frozen model."""

    target: float = Field(default=0.005, gt=0, lt=1)
    """Share of all weights of the model that may differ at the end. 0.005 is the paper's."""
    targets: Names = ["linear"]
    """Roles, groups or module names of the matrices that may differ. Each of their weights costs 32
    bytes during training."""
    l0: float = Field(default=10.0, ge=0)
    """Weight of the penalty on the expected share of open gates."""
    stretch: tuple[float, float] = (-1.5, 1.5)
    """The two ends between which a gate is stretched before it is cut to 0..1."""
    temperature: float = Field(default=1.0, gt=0)
    """Temperature of the gates; lower is closer to 0 or 1."""
    open_at_start: float = 5.0
    """Parameter of every gate at the start: 5 is open with probability 0.99."""
    gate_rate: float = Field(default=500.0, gt=0)
    """The gates learn at this multiple of the learning rate, because their parameters are around 1
    and the differences around a thousandth."""
    structured: bool = False
    """One more gate for each matrix, so that whole matrices can stay as they are."""
    settle: float = Field(default=0.6, gt=0, le=1)
    """Share of the steps after which the mask is fixed; the rest trains the differences that were
    kept. 1: cut at the end only."""

    @model_validator(mode="after")
    def _around(self) -> DiffPruningConfig:
        if not self.stretch[0] < 0 < 1 < self.stretch[1]:
            raise refused("stretch")
        return self

    def trainable_numbers(self, shape: ModelShape) -> int:
        """A difference and a gate for each weight of the chosen matrices."""
        chosen = [shape.matrices[role] for role in chosen_roles(self.targets, shape)]
        return 2 * sum(m.weights for m in chosen) + sum(m.count * self.structured for m in chosen)


def gaps_of(positions: Tensor) -> Tensor:
    """Increasing positions (n,) int64 -> bytes (m,) uint8: each distance to the one before, less 1,
    as a run of 255s and a rest below 255.

    At a share of 0.5 % a position costs about 1.4 bytes, an eighth of 64 bits; all positions
    together never more than n + N / 255.
    """
    import torch

    before = torch.cat([positions.new_tensor([-1]), positions[:-1]])
    gaps = positions - before - 1
    runs = gaps // ESCAPE
    ends = torch.cumsum(runs + 1, 0)
    codes = torch.full((int(ends[-1]) if len(ends) else 0,), ESCAPE, dtype=torch.uint8)
    codes[ends - 1] = (gaps - runs * ESCAPE).to(torch.uint8)
    return codes


def positions_of(codes: Tensor) -> Tensor:
    """The inverse of `gaps_of`."""
    import torch

    walked = torch.cumsum(codes.to(torch.int64), 0)
    ends = torch.nonzero(codes != ESCAPE).flatten()
    return walked[ends] + torch.arange(len(ends))


@dataclass
class Shared:
    """What all gated matrices of a model have in common."""

    config: DiffPruningConfig
    seed: int
    step: int = 1
    on: bool = True
    fixed: bool = False
    settle_step: int | None = None
    quota: int = 0
    parts: dict[str, Difference] = field(default_factory=dict)
    threshold_of: tuple[tuple[int, ...], float] = ((), 0.0)

    def versions(self) -> tuple[int, ...]:
        """Changes whenever a difference or a gate does."""
        return tuple(p._version for part in self.parts.values() for p in part.parameters())

    def threshold(self) -> float:
        """Magnitude of the smallest difference that is kept."""
        import torch

        now = self.versions()
        if self.threshold_of[0] != now:
            with torch.no_grad():
                sizes = torch.cat(
                    [part.mean_delta().abs_().flatten() for part in self.parts.values()]
                )
                least = float(torch.topk(sizes, self.quota, sorted=False).values.min())
            self.threshold_of = (now, least)
        return self.threshold_of[1]


def _put(model: Model, names: list[str], shared: Shared, gated: bool) -> list[str]:
    """Differences beside the named linear modules. Returns the names of their parameters."""
    import torch

    from tunewright.methods.hard_concrete import Difference

    made = []
    reference = next(model.parameters())
    for name in names:
        module = model.get_submodule(name)
        turned = type(module).__name__ == "Conv1D"  # GPT-2 stores its weights turned
        inputs, outputs = shape_of(module)
        shape = (inputs, outputs) if turned else (outputs, inputs)
        part = Difference(
            name,
            shape,
            reference.device,
            torch.promote_types(reference.dtype, torch.float32),
            shared,
            gated,
            turned,
        )
        module.add_module("difference", part)
        module.forward = _beside(module.forward, part, shared)
        shared.parts[name] = part
        made += [f"{name}.difference.{n}" for n, _ in part.named_parameters()]
    return saved.in_order(model, made)


def _beside(
    own_forward: Callable[..., Tensor], part: Difference, shared: Shared
) -> Callable[..., Tensor]:
    def forward(x: Tensor, *args: object, **named: object) -> Tensor:
        y = own_forward(x, *args, **named)
        # Beside the frozen product, not inside its weight: in bfloat16 a sum W + z w would lose
        # most differences.
        return y + part(x) if shared.on else y

    return forward


def load(
    config: DiffPruningConfig, model: Model, folder: Path, base_path: str, trainable: bool
) -> Attached:
    """The saved difference of `folder` on `model`. Trained further, its places stay as they are."""
    import torch

    stored = read_differences(folder)
    shared = Shared(config, 0, fixed=True)
    by_name = dict(model.named_modules())
    missing = [name for name in stored if name not in by_name]
    if missing:
        raise ModelError(problem("E-METHOD-42", str(folder), count=len(missing), first=missing[0]))
    parameters = _put(model, list(stored), shared, gated=trainable)
    with torch.no_grad():
        for name, (positions, values) in stored.items():
            part = shared.parts[name]
            if len(positions) and int(positions[-1]) >= part.w.numel():
                raise ModelError(problem("E-METHOD-42", str(folder), count=1, first=name))
            part.w.view(-1)[positions.to(part.w.device)] = values.to(part.w)
            if part.gate is not None:
                part.gate.copy_(torch.where(part.w != 0, FIXED, -FIXED))
            if part.group is not None:
                part.group.fill_(FIXED)
    shared.quota = max(1, sum(len(positions) for positions, _ in stored.values()))
    attached = _attached(config, model, base_path or saved.read(folder).base, shared, parameters)
    if not trainable:
        for part in shared.parts.values():
            part.requires_grad_(False)
        model.eval()
    return attached


@method(
    "diff_pruning",
    DiffPruningConfig,
    source="arXiv 2012.07463",
    trains="a sparse difference whose places are learnt",
    on_quantised=True,
    load=load,
    rate=5e-5,
    in_shares=False,
)
def diff_pruning(
    config: DiffPruningConfig, model: Model, anatomy: Anatomy, base_path: str
) -> Attached:
    """Put a gated difference beside every chosen matrix of `model`.

    Raises ModelError (E-METHOD-44) for a target that is no matrix of a block and ConfigError
    (E-METHOD-43) when `target` asks for more weights than the chosen matrices have.
    """
    import torch

    from tunewright.models.quantised import parameter_count

    names = anatomy.select(config.targets)
    outside = [name for name in names if name not in set(anatomy.linear)]
    if outside:
        raise ModelError(problem("E-METHOD-44", "method.targets", name=outside[0]))
    shared = Shared(config, int(torch.randint(2**31, ()).item()))
    total = parameter_count(model)
    shared.quota = max(1, round(config.target * total))
    parameters = _put(model, names, shared, gated=True)
    available = sum(part.w.numel() for part in shared.parts.values())
    if shared.quota > available:
        raise ConfigError(
            problem(
                "E-METHOD-43",
                "method.target",
                target=config.target,
                share=f"{available / total:.3f}",
            )
        )
    return _attached(config, model, base_path, shared, parameters)


def _attached(
    config: DiffPruningConfig, model: Model, base_path: str, shared: Shared, parameters: list[str]
) -> Attached:
    num_gates = sum(part.w.numel() for part in shared.parts.values())
    shift = config.temperature * math.log(-config.stretch[0] / config.stretch[1])

    @contextlib.contextmanager
    def disabled() -> Iterator[None]:
        shared.on = False
        try:
            yield
        finally:
            shared.on = True

    def penalties() -> dict[str, Term]:
        if shared.fixed:
            return {}
        from tunewright.methods.hard_concrete import OpenGates

        open_gates = [
            OpenGates.apply(part.gate, part.group, shift) for part in shared.parts.values()
        ]
        return {"l0": (sum(open_gates) / num_gates, config.l0)}

    def begin(steps: int) -> None:
        shared.settle_step = max(1, round(config.settle * steps)) if config.settle < 1 else steps

    def after_update(number: int) -> None:
        shared.step = number + 1
        if shared.settle_step is not None and number >= shared.settle_step and not shared.fixed:
            _fix(shared)

    def state() -> dict[str, Any]:
        return {"seed": shared.seed, "step": shared.step, "fixed": shared.fixed}

    def load_state(given: dict[str, Any]) -> None:
        shared.seed, shared.step, shared.fixed = (
            int(given["seed"]),
            int(given["step"]),
            bool(given["fixed"]),
        )

    def save(folder: Path) -> None:
        save_differences(
            folder, config, base_path, {name: part.pruned() for name, part in shared.parts.items()}
        )

    trains = any(part.gate is not None for part in shared.parts.values())
    return Attached(
        parameters=parameters,
        model=model,
        needs=Needs(frozen_base=True),
        save=save,
        disabled=disabled,
        merge=lambda: _merge(model, shared),
        penalties=penalties if trains else None,
        begin=begin,
        after_update=after_update if trains else None,
        state=state,
        load_state=load_state,
        learning_rate=usual_rate("diff_pruning"),
        rate_factors={
            name: config.gate_rate for name in parameters if name.endswith((".gate", ".group"))
        },
    )


def _fix(shared: Shared) -> None:
    """End of the first phase: keep the largest differences, close every other gate for good."""
    import torch

    shared.threshold()
    with torch.no_grad():
        kept = {name: part.pruned() for name, part in shared.parts.items()}
        for name, part in shared.parts.items():
            part.w.copy_(kept[name])
            if part.gate is not None:
                part.gate.copy_(torch.where(kept[name] != 0, FIXED, -FIXED))
            if part.group is not None:
                part.group.fill_(FIXED)
    shared.fixed = True


def _merge(model: Model, shared: Shared) -> Model:
    """Add the differences to the weights; the second time there is nothing left to add."""
    import torch

    with torch.no_grad():
        kept = {name: part.pruned() for name, part in shared.parts.items()}
        for name, delta in kept.items():
            module = model.get_submodule(name)
            weight = module.get_parameter("weight")
            weight.copy_((weight.to(delta.dtype) + delta).to(weight.dtype))
            del module.forward
            del module.difference
    shared.parts.clear()
    return model


def save_differences(
    folder: Path, config: DiffPruningConfig, base_path: str, differences: dict[str, Tensor]
) -> dict[str, int]:
    """Write the sparse differences: module name -> dense tensor, mostly 0, as its weight lies.
    Returns {"changed": how many weights differ}."""
    import torch

    tensors: dict[str, Tensor] = {}
    changed = 0
    for name, delta in differences.items():
        flat = delta.detach().flatten().cpu()
        positions = torch.nonzero(flat).flatten()
        changed += len(positions)
        tensors[f"{name}.gaps"], tensors[f"{name}.values"] = (
            gaps_of(positions),
            flat[positions].contiguous(),
        )
    saved.write(folder, "diff_pruning", config, base_path, tensors, changed=changed)
    return {"changed": changed}


def read_differences(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Module name -> (positions, values) of a saved folder. Raises ModelError (E-METHOD-41) for a
    file that contradicts itself."""
    tensors = saved.read_tensors(folder)
    found = {}
    for name in sorted({key.rpartition(".")[0] for key in tensors}):
        gaps, values = tensors.get(f"{name}.gaps"), tensors.get(f"{name}.values")
        positions = None if gaps is None else positions_of(gaps)
        if positions is None or values is None or len(positions) != len(values):
            raise ModelError(problem("E-METHOD-41", str(folder), cause=name))
        found[name] = (positions, values)
    return found
