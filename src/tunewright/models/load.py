"""Open a vetted folder: the tokenizer, the model with every weight accounted for, and what the
folder says about itself.

Transformers builds the model; this room decides how: safetensors only, no code but what was allowed
by its hash, no network, dropouts of the config set to 0 (and said), and an error when a single
weight of the checkpoint finds no place or a single weight of the model is not in the checkpoint,
because a model that is partly random trains and answers as if nothing were wrong.
"""

from __future__ import annotations

import re
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core import collector
from tunewright.core.config import BaseConfig
from tunewright.core.errors import (
    CompatError,
    Interrupted,
    ModelError,
    Problem,
    first_line,
    problem,
    raise_all,
)
from tunewright.core.machine import return_freed_memory
from tunewright.core.telling import silent
from tunewright.core.words import say
from tunewright.models import rotary
from tunewright.models.proven import doubts
from tunewright.sources import few_bits, headers, vet
from tunewright.sources.remote_code import Place, place_of

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

DROPOUT = re.compile(r"dropout|_pdrop$|drop_prob|layerdrop|drop_path|jitter", re.IGNORECASE)
"""What makes a model another one while it trains. Noise on the inputs of routers (jitter) is, too:
samples that share a row would have to share its noise."""
DRAWS = ("PhimoeTopKRouter",)
"""Routers that draw their experts while they train; here they choose as they do when they answer.
"""

MADE_UP = (1 << 16) + 1
"""Random numbers of which made-up weights consist; odd, so that rows of a matrix differ."""


def load_config(
    folder: Path, base: BaseConfig | None = None, notes: list[str] | None = None
) -> Any:
    """The model's configuration as Transformers reads it, scaled as `base` says; `notes` are told
    of that. Judged by whoever found the folder; no weights are read. Raises CompatError for a model
    that cannot be scaled."""
    from transformers import AutoConfig

    place = place_of(folder)
    config = AutoConfig.from_pretrained(
        str(place.folder), local_files_only=True, trust_remote_code=place.model
    )
    keep_rotary_base(config, headers.config_of(folder, "config.json"))
    for one in (config, getattr(config, "text_config", None)):
        # Weights in few bits are read by `quantised_load`, whoever else could.
        vars(one).pop("quantization_config", None) if one is not None else None
    if not place.model:
        # Opened natively: what is saved from it must not point to code that is not there.
        vars(config).pop("auto_map", None)
    said = rotary.scale(config, base.rotary if base is not None else None)
    if notes is not None:
        notes += said
    return config


def keep_rotary_base(config: Any, stated: dict[str, Any]) -> None:
    """Give DBRX the base of its rotary positions: Transformers 5.23 asks `attn_config.rope_theta`,
    which its own configuration drops, and computes with the outer one. `stated`: what the file
    says. Does nothing for the other families."""
    inner, outer = getattr(config, "attn_config", None), getattr(config, "rope_parameters", None)
    if config.model_type != "dbrx" or inner is None or not outer:
        return
    theta = (stated.get("attn_config") or {}).get("rope_theta")
    if theta is not None and not {"rope_theta", "rope_parameters"} & set(stated):
        outer["rope_theta"] = float(theta)
    inner.rope_theta = outer["rope_theta"]


