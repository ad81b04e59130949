"""Weights of the base itself that train: held in float32, used in the model's dtype, switched
back to what they were, saved.

An update of a bfloat16 weight w is lost when it is under |w| / 256, which is nearly every update of
fine-tuning. So what trains stays in the model as a float32 parameter under its own name, and its
module sees a copy in the dtype of the model, made in each forward pass. Gradients, the
optimiser's state and checkpoints are then float32 without any special case, and resuming is exact.
In float32 there is no copy and nothing is wrapped.

Bytes for each number that trains in half precision, with AdamW: 4 weight, 4 gradient, 8 moments.
The copies of linear layers live while their product is computed, those of other modules (2 bytes)
from forward to backward.
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.types import Model

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn
    from transformers import GenerationConfig

HALF = ("torch.bfloat16", "torch.float16")


class BaseWeights:
    """The named parameters of `model`, from now on trained. `keep` holds on to what they were (in
    the model's dtype) for `originals`.

    Those in `asleep` stay in the model's dtype and do not learn until somebody wakes them
    (`methods/lisa.py`).
    """

    def __init__(self, model: Model, names: list[str], *, keep: bool, asleep: Collection[str] = ()):
        import torch

        self.model, self.names = model, names
        self.dtypes = {name: p.dtype for name, p in self.parameters.items()}
        self.kept: dict[str, Tensor] = (
            {name: p.detach().clone() for name, p in self.parameters.items()} if keep else {}
        )
        self.wrapped: dict[nn.Module, Callable[..., Any] | None] = {}
        half = {id(p): p.dtype for p in self.parameters.values() if str(p.dtype) in HALF}
        for name, p in self.parameters.items():
            if id(p) in half and name not in asleep:
                p.data = p.data.to(torch.float32)
            p.requires_grad_(name not in asleep)
        if half:
            # A matrix that stands in two places (embedding and head) is one parameter: both modules
            # see copies of it.
            for module in model.modules():
                inside = {
                    key: half[id(p)]
                    for key, p in module._parameters.items()
                    if p is not None and id(p) in half
                }
                if inside:
                    self.wrapped[module] = vars(module).get("forward")
                    module.forward = in_number_type_of(module, module.forward, inside)

    @property
    def parameters(self) -> dict[str, nn.Parameter]:
        """What trains, by name. Looked up each time: weights that were put in shares are other
        objects."""
        by_name = dict(self.model.named_parameters())
        return {name: by_name[name] for name in self.names}

    @contextlib.contextmanager
    def originals(self) -> Iterator[None]:
        """Inside, the parameters hold what they held before training. Pointers are exchanged, so a
        backward pass that is under way is not disturbed."""
        trained = {name: p.data for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            p.data = self.kept[name].to(p.dtype)
        try:
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = trained[name]

    @contextlib.contextmanager
    def in_number_type(self) -> Iterator[None]:
        """Inside, the parameters themselves have the dtype that the model computes in: what a
        file should hold."""
        masters = {name: p.data for name, p in self.parameters.items()}
        for name, p in self.parameters.items():
            p.data = p.data.to(self.dtypes[name])
        try:
            yield
        finally:
            for name, p in self.parameters.items():
                p.data = masters[name]

    def merge(self) -> Model:
        """The plain model with the trained weights in its own dtype. A second call changes
        nothing."""
        for module, own in self.wrapped.items():
            if own is None:
                del module.forward
            else:
                module.forward = own
        self.wrapped = {}
        for name, p in self.parameters.items():
            p.data = p.data.to(self.dtypes[name])
            p.grad = None
            p.requires_grad_(False)
        return self.model

    def tensors(self) -> dict[str, Tensor]:
        """The trained weights on the CPU, in float32 where they were trained so."""
        return {
            name: p.detach().to("cpu").contiguous().clone() for name, p in self.parameters.items()
        }

    def save_model(self, folder: Path) -> None:
        """The whole model as a Hugging Face folder, in the dtype in which it was computed,
        with the base's own configuration."""
        folder = Path(folder)
        with self.in_number_type(), _quiet():
            generation, self.model.generation_config = (
                self.model.generation_config,
                _plain(self.model),
            )
            try:
                self.model.save_pretrained(str(folder))
            finally:
                self.model.generation_config = generation
            dtype = str(self.model.dtype).removeprefix("torch.")
        _restate(self.model, folder, dtype)


def in_number_type_of(
    module: nn.Module, own_forward: Callable[..., Any], dtypes: dict[str, torch.dtype]
) -> Callable[..., Any]:
    """A forward in which the module finds, under the names of its float32 parameters, copies in the
    dtypes of `dtypes`."""
    import torch

    from tunewright.models.kernels.master_linear import master_linear

    ready: dict[str, tuple[object, Tensor]] = {}
    """Copies made without gradient, kept while the weights stay: an answer calls a module once a
    token."""

    def copy_of(name: str, dtype: torch.dtype) -> Tensor:
        p = module._parameters[name]
        assert p is not None
        if torch.is_grad_enabled():
            ready.clear()
            return p.to(dtype)
        version = (p._version, p.data_ptr(), p.dtype)
        if name not in ready or ready[name][0] != version:
            ready[name] = (version, p.to(dtype))
        return ready[name][1]

    is_plain = type(module) is torch.nn.Linear and "forward" not in vars(module)

    def forward(*args: Any, **kwargs: Any) -> object:
        weight = module._parameters.get("weight")
        if is_plain and "weight" in dtypes and weight is not None and torch.is_grad_enabled():
            ready.clear()
            bias: Any = module._parameters["bias"]
            bias = bias.to(dtypes["bias"]) if "bias" in dtypes else bias
            (x,) = args or tuple(kwargs.values())
            return master_linear(x, weight, bias, dtypes["weight"])
        seen = vars(module)
        # An attribute of the instance hides the registered parameter of the same name.
        seen.update({name: copy_of(name, dtype) for name, dtype in dtypes.items()})
        try:
            return own_forward(*args, **kwargs)
        finally:
            for name in dtypes:
                del seen[name]

    return forward


def _plain(model: Model) -> GenerationConfig:
    """Generation settings that can always be written: Transformers refuses to save some that it
    loads. The base's own file replaces them."""
    from transformers import GenerationConfig

    given = getattr(model, "generation_config", None)
    return GenerationConfig(
        **{
            key: getattr(given, key, None)
            for key in ("bos_token_id", "eos_token_id", "pad_token_id")
        }
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    from transformers.utils import logging

    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if bars:
            logging.enable_progress_bar()


def _restate(model: Model, folder: Path, dtype: str) -> None:
    """Put the base's own configuration files in place of what training changed in them (dropouts at
    0), with the dtype of the weights."""
    from tunewright.models.load import load_config
    from tunewright.models.rotary import carry

    base = Path(str(getattr(model, "name_or_path", "") or ""))
    if not (base / "config.json").is_file():
        return
    config = load_config(base)
    carry(config, model)
    config.dtype = dtype
    config.architectures = [type(model).__name__]
    config.save_pretrained(str(folder))
    if (base / "generation_config.json").is_file():
        shutil.copyfile(base / "generation_config.json", folder / "generation_config.json")
