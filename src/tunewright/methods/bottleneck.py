"""Bottleneck adapters: a small two-layer network inside every block, on a frozen model.

One adapter, with x of width D, a waist of R and a non-linearity f:

    A(x) = W_up f(W_down x + b_down) + b_up          W_down: R x D, W_up: D x R

Where it stands decides its name. S is what a sublayer (attention or feed-forward) adds to the
residual stream h:

    houlsby    h + S(h)  becomes  h + S(h) + A(S(h)),   after attention and after feed-forward
    Houlsby et al. 2019, arXiv 1902.00751
    pfeiffer   the same, after feed-forward only
    Pfeiffer et al. 2020, arXiv 2005.00052
    parallel   h + F(n)  becomes  h + F(n) + s A(n),    n what feed-forward F reads, s a constant
    He et al. 2021, arXiv 2110.04366

W_up, b_down and b_up start at 0, so at step 0 nothing changes. An adapter works on one token row at
a time, so every layout and the cache of keys and values stay as they are. It cannot be folded into
plain weights: f stands between its two matrices. PEFT has none of the three.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from tunewright.core.errors import ModelError, problem
from tunewright.core.registry import method, usual_rate
from tunewright.core.types import Attached, Model, Needs
from tunewright.core.words import say
from tunewright.methods import saved
from tunewright.methods.targets import MethodSection
from tunewright.models.anatomy import Anatomy, is_linear, shape_of
from tunewright.models.anatomy import of as anatomy_of
from tunewright.models.shape import ModelShape

if TYPE_CHECKING:
    from torch import Tensor, nn

NO_MERGE = "a non-linear function stands between the two matrices"
Placement = Literal["pfeiffer", "houlsby", "parallel"]


class AdapterConfig(MethodSection):
    """Small two-layer networks inside the blocks."""

    bottleneck: int = Field(default=64, gt=0)
    """Width of the bottleneck. Trained parameters grow linearly; 16 to 256 covers most tasks."""
    activation: Literal["relu", "gelu", "silu", "tanh"] = "relu"
    """The non-linearity in the bottleneck."""
    placement: Placement = "pfeiffer"
    """pfeiffer: after each feed-forward part. houlsby: after each attention and each feed-forward
    part. parallel: beside each feed-forward part."""
    scale: float = Field(default=1.0, gt=0)
    """What the adapter's output is multiplied by. He et al. use 4 for the parallel placement."""

    def trainable_numbers(self, shape: ModelShape) -> int:
        rank = waist(self, shape.hidden)
        return int(
            shape.layers
            * (2 if self.placement == "houlsby" else 1)
            * (2 * shape.hidden * rank + rank + shape.hidden)
        )


class HoulsbyConfig(AdapterConfig):
    """Adapters after attention and after feed-forward."""

    placement: Literal["houlsby"] = "houlsby"
    """Where the adapters are placed; fixed by the kind."""


class PfeifferConfig(AdapterConfig):
    """Adapters after feed-forward only."""

    bottleneck: int | None = Field(default=None, gt=0)  # type: ignore[assignment]
    """Width of the bottleneck. Default: a sixteenth of the model's width, as in AdapterHub."""
    placement: Literal["pfeiffer"] = "pfeiffer"
    """Where the adapters are placed; fixed by the kind."""


class ParallelConfig(AdapterConfig):
    """Adapters beside feed-forward."""

    placement: Literal["parallel"] = "parallel"
    """Where the adapters are placed; fixed by the kind."""
    scale: float = Field(default=4.0, gt=0)
    """What the adapter's output is multiplied by; He et al. use 4."""