def load_model(
    folder: Path,
    *,
    dtype: torch.dtype | str,
    device: torch.device | str = "cpu",
    attention: str = "sdpa",
    notes: list[str] | None = None,
    base: BaseConfig | None = None,
) -> PreTrainedModel:
    """The causal language model of a folder, in eval mode, no parameter requiring a gradient.

    `attention` is a name of Transformers' attention interface; a model that refuses it gets
    `eager`. `base` says whether the matrices of the blocks are quantised (`quantised.py`), and
    whether those that the checkpoint stores in few bits stay so; None: they are made wide.
    Sentences about what was changed (dropouts set to 0, another attention) are appended to `notes`.
    Raises ModelError when `vet.problems_of` finds anything, when the model cannot be built, or when
    a weight is missing, left over or of another shape. No network; code from the folder only as
    `remote_code.py` says.
    """
    import torch

    from tunewright.models.scalar_heads import put_stored_score, stored_score

    collector.work()
    folder, said = Path(folder), [] if notes is None else notes
    place = place_of(folder)
    raise_all(vet.problems_of(place.folder), ModelError)
    scorer = is_scorer(folder)
    if not scorer and _is_classifier(folder):
        raise ModelError(_no_language_model(folder))
    few = few_bits.find(place.folder)
    if few is not None and base is not None:
        raise_all(few_bits.problems(folder, few, base), ModelError)
    dtype = getattr(torch, dtype) if isinstance(dtype, str) and dtype != "auto" else dtype
    try:
        model, info, count = _read(place, folder, attention, dtype, device, base, few, said)
    except (CompatError, Interrupted, ModelError):
        raise
    except Exception as e:
        raise ModelError(problem("E-MODEL-32", str(folder), cause=first_line(e))) from e
    # Where code ran from a private copy, adapters still name the folder that the person gave.
    model.name_or_path = model.config._name_or_path = str(folder)
    _require_whole(folder, model, _without_word_head(info) if scorer else info)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    keep_choosing(model)
    model.requires_grad_(False)
    if scorer:
        weight = stored_score(place.folder)
        if weight is None:
            raise ModelError(problem("E-OBJ-32", str(folder)))
        put_stored_score(model, weight, folder)
    if count:
        assert base is not None
        return_freed_memory()
        _say_quantised(count, base, said)
    return model.eval()


def _no_language_model(folder: Path) -> Problem:
    """A classifier in place of a language model."""
    labels = headers.config_of(folder, "config.json").get("id2label") or "12"
    return problem("E-METHOD-73", str(folder), found=say("models.labels", count=len(labels)))


def _without_word_head(info: dict[str, Any]) -> dict[str, Any]:
    """What loading a reward model says, but for its heads: the one that predicts words is not in
    it, and nobody will ask for words."""
    return info | {
        "unexpected_keys": set(info["unexpected_keys"]) - {"score.weight", "score.bias"},
        "missing_keys": set(info["missing_keys"]) - {"lm_head.weight"},
    }


def _read(
    place: Place,
    folder: Path,
    attention: str,
    dtype: torch.dtype | str,
    device: torch.device | str,
    base: BaseConfig | None,
    few: few_bits.FewBits | None,
    said: list[str],
) -> tuple[Any, dict[str, Any], int]:
    """(model, what Transformers says of the weights, matrices that were quantised), with the
    weights held as `base` says. `few`: how the checkpoint stores them in few bits, if it does."""
    config = load_config(folder, base, said)
    said += silence_dropout(config)
    said += doubts(config)
    number_type = base.number_type if base is not None else None
    if base is not None and number_type is not None:
        return _few_bits(place, config, attention, dtype, base, device, few)
    if few is not None:
        as_stored = base is not None and not base.dequantise
        model, info = _stored(place, config, attention, dtype, device, few, as_stored)
        said.append(_say_stored(few, as_stored, model))
        return model, info, 0
    placed = {} if str(device) == "cpu" else {"device_map": {"": str(device)}}
    model, info = _built(place, config, attention, said, dtype=dtype, **placed)
    if base is not None and base.dequantise:
        said.append(say("models.dequantise_nothing"))
    return model, info, 0


def _few_bits(
    place: Place,
    config: Any,
    attention: str,
    dtype: Any,
    base: BaseConfig,
    device: Any,
    few: few_bits.FewBits | None,
) -> tuple[Any, dict[str, Any], int]:
    """The model with the matrices of its blocks in few bits, read one at a time."""
    from tunewright.models.quantised_load import load_quantised

    planned, how = _planned(place, config, attention, dtype)
    model, info, count = load_quantised(planned, place.folder, config, base, device, few, **how)
    return _with_generation(place, model), info, count


