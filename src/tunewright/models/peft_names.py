"""Where a LoRA adapter sits, in words that plain PEFT reads as they were meant.

In families whose experts were separate layers once (Qwen2-MoE and Mixtral, and all that are stored
like them: Qwen3-MoE, Qwen3-Next, DeepSeek-V2 and -V3, GLM-4-MoE, ...) PEFT 0.19 and later take the
module names `gate_proj`, `up_proj` and `down_proj` for the tensors that hold all experts: an
adapter on the dense layers or the shared expert would land on the experts instead. Here names are
taken as they are written. In a saved description such a layer is named by its weight
(`target_parameters`), which PEFT does not take for anything else; the tensors are the same.
"""

from __future__ import annotations

import contextlib
import copy
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.models.anatomy import is_linear

_lock = threading.RLock()
DESCRIPTION = "adapter_config.json"


@contextlib.contextmanager
def as_written() -> Iterator[None]:
    """Inside, PEFT puts adapters on the modules that their description names."""
    import peft.utils.transformers_weight_conversion

    conversion: Any = peft.utils.transformers_weight_conversion

    with _lock:
        names = conversion.convert_peft_config_for_transformers
        tensors = conversion.convert_peft_adapter_state_dict_for_transformers
        conversion.convert_peft_config_for_transformers = lambda *args, **more: None
        conversion.convert_peft_adapter_state_dict_for_transformers = _as_they_are
        try:
            yield
        finally:
            conversion.convert_peft_config_for_transformers = names
            conversion.convert_peft_adapter_state_dict_for_transformers = tensors


def _as_they_are(*args: Any, adapter_state_dict: Any, **more: Any) -> Any:
    """Tensors of an adapter under the names that its file gives them. PEFT renames some a second
    time (the shared experts of Laguna), which then find no place, and says nothing."""
    return adapter_state_dict


def taken_for_experts(settings: Any, model: Any) -> list[str]:
    """Entries of `target_modules` that PEFT would take for the tensors of all experts."""
    from peft.utils import transformers_weight_conversion as conversion

    if settings.peft_type != "LORA" or not isinstance(settings.target_modules, list | set | tuple):
        return []
    tried = copy.deepcopy(settings)
    found = []
    for name in settings.target_modules:
        tried.target_modules, tried.target_parameters = {name}, None
        tried.rank_pattern, tried.alpha_pattern = {}, {}
        try:
            conversion.convert_peft_config_for_transformers(tried, model, None)
        except ValueError:  # one of two that belong together
            found.append(name)
            continue
        if set(tried.target_modules or ()) != {name}:
            found.append(name)
    return sorted(found)


def make_portable(folder: Path, model: Any, settings: Any) -> bool:
    """Rewrite the saved description of an adapter that sits on `model` (the base, with PEFT's
    layers on it), so that plain PEFT puts every tensor where it was. Returns whether there was
    anything to change."""
    wrong = taken_for_experts(settings, model)
    if not wrong or settings.use_dora:  # PEFT's layer for weights knows no DoRA
        return False
    path = folder / DESCRIPTION
    described = json.loads(path.read_text(encoding="utf-8"))
    weights = [
        f"{name}.weight"
        for name, module in model.named_modules()
        if hasattr(module, "lora_A")
        and hasattr(module, "base_layer")
        and is_linear(module.base_layer)
        and any(name == end or name.endswith(f".{end}") for end in wrong)
    ]
    kept = sorted(set(described["target_modules"]) - set(wrong))
    described["target_modules"] = kept
    described["target_parameters"] = sorted({*(described.get("target_parameters") or ()), *weights})
    for pattern in ("rank_pattern", "alpha_pattern"):
        known = described.get(pattern) or {}
        # PEFT looks a layer up by the name under which it is targeted.
        described[pattern] = known | {rf"{key}\.weight": value for key, value in known.items()}
    path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    return True


@contextlib.contextmanager
def naming(folder: Path, settings: Any, model: Any) -> Iterator[None]:
    """Inside, the adapter of `folder` is put on `model` where its tensors belong; `settings` are
    changed to name the places.

    Linear layers that are named by their weight become modules again, which compute faster and may
    be quantised. Where every tensor of the file has a module of its name, names are taken as they
    are written; an adapter of another version of Transformers is left to PEFT.
    """
    if settings.peft_type != "LORA":
        yield
        return
    by_name = dict(model.named_modules())
    places = _places(folder)
    weights = [
        one
        for one in getattr(settings, "target_parameters", None) or ()
        if one.endswith(".weight")
        and type(by_name.get(one.removesuffix(".weight"))).__name__ in ("Linear", "QuantLinear")
    ]
    if weights and not isinstance(settings.target_modules, str):
        left = [one for one in settings.target_parameters if one not in weights]
        settings.target_parameters = left or None
        settings.target_modules = {
            *(settings.target_modules or ()),
            *(one.removesuffix(".weight") for one in weights),
        }
    plain = places and all(place.replace(".base_layer", "") in by_name for place in places)
    with as_written() if plain else contextlib.nullcontext():
        yield


def _places(folder: Path) -> set[str]:
    """The modules whose A lies in an adapter's file."""
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
        return {
            key.removeprefix("base_model.model.").rpartition(".lora_A")[0]
            for key in stored.keys()  # noqa: SIM118
            if ".lora_A" in key
        }