def waist(config: AdapterConfig, width: int) -> int:
    """R: width of the waist for a model of `width`."""
    return config.bottleneck or max(1, width // 16)


@dataclass
class _Switch:
    """Shared by all adapters of a model: one place to turn them off."""

    on: bool = True


def attach(
    kind: str, config: AdapterConfig, model: Model, anatomy: Anatomy, base_path: str
) -> Attached:
    """Put adapters into every block of `model`. Only they train, in float32 whatever the base
    computes in.

    Raises ModelError (E-METHOD-40) where a block has no module that an adapter could stand behind
    or beside.
    """
    import torch

    from tunewright.methods.layers import Bottleneck

    switch = _Switch()
    width = model.get_input_embeddings().get_parameter("weight").shape[1]
    reference = next(model.parameters())
    dtype = torch.promote_types(reference.dtype, torch.float32)
    names: list[str] = []
    for block, place, module, beside in _places(config.placement, anatomy):
        size = _width(model, config.placement, module, width)
        part = Bottleneck(
            size, waist(config, size), config.activation, config.scale, reference.device, dtype
        )
        model.get_submodule(block).add_module(f"adapter_{place}", part)
        names += [f"{block}.adapter_{place}.{name}" for name, _ in part.named_parameters()]
        model.get_submodule(module).register_forward_hook(
            _hook(part, switch, beside), with_kwargs=True
        )

    @contextlib.contextmanager
    def disabled() -> Iterator[None]:
        switch.on = False
        try:
            yield
        finally:
            switch.on = True

    def save(folder: Path) -> None:
        saved.write(folder, kind, config, base_path, saved.tensors_of(model, names))

    return Attached(
        parameters=saved.in_order(model, names),
        model=model,
        needs=Needs(frozen_base=True),
        save=save,
        disabled=disabled,
        merge=None,
        merge_reason=say("methods.adapter_no_merge"),
        learning_rate=usual_rate("parallel_adapter" if config.scale > 1 else "adapter"),
    )


def load(
    config: AdapterConfig, model: Model, folder: Path, base_path: str, trainable: bool
) -> Attached:
    """The saved adapters of `folder` on `model`."""
    described = saved.read(folder)
    attached = attach(described.kind, config, model, anatomy_of(model), base_path or described.base)
    saved.fill(model, attached.parameters, folder, trainable)
    if not trainable:
        model.eval()
    return attached


def _places(placement: Placement, anatomy: Anatomy) -> list[tuple[str, str, str, bool]]:
    """(block, `attention` or `mlp`, name of the module whose output the adapter changes, whether it
    reads that module's input)."""
    roles = {"attention": "attention.output", "mlp": "mlp.down"}
    if placement != "houlsby":
        del roles["attention"]
    found = []
    for block in anatomy.blocks:
        for place, role in roles.items():
            inside = [name for name in anatomy.roles.get(role, []) if name.startswith(f"{block}.")]
            module = inside[0] if len(inside) == 1 else ""
            if module and placement == "parallel":
                # What feed-forward reads is the input of the module around its matrices; some
                # families have none.
                module = module.rpartition(".")[0]
                module = "" if module == block else module
            if not module:
                raise ModelError(
                    problem(
                        "E-METHOD-40",
                        "method",
                        family=anatomy.family,
                        block=block,
                        role=role,
                        placement=placement,
                        count=len(inside),
                    )
                )
            found.append((block, place, module, placement == "parallel"))
    return found


def _width(model: Model, placement: Placement, module: str, embedding: int) -> int:
    """Width of the residual stream at a module: some families embed in fewer dimensions than their
    blocks work in."""
    inner = model.get_submodule(module)
    if placement != "parallel":
        return shape_of(inner)[1]
    return next((shape_of(m)[0] for m in inner.modules() if is_linear(m)), embedding)


def _hook(part: nn.Module, switch: _Switch, beside: bool) -> Callable[..., Tensor | None]:
    def after(
        module: nn.Module, given: tuple[Tensor, ...], named: dict[str, Tensor], output: Tensor
    ) -> Tensor | None:
        if not switch.on:
            return None
        if not beside:
            return output + part(output)
        x = given[0] if given else named["hidden_states"]
        return output + part(x)

    return after


def _register(kind: str, config_class: type[AdapterConfig], source: str, rate: float) -> None:
    @method(
        kind,
        config_class,
        source=source,
        trains="a small network in every block",
        merges=NO_MERGE,
        on_quantised=True,
        rate=rate,
        load=load,
    )
    def put(config: AdapterConfig, model: Model, anatomy: Anatomy, base_path: str) -> Attached:
        return attach(kind, config, model, anatomy, base_path)


_register("adapter", AdapterConfig, "arXiv 2005.00052", 3e-4)
_register("houlsby", HoulsbyConfig, "arXiv 1902.00751", 3e-4)
_register("pfeiffer", PfeifferConfig, "arXiv 2005.00052", 3e-4)
_register("parallel_adapter", ParallelConfig, "arXiv 2110.04366", 1e-4)