def _stored(
    place: Place,
    config: Any,
    attention: str,
    dtype: Any,
    device: Any,
    few: few_bits.FewBits,
    as_stored: bool,
) -> tuple[Any, dict[str, Any]]:
    """The model of a checkpoint that is quantised already: its matrices as they are stored, or all
    of them wide."""
    from tunewright.models.quantised_load import load_as_stored, load_wide

    planned, how = _planned(place, config, attention, dtype)
    read = load_as_stored if as_stored else load_wide
    model, info = read(planned, place.folder, config, device, few, **how)
    return _with_generation(place, model), info


def _planned(place: Place, config: Any, attention: str, dtype: Any) -> tuple[Any, dict[str, Any]]:
    """The model without weights, and how it is to be filled: its dtype and its attention."""
    import torch
    from transformers import AutoModelForCausalLM

    with silent(), torch.device("meta"):
        planned: Any = AutoModelForCausalLM.from_config(config, trust_remote_code=place.model)
    way = attention if stock_attention(planned) == "sdpa" else "eager"
    if dtype == "auto":
        dtype = config.dtype or torch.float32
    return planned, {"dtype": dtype, "attn_implementation": way}


def _with_generation(place: Place, model: Any) -> Any:
    from transformers import GenerationConfig

    if (place.folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(str(place.folder))
    return model


def _say_stored(few: few_bits.FewBits, as_stored: bool, model: Any) -> str:
    return say(
        "models.as_stored" if as_stored else "models.made_wide",
        count=len(few.matrices),
        kind=few.kinds,
        bits=f"{few.bits_per_weight:.2f}",
        dtype=str(model.dtype).removeprefix("torch."),
    )


def made_up(
    folder: Path, blocks: int, *, dtype: torch.dtype, base: BaseConfig | None = None
) -> PreTrainedModel:
    """The model that a folder's `config.json` describes, with only `blocks` blocks and made-up
    weights: what a pass costs can be measured on it before any weight is read.

    As `load_model` gives it: in eval mode, no dropout, no parameter requiring a gradient, `base`
    quantised. Raises ModelError where the folder needs code of its own, and whatever Transformers
    raises for a configuration that it cannot build.
    """
    import torch
    from transformers import AutoModelForCausalLM

    if place_of(folder).code:
        raise ModelError(problem("E-MODEL-32", str(folder), cause="remote code"))
    config = load_config(folder, base)
    silence_dropout(config)
    text = config.get_text_config()
    text.num_hidden_layers = blocks
    kinds = getattr(text, "layer_types", None)
    if kinds:
        text.layer_types = kinds[:blocks]
    with silent(), torch.device("meta"):
        planned: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
    tied = set(getattr(planned, "all_tied_weights_keys", None) or ())
    weights = {
        name: _made_up_tensor(t.shape, dtype)
        for name, t in planned.state_dict().items()
        if name not in tied
    }
    with silent():
        model: Any = type(planned).from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype=dtype,
            attn_implementation=stock_attention(planned),
        )
    model.name_or_path = model.config._name_or_path = str(folder)
    model.requires_grad_(False)
    if base is not None and base.number_type is not None:
        _quantise(model, base, "cpu", [])
    return model.eval()


