"""A GGUF file from a model in memory, tensor by tensor; and back, to see that it holds that model.

Nothing is held twice: sizes are stated first, then each matrix is laid out, rounded, written and
forgotten. Reading back undoes the layout by rules of its own, so a wrong rule in writing does not
hide itself. Source: the GGUF specification, llama.cpp's conversion/llama.py.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.errors import UsageError
from tunewright.core.words import say
from tunewright.export import gguf_families, gguf_types
from tunewright.export.folder import ExportError
from tunewright.export.gguf_families import Family
from tunewright.export.gguf_types import Type
from tunewright.export.gguf_words import Words

QUANTIZATION_VERSION = 2
ROUNDING = {"F16": 0.01, "BF16": 0.02, "Q8_0": 0.03, "Q6_K": 0.06, "Q5_K": 0.1, "Q5_0": 0.1}
ROUNDING |= {"Q5_1": 0.1, "Q4_K": 0.2, "Q4_0": 0.2, "Q4_1": 0.2}
"""Most that a type moves a matrix, as a share of its norm; about twice what normal numbers give."""


@dataclass
class Plan:
    """What a file will hold, decided before anything is written."""

    family: Family
    config: Any
    kind: Type
    tensors: list[tuple[str, str, tuple[int, ...], str]] = field(default_factory=list)
    """(name in the file, name in the model, shape, ggml type), in the file's order."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Name -> float32 numbers that no weight of the model holds."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(gguf_types.number_of_bytes(s, kind) for _, _, s, kind in self.tensors)

    @property
    def notes(self) -> list[str]:
        """Which matrices got another type than the others, in sentences; what llama.cpp leaves
        out."""
        import gguf

        wanted, odd = self.kind.matrix, [
            kind
            for name, _, shape, kind in self.tensors
            if len(shape) > 1 and name not in gguf_types.HEAD and "_norm" not in name
            and kind not in (self.kind.matrix, self.kind.more)
        ]  # fmt: skip
        said = gguf_families.notes(self.family, self.config)
        if odd:
            block = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[wanted]][0]
            kept = ", ".join(sorted(set(odd)))
            shown: dict[str, Any] = {
                "count": len(odd),
                "type": wanted,
                "block": block,
                "kept": kept,
            }
            said.append(say("gguf.kept_as", **shown))
        return said


def plan(model: Any, family: Family, kind: Type, where: str) -> Plan:
    """What the file of `model` will hold. Raises UsageError (E-EXPORT-23) for a weight that has no
    place in llama.cpp's model."""
    config = model.config.get_text_config()
    found = Plan(family, config, kind, extra=gguf_families.rotary_tensors(config))
    names = names_of(family, config.num_hidden_layers)
    lost = []
    for own, tensor in weights_of(model):
        name = names(own)
        if name is None:
            lost.append(own)
            continue
        shape = tuple(tensor.shape)
        blocks = config.num_hidden_layers
        found.tensors.append((name, own, shape, gguf_types.stored_as(kind, name, shape, blocks)))
    if lost:
        raise UsageError.of("E-EXPORT-23", where, reason=", ".join(lost[:3]))
    return found


def names_of(family: Family, blocks: int) -> Any:
    """A function: name of a weight in Transformers -> name in the file, or None."""
    import gguf

    arch = next(k for k, name in gguf.MODEL_ARCH_NAMES.items() if name == family.arch)
    table = gguf.get_tensor_name_map(arch, blocks)

    def name(own: str) -> str | None:
        found: str | None = table.get_name(own, try_suffixes=(".weight", ".bias"))
        return found

    return name


def weights_of(model: Any) -> Iterator[tuple[str, Any]]:
    """The weights of a model by name, a shared one once, embedding before head."""
    seen = set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            yield name, tensor


def write(path: Path, plan: Plan, model: Any, words: Words, general: dict[str, Any]) -> None:
    """Write the file. Rounded numbers go back into `model`, which from then on computes with the
    weights that the file holds. Raises OSError where it cannot be written."""
    import gguf
    import torch

    logging.getLogger("gguf").setLevel(logging.ERROR)
    writer = gguf.GGUFWriter(None, plan.family.arch)
    _state(writer, plan, words, general)
    for name, numbers in plan.extra.items():
        writer.add_tensor_info(name, numbers.shape, numbers.dtype, numbers.nbytes)
    for name, _, shape, kind in plan.tensors:
        size = gguf_types.number_of_bytes(shape, kind)
        writer.add_tensor_info(
            name, shape, _dtype(kind), size, raw_dtype=gguf.GGMLQuantizationType[kind]
        )
    weights = dict(model.state_dict())
    try:
        writer.write_header_to_file(path)
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for numbers in plan.extra.values():
            writer.write_tensor_data(numbers)
        for name, own, _, kind in plan.tensors:
            laid = laid_out(plan, name, own, weights[own].detach().float().numpy())
            stored = gguf_types.rounded(laid, kind)
            writer.write_tensor_data(stored)
            if kind != "F32":
                back = gguf_types.read(stored, gguf.GGMLQuantizationType[kind])
                numbers = torch.from_numpy(taken_back(plan, own, back.reshape(laid.shape)))
                # What is no rounding of the weight stays out, and is found when the file is read.
                if _apart(numbers, weights[own].float()) < ROUNDING[kind]:
                    weights[own].copy_(numbers)
    finally:
        writer.close()


