"""Adapters in PEFT's layout: loaded on a base from disk, with every tensor accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, problem, raise_all
from tunewright.models import vet


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds a PEFT adapter."""
    return (folder / "adapter_config.json").is_file()


def load_adapter(model: Any, folder: Path, *, trainable: bool = False) -> Any:
    """The adapter of `folder` on the causal model `model`, as a PEFT model. The base named inside the adapter is never followed.

    Raises ModelError when the folder is not safe to open, does not fit the model, or holds a tensor that finds no place.
    """
    import warnings

    from peft import PeftModel
    from safetensors import safe_open

    raise_all(vet.problems_of(folder, kind="adapter"), ModelError)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wrapped = PeftModel.from_pretrained(model, str(folder), is_trainable=trainable)
    except Exception as e:
        raise ModelError(problem("E-MODEL-40", str(folder), cause=vet.first_line(e))) from e
    with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
        given = set(stored.keys())
    from peft import get_peft_model_state_dict

    placed = set(get_peft_model_state_dict(wrapped, save_embedding_layers=False))
    if given != placed:
        odd = sorted(given ^ placed)
        raise ModelError(problem("E-MODEL-41", str(folder), count=len(odd), first=odd[0]))
    wrapped.eval()
    return wrapped