def _made_up_tensor(shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Small random numbers for a matrix, ones for a vector. One page of random numbers is repeated:
    drawing all of them would take longer than what is to be measured."""
    import torch

    if len(shape) < 2:
        return torch.ones(shape, dtype=dtype)
    page = torch.randn(min(MADE_UP, prod(shape)), generator=torch.Generator().manual_seed(0))
    repeats = -(-prod(shape) // len(page))
    return (0.02 * page).to(dtype).repeat(repeats)[: prod(shape)].view(shape).clone()


def _built(
    place: Place, config: Any, attention: str, said: list[str], **given: Any
) -> tuple[Any, dict[str, Any]]:
    """The model, with `eager` attention where it refuses the one asked for, and what Transformers
    found out about its weights."""
    from transformers import AutoModelForCausalLM

    for way in (attention, "eager"):
        if way == "sdpa" and _caps_scores(config):
            said.append(say("models.attention_eager", asked=way, model_type=config.model_type))
            continue
        try:
            with silent():
                loaded: Any = AutoModelForCausalLM.from_pretrained(
                    str(place.folder),
                    config=config,
                    attn_implementation=way,
                    use_safetensors=True,
                    output_loading_info=True,
                    local_files_only=True,
                    trust_remote_code=place.model,
                    **given,
                )
            return loaded[0], loaded[1]
        except ValueError as e:
            if way == "eager" or "attention" not in str(e).lower():
                raise
            said.append(
                say("models.attention_eager", asked=attention, model_type=config.model_type)
            )
    raise AssertionError("eager attention was built or refused")


def stock_attention(model: Any) -> str:
    """The attention of Transformers that computes all that the model does: PyTorch's (`sdpa`), or
    `eager` where the model has none or PyTorch's would leave something out."""
    if _caps_scores(model.config) or not getattr(model, "_supports_sdpa", True):
        return "eager"
    return "sdpa"


def _caps_scores(config: Any) -> bool:
    """Whether scores of attention have a cap (Gemma 2). PyTorch's attention has none; Transformers
    up to 5.17 leaves the cap out there without a word, later ones refuse."""
    return bool(getattr(config.get_text_config(), "attn_logit_softcapping", None))


def is_scorer(folder: Path) -> bool:
    """Whether a folder holds a classifier with one label, of whole texts or of every token: a
    reward model or a judge of steps."""
    return (
        _is_classifier(folder)
        and len(headers.config_of(Path(folder), "config.json").get("id2label") or {}) == 1
    )


def scores_tokens(folder: Path) -> bool:
    """Whether a folder holds a classifier with one label for every token: a judge of steps."""
    return is_scorer(folder) and _architecture(folder).endswith("ForTokenClassification")


def _is_classifier(folder: Path) -> bool:
    return _architecture(folder).endswith(("ForSequenceClassification", "ForTokenClassification"))


def _architecture(folder: Path) -> str:
    return str((headers.config_of(Path(folder), "config.json").get("architectures") or [""])[0])


def _quantise(
    model: PreTrainedModel, base: BaseConfig, device: torch.device | str, said: list[str]
) -> None:
    """Keep the matrices of the blocks of a model in memory in few bits, and say so."""
    from tunewright.models.quantised import quantise_model

    assert base.number_type is not None
    count = quantise_model(
        model, base.number_type, base.double, base.block, None if str(device) == "cpu" else device
    )
    return_freed_memory()
    _say_quantised(count, base, said)


def _say_quantised(count: int, base: BaseConfig, said: list[str]) -> None:
    said.append(
        say(
            "models.quantised",
            count=count,
            type=base.number_type,
            bits=f"{base.bits_per_weight:.2f}",
        )
    )


def _require_whole(folder: Path, model: PreTrainedModel, info: Any) -> None:
    """Raise ModelError unless checkpoint and model hold the same weights. A head tied to the
    embedding need not be stored."""
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    missing = sorted(set(info["missing_keys"]) - tied)
    left_over = sorted(info["unexpected_keys"])
    other_shape = sorted(
        str(entry[0] if isinstance(entry, tuple) else entry) for entry in info["mismatched_keys"]
    )
    found = [
        problem(
            "E-MODEL-33",
            str(folder),
            missing=len(missing),
            left_over=len(left_over),
            shapes=len(other_shape),
            names=", ".join(names[:3]),
        )
        for names in [[*missing, *left_over, *other_shape]]
        if names
    ]
    raise_all(found, ModelError)


def keep_choosing(model: Any) -> None:
    """Let routers that draw while they train choose as they do otherwise."""
    for module in model.modules():
        if type(module).__name__ in DRAWS:
            module.eval()
            module.train = lambda mode=True, own=module: own


def silence_dropout(config: Any) -> list[str]:
    """Set every dropout of a config, and of the configs inside it, to 0; one sentence for each that
    was not 0 before."""
    said = []
    for inner in [
        config,
        *(
            getattr(config, name)
            for name in getattr(config, "sub_configs", {})
            if getattr(config, name, None) is not None
        ),
    ]:
        for name, value in list(vars(inner).items()):
            # Phi-MoE's jitter is the width of the gap by which it chooses, also when it answers.
            if config.model_type == "phimoe" and name == "router_jitter_noise":
                continue
            if DROPOUT.search(name) and type(value) is float and value > 0:
                setattr(inner, name, 0.0)
                said.append(say("models.dropout_off", name=name, value=value))
    return said


def weight_bytes(folder: Path) -> int:
    """Bytes of all weights, from the headers; 0 when there are none. Raises ModelError for a header
    that cannot be believed."""
    return sum(num_bytes for _, _, num_bytes in _headers(folder).values())


def parameter_count(folder: Path) -> int:
    """Weights of the model, from the headers; a head that is tied to the embedding but stored all
    the same is counted once, and what is stored in few bits by the weights that it stands for.
    Raises ModelError for a header that cannot be believed and for weights that are not read here.
    """
    tensors = _headers(folder)
    few = few_bits.find(folder)
    if few is not None:
        plain = {n: t for n, t in tensors.items() if n not in few.unused and n not in few.matrices}
        tensors = plain | {m.name: ("", m.shape, 0) for m in few.matrices.values()}
    tied = headers.config_of(folder, "config.json").get("tie_word_embeddings") is True and any(
        "embed" in name or ".wte." in name for name in tensors
    )
    return sum(
        prod(shape)
        for name, (_, shape, _) in tensors.items()
        if not (tied and name.endswith("lm_head.weight"))
    )


def _headers(folder: Path) -> dict[str, tuple[str, tuple[int, ...], int]]:
    raise_all(vet.weight_problems(Path(folder)), ModelError)
    return {
        name: entry
        for path in headers.weight_files(Path(folder))[0]
        for name, entry in headers.read_safetensors_header(path).items()
    }


def context_of(config: Any) -> int | None:
    """Tokens that a model can take, as its configuration states them; None where it states none."""
    found = getattr(config.get_text_config(), "max_position_embeddings", None)
    if not isinstance(found, int) or found < 2:
        return None
    return int(found * rotary.context_factor(config))


def size_of(config: Any, *names: str) -> int:
    """The first of `names` that a configuration states as a number, 0 where none is. Where layers
    differ, the largest of theirs; a model of several parts (bytes to patches and back) has as many
    layers as all of them."""
    for name in names:
        try:
            value = getattr(config, name, None)
        except RuntimeError:  # Transformers' own, where each layer states it for itself
            value = [getattr(layer, name, 0) for layer in config.per_layer_config]
        if isinstance(value, list | tuple) and value and all(type(v) is int for v in value):
            value = max(value)
        if type(value) is int and value > 0:
            return value
    parts = [getattr(config, part, None) for part in getattr(config, "sub_configs", {})]
    return sum(size_of(part, *names) for part in parts if part is not None)


def room_of(causal: Any, model: Any) -> int | None:
    """Tokens that question and answer may have together: the context less what a learnt prompt
    takes of it. None where the model names no limit."""
    context = context_of(causal.config)
    prompt = getattr(model, "virtual_prompt", lambda: None)()
    return None if context is None else context - (prompt.num_tokens if prompt is not None else 0)
