"""The folder of a method that PEFT does not know: `tunewright_method.json` and
`method.safetensors`, read back with every tensor accounted for."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, problem
from tunewright.core.files import write_json

DESCRIPTION, TENSORS = "tunewright_method.json", "method.safetensors"


@dataclass(frozen=True)
class Described:
    """What the description says. `base` is the model it was trained on, as the run named it."""

    kind: str
    config: dict[str, Any]
    base: str
    more: dict[str, Any] = field(default_factory=dict)
    """What else the method wrote."""


def write(
    folder: Path, kind: str, config: Any, base_path: str, tensors: dict[str, Any], **more: Any
) -> None:
    """Write both files; `more` are further entries of the description."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / TENSORS), metadata={"format": "pt"})
    write_json(
        folder / DESCRIPTION,
        {"kind": kind, "config": config.model_dump(), "base_model_name_or_path": base_path, **more},
    )


def read(folder: Path) -> Described:
    """The description of a folder."""
    given = json.loads((Path(folder) / DESCRIPTION).read_text(encoding="utf-8"))
    return Described(
        str(given["kind"]),
        dict(given.get("config", {})),
        str(given.get("base_model_name_or_path", "")),
        given,
    )


def tensors_of(model: Any, names: list[str]) -> dict[str, Any]:
    """Copies of the named parameters on the CPU."""
    wanted = set(names)
    return {
        name: p.detach().to("cpu").contiguous().clone()
        for name, p in model.named_parameters()
        if name in wanted
    }


def read_tensors(folder: Path) -> dict[str, Any]:
    """All tensors of a folder. Raises ModelError (E-METHOD-41) for a file that cannot be read."""
    from safetensors.torch import load_file

    try:
        return load_file(str(Path(folder) / TENSORS))
    except Exception as e:
        raise ModelError(
            problem("E-METHOD-41", str(folder), cause=str(e).splitlines()[0][:200])
        ) from e


def fill(model: Any, names: list[str], folder: Path, trainable: bool) -> None:
    """Copy the tensors of a folder into the parameters of the same names.

    Raises ModelError (E-METHOD-42) when a tensor finds no place, has another shape, or a parameter
    finds no tensor.
    """
    import torch

    stored = read_tensors(folder)
    wanted = {name: p for name, p in model.named_parameters() if name in set(names)}
    odd = sorted(set(stored) ^ set(wanted)) or sorted(
        n for n in wanted if stored[n].shape != wanted[n].shape
    )
    if odd:
        raise ModelError(problem("E-METHOD-42", str(folder), count=len(odd), first=odd[0]))
    with torch.no_grad():
        for name, p in wanted.items():
            p.copy_(stored[name])
            p.requires_grad_(trainable)
