"""Adapters in PEFT's layout: loaded on a base from disk, with every tensor accounted for."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, first_line, problem, raise_all
from tunewright.models.peft_names import naming
from tunewright.models.scalar_heads import SCORE_KEY, put_stored_score, stored_score
from tunewright.models.vocabulary import fit_rows
from tunewright.sources import headers, vet


def load_adapter(
    model: Any, folder: Path, *, trainable: bool = False, name: str = "default"
) -> Any:
    """The adapter of `folder`, of any PEFT type, on the causal model `model`, as a PEFT model. The
    base named inside the adapter is never followed.

    A folder of a learnt prompt holds what its encoder made, not the encoder; `trainable` goes on
    from there, without one. Raises ModelError when the folder is not safe to open, does not fit the
    model, or holds a tensor that finds no place.
    """
    import warnings

    from peft import PeftConfig, PeftModel

    raise_all(vet.problems_of(folder, kind="adapter"), ModelError)
    fit_rows(model, folder)  # tokens may have been added to the vocabulary
    base = {id(p) for p in model.parameters()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(folder))
            scores = config.task_type == "SEQ_CLS"
            if scores:  # a reward run: the same layers, and a head that we put on ourselves
                config.task_type, config.modules_to_save = "CAUSAL_LM", None
            prompt = trainable and config.is_prompt_learning
            with naming(folder, config, model):
                wrapped = (
                    _prompt_to_train(model, config, folder)
                    if prompt
                    else PeftModel.from_pretrained(
                        model, folder, name, is_trainable=trainable, config=config
                    )
                )
                _widen(wrapped, folder, name, base)
    except Exception as e:
        raise _does_not_fit(folder, e) from e
    _require_all_placed(wrapped, folder, name)
    if scores:
        weight = stored_score(folder)
        if weight is None:
            raise ModelError(problem("E-OBJ-32", str(folder)))
        put_stored_score(model, weight, folder)
    wrapped.eval()
    return wrapped


def add_adapter(wrapped: Any, folder: Path, name: str) -> None:
    """Another adapter under a name of its own on a model that has one already. Raises ModelError as
    `load_adapter` does."""
    import warnings

    from peft import PeftConfig

    raise_all(vet.problems_of(folder, kind="adapter"), ModelError)
    base = {id(p) for p in wrapped.parameters()}
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            config = PeftConfig.from_pretrained(str(folder))
            with naming(folder, config, wrapped.get_base_model()):
                if not config.is_prompt_learning:
                    wrapped.add_adapter(name, config)
                wrapped.load_adapter(str(folder), adapter_name=name, is_trainable=False)
                _widen(wrapped, folder, name, base)
    except Exception as e:
        raise _does_not_fit(folder, e) from e
    _require_all_placed(wrapped, folder, name)


def _does_not_fit(folder: Path, cause: Exception) -> ModelError:
    """The error for an adapter that PEFT cannot put on the model, in PEFT's own words."""
    return ModelError(
        problem("E-MODEL-40", str(folder), cause=first_line(cause), base=_base_named_in(folder))
    )


def _base_named_in(folder: Path) -> str:
    return str(
        headers.read_config(folder / "adapter_config.json")[0].get("base_model_name_or_path") or "-"
    )


def _widen(wrapped: Any, folder: Path, name: str, base: set[int]) -> None:
    """Hold the adapter in the dtype of its file: PEFT rounds some types to that of the base
    when it loads them. `base`: ids of what was there."""
    import warnings

    import torch
    from peft import set_peft_model_state_dict
    from safetensors.torch import load_file

    rounded = [
        p
        for p in wrapped.parameters()
        if id(p) not in base and p.is_floating_point() and p.dtype.itemsize < 4
    ]
    stored = load_file(folder / "adapter_model.safetensors")
    if not rounded or all(t.dtype.itemsize < 4 for t in stored.values() if t.is_floating_point()):
        return
    for p in rounded:
        p.data = p.data.to(torch.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        set_peft_model_state_dict(wrapped, stored, adapter_name=name)


def _require_all_placed(wrapped: Any, folder: Path, name: str) -> None:
    """Raise ModelError where a tensor of the folder found no place, or a place got none.

    A folder may hold more than the adapter needs: PEFT saves embedding and head too (and copies of
    a tied head) where the vocabulary grew.
    """
    import peft
    from safetensors import safe_open

    with safe_open(folder / "adapter_model.safetensors", framework="pt") as stored:
        given = set(stored.keys()) - {SCORE_KEY}
    needed, known = (_places_of(wrapped, name, whole) for whole in (False, True))
    lost, missing = sorted(given - known), sorted(needed - given)
    if lost or missing:
        raise ModelError(
            problem(
                "E-MODEL-41",
                str(folder),
                lost=len(lost),
                missing=len(missing),
                first=[*lost, *missing][0],
                base=_base_named_in(folder),
                version=peft.__version__,
            )
        )


def _places_of(wrapped: Any, name: str, whole: bool) -> set[str]:
    """Names of the tensors that an adapter's file has, with the whole embedding and head or
    without."""
    import warnings

    from peft import get_peft_model_state_dict

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return set(
            get_peft_model_state_dict(wrapped, adapter_name=name, save_embedding_layers=whole)
        )


def _prompt_to_train(model: Any, config: Any, folder: Path) -> Any:
    """A learnt prompt whose saved values train themselves: PEFT opens such folders for use only."""
    import torch
    from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
    from safetensors.torch import load_file

    common = {
        name: getattr(config, name)
        for name in ("num_virtual_tokens", "token_dim", "num_attention_heads", "num_layers")
    }
    prefix = config.peft_type.value == "PREFIX_TUNING"
    settings: Any = (
        PrefixTuningConfig(prefix_projection=False, **common)
        if prefix
        else PromptTuningConfig(prompt_tuning_init="RANDOM", **common)
    )
    settings.task_type, settings.num_transformer_submodules = (
        config.task_type,
        config.num_transformer_submodules,
    )
    wrapped = get_peft_model(model, settings)
    with torch.no_grad():
        wrapped.prompt_encoder["default"].embedding.weight.copy_(
            load_file(folder / "adapter_model.safetensors")["prompt_embeddings"]
        )
    return wrapped