def _dtype(kind: str) -> Any:
    import numpy as np

    # The library takes other types by their number, with shapes in numbers and not in bytes.
    return {"F32": np.float32, "F16": np.float16}.get(kind, np.int8)


def _state(writer: Any, plan: Plan, words: Words, general: dict[str, Any]) -> None:
    """All keys of the file."""
    import gguf

    stated = {
        "general.type": "model",
        **{f"general.{key}": value for key, value in general.items()},
        "general.file_type": int(gguf.LlamaFileType[plan.kind.file_type]),
        "general.quantization_version": QUANTIZATION_VERSION,
    }
    rows = len(words.keys["ggml.tokens"])
    settings = gguf_families.metadata(plan.family, plan.config, rows)
    stated |= {f"{plan.family.arch}.{key}": value for key, value in settings.items()}
    stated |= {f"tokenizer.{key}": value for key, value in words.keys.items()}
    for key, value in stated.items():
        add(writer, key, value)


def add(writer: Any, key: str, value: Any) -> None:
    """A key with the type that its value has in GGUF."""
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, list(value))


# ---- layout


def laid_out(plan: Plan, name: str, own: str, numbers: Any) -> Any:
    """A weight as llama.cpp wants it."""
    heads = _turned_heads(plan, own)
    if heads:
        numbers = in_pairs(numbers, heads)
    if plan.family.norm_shift and name.endswith("norm.weight"):
        numbers = numbers + plan.family.norm_shift
    return numbers


def in_pairs(numbers: Any, heads: int) -> Any:
    """Rows of q or k with the halves of each head one after the other -> pairs side by side."""
    shape = numbers.shape
    split = numbers.reshape(heads, 2, shape[0] // heads // 2, *shape[1:])
    return split.swapaxes(1, 2).reshape(shape)


def _turned_heads(plan: Plan, own: str) -> int:
    """How many heads the rows of a weight belong to, where their order differs; else 0."""
    if not plan.family.permutes:
        return 0
    part = own.rsplit(".", 2)[-2]
    heads = plan.config.num_attention_heads
    if part == "k_proj":
        return int(getattr(plan.config, "num_key_value_heads", None) or heads)
    return int(heads) if part == "q_proj" else 0


def taken_back(plan: Plan, own: str, numbers: Any) -> Any:
    """What lies in a file as Transformers holds it. Written for itself: row j of half h of a head
    of 2n rows lies at 2j + h."""
    import numpy as np

    heads = _turned_heads(plan, own)
    if heads:
        size = len(numbers) // heads
        inside = np.concatenate([np.arange(0, size, 2), np.arange(1, size, 2)])
        numbers = numbers[(np.arange(heads)[:, None] * size + inside).ravel()]
    if plan.family.norm_shift and numbers.ndim == 1 and "norm" in own:
        numbers = numbers - plan.family.norm_shift
    return numbers


# ---- reading back


def require_held(path: Path, plan: Plan, model: Any, out: Path) -> None:
    """Raise ExportError unless the file holds exactly the planned tensors, each equal to the weight
    of `model`, which computes with the rounded numbers."""
    import gguf
    import numpy as np
    import torch

    try:
        found = {tensor.name: tensor for tensor in gguf.GGUFReader(str(path)).tensors}
    except (ValueError, OSError, KeyError, IndexError) as e:
        raise ExportError.of("E-EXPORT-37", str(out), runner="gguf", cause=e) from e
    planned = {name: (own, shape) for name, own, shape, _ in plan.tensors}
    odd = sorted((set(planned) | set(plan.extra)) ^ set(found))
    if odd:
        raise ExportError.of("E-EXPORT-31", str(out), names=", ".join(odd[:4]))
    weights = dict(model.state_dict())
    wrong, reordered = [], True
    for name, (own, shape) in planned.items():
        tensor = found[name]
        back = gguf_types.read(tensor.data, tensor.tensor_type).reshape(shape)
        wanted = weights[own].detach().float().numpy()
        if not _same(taken_back(plan, own, back), wanted):
            wrong.append(name)
            apart = _apart(*(torch.from_numpy(np.sort(n, axis=0)) for n in (back, wanted)))
            reordered = reordered and apart < ROUNDING.get(tensor.tensor_type.name, 1e-5)
    if wrong:
        hint = say("gguf.hint.order") if reordered else ""
        more = f" (+{len(wrong) - 4})" if len(wrong) > 4 else ""
        where = ", ".join(wrong[:4]) + more
        raise ExportError.of("E-EXPORT-30", str(out), names=f"{where}. {hint}".strip(), hint=hint)


def _apart(one: Any, other: Any) -> float:
    """The norm of the difference of two tensors, as a share of the second."""
    return float((one - other).norm() / other.norm().clamp_min(1e-30))


def _same(one: Any, other: Any) -> bool:
    """Equal up to the last digits of a norm that was moved by 1 and back."""
    import numpy as np

    return bool(one.shape == other.shape and np.allclose(one, other, rtol=1e-5, atol=1e-6))
