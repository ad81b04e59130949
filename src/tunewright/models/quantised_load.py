"""A base in few bits, read from its files one matrix at a time: the wide model is never held.

Transformers reads, renames and fuses the tensors as for any model and hands each matrix of the
blocks, as soon as it is there, to its interface for quantisers; here it becomes a `QuantLinear`,
and the wide matrix is gone before the next is read. The files are read and not mapped: pages of a
mapped file count as memory of the process until somebody else needs it.

A checkpoint that is quantised already comes through here as well: its matrices are made wide one at
a time, and stay so, or are quantised anew, or are never made wide as a whole because the layers
keep them as they are stored.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tunewright.core.config import BaseConfig
from tunewright.core.errors import ModelError
from tunewright.core.telling import silent
from tunewright.models import anatomy, stored_bits
from tunewright.models.quantised import Piece, QuantLinear, stored_bytes
from tunewright.sources import few_bits, headers
from tunewright.sources.few_bits import FewBits

NAME = "tunewright"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
    "BOOL": torch.bool, "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
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
    planned: Any,
    folder: Path,
    config: Any,
    base: BaseConfig,
    device: torch.device | str,
    few: FewBits | None = None,
    **given: Any,
) -> tuple[Any, dict[str, Any], int]:
    """(model, what Transformers found out about its weights, how many layers were quantised) of the
    class of `planned` from the files of `folder`, of which `few` are in few bits and made wide one
    by one."""
    stored = stored_tensors(folder)
    if few is not None:
        stored = stored_bits.with_wide(stored, few, given["dtype"])
        stored = without_zero_biases(stored, planned, few)
    with silent():
        loaded: Any = type(planned).from_pretrained(
            None,
            config=config,
            state_dict=stored,
            quantization_config=_settings()(base, device),
            output_loading_info=True,
            **given,
        )
    model, info = loaded
    quantiser = model.hf_quantizer
    quantiser.remove_quantization_config(model)
    model.to(device)
    return model, info, len(quantiser.weights)


def load_wide(
    planned: Any, folder: Path, config: Any, device: torch.device | str, few: FewBits, **given: Any
) -> tuple[Any, dict[str, Any]]:
    """(model, what Transformers found out about its weights) of the class of `planned`, the weights
    that are stored in few bits made wide one by one."""
    stored = stored_bits.with_wide(stored_tensors(folder), few, given["dtype"])
    with silent():
        loaded: Any = type(planned).from_pretrained(
            None,
            config=config,
            state_dict=without_zero_biases(stored, planned, few),
            output_loading_info=True,
            **given,
        )
    return loaded[0].to(device), loaded[1]


def load_as_stored(
    planned: Any, folder: Path, config: Any, device: torch.device | str, few: FewBits, **given: Any
) -> tuple[Any, dict[str, Any]]:
    """As `load_wide`, but each layer keeps its weight as it is stored (`StoredLinear`). Raises
    ModelError (E-MODEL-94) where a stored weight is not that of one linear layer."""
    modules = dict(planned.named_modules())
    odd = [
        matrix.name
        for matrix in few.matrices.values()
        if not isinstance(modules.get(matrix.module), nn.Linear)
        or modules[matrix.module].weight.shape != matrix.shape
    ]
    if odd:
        raise ModelError(few_bits.no_layers(folder, few, odd))
    stored = stored_tensors(folder)
    plain = {n: t for n, t in stored.items() if n not in few.unused and n not in few.matrices}
    with silent():
        loaded: Any = type(planned).from_pretrained(
            None,
            config=config,
            state_dict=without_zero_biases(plain, planned, few),
            quantization_config=_settings()(None, device, few),
            output_loading_info=True,
            **given,
        )
    model, info = loaded
    model.hf_quantizer.remove_quantization_config(model)
    matrices = few.matrices.values()
    parts = sum(len(m.parts) for m in matrices)
    piece = Piece(sum(m.num_bytes for m in matrices) + 64 * parts)
    for matrix in matrices:
        layer = model.get_submodule(matrix.module)
        layer.fill(stored_bits.read(stored, matrix))
        piece.take(layer)
    return model.to(device), info


def without_zero_biases(stored: dict[str, Any], planned: Any, few: FewBits) -> dict[str, Any]:
    """The tensors without the biases of nothing that GPTQ's writers put beside every matrix, where
    the model has none."""
    known = {name for name, _ in planned.named_parameters()}
    beside = {f"{matrix.module}.bias" for matrix in few.matrices.values()} & set(stored)
    empty = {n for n in beside - known if not bool(stored[n][...].any())}
    return {name: tensor for name, tensor in stored.items() if name not in empty}


@cache
def _settings() -> Any:
    """The class of settings by which Transformers finds our quantiser; made once, because
    Transformers keeps a table of them."""
    from transformers.quantizers.auto import register_quantization_config, register_quantizer
    from transformers.quantizers.base import HfQuantizer
    from transformers.utils.quantization_config import QuantizationConfigMixin

    @register_quantization_config(NAME)
    class Settings(QuantizationConfigMixin):
        def __init__(
            self, base: Any = None, device: Any = "cpu", few: Any = None, **unused: Any
        ) -> None:
            method: Any = NAME
            self.quant_method, self.base, self.device = method, base, device
            self.few = few

    @register_quantizer(NAME)
    class Quantiser(HfQuantizer):
        requires_calibration = False

        def _process_model_before_weight_loading(self, model: Any, **unused: Any) -> Any:
            few: Any = getattr(self.quantization_config, "few", None)
            if few is not None:
                self.weights: set[str] = set()
                return _put_shells(model, few)
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


def _put_shells(model: Any, few: FewBits) -> Any:
    """Layers without a weight in the place of those whose weight is stored in few bits, so that
    Transformers neither misses nor makes one."""
    for matrix in few.matrices.values():
        parent, _, last = matrix.module.rpartition(".")
        owner = model.get_submodule(parent)
        old = getattr(owner, last)
        setattr(owner, last, stored_bits.StoredLinear(matrix, old.bias, old.weight.dtype))
    return model


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
