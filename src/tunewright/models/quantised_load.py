"""A base in few bits, read from its files one matrix at a time: the wide model is never held.

Transformers reads, renames and fuses the tensors as for any model and hands each matrix of the
blocks, as soon as it is there, to its interface for quantisers; here it becomes a `QuantLinear`,
and the wide matrix is gone before the next is read. The files are read and not mapped: pages of a
mapped file count as memory of the process until somebody else needs it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunewright.core.config import BaseConfig
from tunewright.core.telling import silent
from tunewright.models import anatomy
from tunewright.models.quantised import Piece, QuantLinear, stored_bytes
from tunewright.sources import headers

NAME = "tunewright"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
"""How a safetensors header calls dtypes."""


class Stored:
    """A tensor of a safetensors file that is read when it is asked for, `stored[...]`, and as often
    as it is."""

    def __init__(self, path: Path, start: int, num_bytes: int, dtype: str, shape: Any) -> None:
        self.path, self.start, self.num_bytes = path, start, num_bytes
        self.name, self.shape = dtype, torch.Size(shape)
        self.dtype = DTYPES[dtype]

    def get_dtype(self) -> str:
        """As safetensors' own slices name it."""
        return self.name

    def get_shape(self) -> list[int]:
        """As safetensors' own slices give it."""
        return list(self.shape)

    def __getitem__(self, index: Any) -> Tensor:
        raw = torch.empty(self.num_bytes, dtype=torch.uint8)
        with open(self.path, "rb", buffering=0) as file:
            file.seek(self.start)
            whole: Any = raw.numpy()
            view, done = memoryview(whole), 0
            while done < self.num_bytes:
                got = file.readinto(view[done:])
                if not got:
                    raise OSError(f"{self.path.name} ends inside of a tensor")
                done += got
        return raw.view(self.dtype).view(self.shape)[index]


def stored_tensors(folder: Path) -> dict[str, Any]:
    """Name -> tensor of all safetensors files of a folder, none of them read yet."""
    found: dict[str, Any] = {}
    for path in headers.weight_files(folder)[0]:
        for name, (dtype, shape, start, stop) in headers.places_of(path).items():
            found[name] = Stored(path, start, stop - start, dtype, shape)
    return found


def load_quantised(
    planned: type[Any],
    folder: Path,
    config: Any,
    base: BaseConfig,
    device: torch.device | str,
    **given: Any,
) -> tuple[Any, dict[str, Any], int]:
    """(model, what Transformers found out about its weights, how many layers were quantised) of the
    class `planned` from the files of `folder`."""
    with silent():
        loaded: Any = planned.from_pretrained(
            None,
            config=config,
            state_dict=stored_tensors(folder),
            quantization_config=_settings()(base, device),
            output_loading_info=True,
            **given,
        )
    model, info = loaded
    quantiser = model.hf_quantizer
    quantiser.remove_quantization_config(model)
    model.to(device)
    return model, info, len(quantiser.weights)


@cache
def _settings() -> Any:
    """The class of settings by which Transformers finds our quantiser; made once, because
    Transformers keeps a table of them."""
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config(NAME)
    class Settings(QuantizationConfigMixin):
        def __init__(self, base: Any = None, device: Any = "cpu", **unused: Any) -> None:
            method: Any = NAME
            self.quant_method, self.base, self.device = method, base, device

    @register_quantizer(NAME)
    class Quantiser(HfQuantizer):
        requires_calibration = False

        def _process_model_before_weight_loading(self, model: Any, **unused: Any) -> Any:
            self.weights = {f"{name}.weight" for name in anatomy.of(model).linear}
            settings: Any = self.quantization_config
            base, self.piece = settings.base, None
            if str(settings.device) == "cpu":
                sizes = [model.get_parameter(name).shape for name in self.weights]
                self.piece = Piece(
                    sum(
                        stored_bytes(
                            shape.numel(), max(shape), base.number_type, base.double, base.block
                        )
                        for shape in sizes
                    )
                )
            return model

        def param_needs_quantization(self, model: Any, param_name: str, **unused: Any) -> bool:
            return param_name in self.weights

        def get_quantize_ops(self) -> Any:
            return _operation()(self)

        def is_serializable(self) -> bool:
            return False

        @property
        def is_trainable(self) -> bool:
            return True

    return Settings


@cache
def _operation() -> Any:
    from transformers.core_model_loading import ConversionOps

    return type("Quantise", (_Quantise, ConversionOps), {})


class _Quantise:
    """What Transformers calls with each wide matrix: puts a `QuantLinear` in the place of its layer
    and hands nothing back."""

    def __init__(self, quantiser: Any) -> None:
        self.quantiser = quantiser

    def convert(
        self, input_dict: dict[str, Any], *, model: Any, missing_keys: Any = None, **unused: Any
    ) -> dict[str, Tensor]:
        """Raises what `QuantLinear` raises."""
        settings, piece = self.quantiser.quantization_config, self.quantiser.piece
        base = settings.base
        for name, value in input_dict.items():
            wide = value[0] if isinstance(value, list) else value
            path = name.removesuffix(".weight")
            parent, _, last = path.rpartition(".")
            owner = model.get_submodule(parent)
            old = getattr(owner, last)
            if wide.shape != old.weight.shape:
                return dict(input_dict)  # Transformers says so
            wide = wide.to(old.weight.dtype).to(settings.device)
            if not isinstance(old, nn.Linear):
                wide = wide.t()  # GPT-2 stores its weights turned
            layer = QuantLinear(wide, old.bias, base.number_type, base.double, base.block)
            layer._is_hf_initialized = True  # type: ignore[assignment]
            if piece is not None:
                piece.take(layer)
            setattr(owner, last, layer)
            if missing_keys is not None:
                missing_keys.discard(name)
        return {}
