"""What a run saved, put on its base again: a PEFT folder, or a folder of a method that PEFT does
not know.

A folder of ours holds `tunewright_method.json` ({"kind", "config"}) beside `method.safetensors`,
which are read back with every tensor accounted for; the registered method's `load` fact does that.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import ModelError, problem
from tunewright.core.files import write_json
from tunewright.core.registry import methods
from tunewright.core.types import Attached, Model
from tunewright.core.words import say
from tunewright.methods import lora_starts
from tunewright.methods.peft import attach_peft, set_dropout, settings_of
from tunewright.methods.prompts import attach_prompt
from tunewright.methods.targets import MethodSection
from tunewright.models.vocabulary import fit_rows, num_rows, whole_matrices

if TYPE_CHECKING:
    from peft import PeftModel
    from torch import Tensor

OWN, TENSORS = "tunewright_method.json", "method.safetensors"


def is_saved(folder: Path) -> bool:
    """Whether a folder holds a method's weights without its base."""
    return (folder / "adapter_config.json").is_file() or (folder / OWN).is_file()


def virtual_tokens(folder: Path) -> int:
    """Tokens that the learnt prompt of a saved folder puts before every input; 0 where it holds
    none."""
    described = folder / "adapter_config.json"
    return (
        int(json.loads(described.read_text(encoding="utf-8")).get("num_virtual_tokens") or 0)
        if described.is_file()
        else 0
    )


def put_on(
    model: Model,
    folder: Path,
    *,
    base_path: str = "",
    trainable: bool = False,
    dropout: float | None = None,
) -> Attached:
    """The saved method of `folder` on the causal model `model`. `base_path` is what it names as its
    base when it is saved again. `dropout` takes the place of the one that it was trained with (PEFT
    folders).

    Raises ModelError when the folder is not safe to open, does not fit the model, or holds a tensor
    that finds no place.
    """
    if (folder / OWN).is_file():
        from tunewright.models.scalar_heads import put_stored_score, stored_score

        described = json.loads((folder / OWN).read_text(encoding="utf-8"))
        entry = methods.get(str(described.get("kind")))
        if entry is None or "load" not in entry.facts:
            raise ModelError(
                problem(
                    "E-MODEL-42",
                    str(folder),
                    kind=described.get("kind"),
                    known=", ".join(methods.names()),
                )
            )
        attached = entry.facts["load"](
            entry.config(**described.get("config", {})), model, folder, base_path, trainable
        )
        assert isinstance(attached, Attached)
        score = stored_score(folder)
        if score is not None:
            put_stored_score(model, score, folder)
        return attached
    from tunewright.models.adapters import load_adapter
    from tunewright.models.quantised import is_quantised

    bound = lora_starts.is_bound(folder)
    if bound and not is_quantised(model):
        raise ModelError(problem("E-METHOD-63", str(folder)))
    held = _whole_rows(model, folder)
    wrapped = load_adapter(model, folder, trainable=trainable)
    if base_path:
        wrapped.peft_config["default"].base_model_name_or_path = base_path
    if dropout is not None:
        set_dropout(wrapped, dropout)
    attached = (
        attach_prompt(wrapped) if settings_of(wrapped).is_prompt_learning else attach_peft(wrapped)
    )
    if held:
        _take_rows_along(attached, wrapped, held)
    return lora_starts.bound_to_its_base(attached) if bound else attached


def _whole_rows(model: Model, folder: Path) -> list[tuple[Tensor, Tensor]]:
    """(table, copy of its rows that the base has) for embedding and head, where the adapter's file
    holds them whole and they will be written over."""
    known = num_rows(model)
    fit_rows(model, folder)
    if not whole_matrices(model, folder):
        return []
    tables = [
        module.get_parameter("weight")
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
    ]
    return [
        (table, table[:known].detach().clone())
        for table in {id(table): table for table in tables}.values()
    ]


def _take_rows_along(
    attached: Attached, wrapped: PeftModel, held: list[tuple[Tensor, Tensor]]
) -> None:
    """An adapter that brought the whole embedding takes it along when it is saved again; where it
    is not the base's, there is no way back to the base."""
    attached.save = lambda folder: wrapped.save_pretrained(str(folder), save_embedding_layers=True)
    if any(not table[: len(rows)].equal(rows) for table, rows in held):
        attached.disabled, attached.disabled_reason = None, say("methods.rows_replaced")


# ---- folders of methods that PEFT does not know


@dataclass(frozen=True)
class Described:
    """What the description says. `base` is the model it was trained on, as the run named it."""

    kind: str
    config: dict[str, Any]
    base: str
    more: dict[str, Any] = field(default_factory=dict)
    """What else the method wrote."""


def write(
    folder: Path,
    kind: str,
    config: MethodSection,
    base_path: str,
    tensors: dict[str, Tensor],
    **more: object,
) -> None:
    """Write both files; `more` are further entries of the description."""
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / TENSORS), metadata={"format": "pt"})
    write_json(
        folder / OWN,
        {"kind": kind, "config": config.model_dump(), "base_model_name_or_path": base_path, **more},
    )


def read(folder: Path) -> Described:
    """The description of a folder."""
    given = json.loads((Path(folder) / OWN).read_text(encoding="utf-8"))
    return Described(
        str(given["kind"]),
        dict(given.get("config", {})),
        str(given.get("base_model_name_or_path", "")),
        given,
    )


def in_order(model: Model, names: Iterable[str]) -> list[str]:
    """The named parameters, each once, in the model's order."""
    wanted = set(names)
    return [name for name, _ in model.named_parameters() if name in wanted]


def tensors_of(model: Model, names: list[str]) -> dict[str, Tensor]:
    """Copies of the named parameters on the CPU."""
    wanted = set(names)
    return {
        name: p.detach().to("cpu").contiguous().clone()
        for name, p in model.named_parameters()
        if name in wanted
    }


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a folder. Raises ModelError (E-METHOD-41) for a file that cannot be read."""
    from safetensors.torch import load_file

    try:
        return load_file(str(Path(folder) / TENSORS))
    except Exception as e:
        raise ModelError(
            problem("E-METHOD-41", str(folder), cause=str(e).splitlines()[0][:200])
        ) from e


def fill(model: Model, names: list[str], folder: Path, trainable: bool) -> None:
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
