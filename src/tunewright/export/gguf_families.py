"""The families of models that can be written as GGUF, one row each: what llama.cpp calls them, what
it expects of their tensors, and which of their settings it has built in.

Names of tensors come from the library `gguf`. A new dense family is a row, and a test that runs it
in llama.cpp. Source: llama.cpp's conversion/*.py and src/models/*.cpp.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from tunewright.core.errors import UsageError
from tunewright.core.words import say

Reason = str
"""Why llama.cpp cannot compute a model, in words."""


@dataclass(frozen=True)
class Family:
    """A row. `arch` is llama.cpp's name."""

    arch: str
    permutes: bool = False
    """llama.cpp turns pairs of neighbours where Transformers turns halves: rows of q and k change
    places."""
    norm_shift: float = 0.0
    """What the model adds to the weights of its norms when it computes; llama.cpp adds nothing."""
    window: str = "none"
    """Sliding windows: `none` (the family has none, or llama.cpp ignores it), `layers` (some blocks
    have one, at even distances of `period`)."""
    period: int = 0
    activation: str = "silu"
    tied_only: bool = False
    """llama.cpp knows no head of its own."""
    by_transformers: bool = True
    """Transformers reads such files back."""
    reasons: Callable[[Any], Iterator[Reason]] | None = None
    """What llama.cpp has built in and this configuration sets otherwise."""


def _gemma_scale(config: Any) -> Iterator[Reason]:
    """Gemma 2 and 3 scale their queries by a number of their own; llama.cpp takes the size of a
    head, but for the largest models."""
    wanted = config.query_pre_attn_scalar
    if wanted != config.head_dim and config.num_hidden_layers not in (46, 62):
        yield f"query_pre_attn_scalar {wanted}, head_dim {config.head_dim}"


def _smollm3_positions(config: Any) -> Iterator[Reason]:
    """llama.cpp leaves out positions in every fourth block."""
    found = list(getattr(config, "no_rope_layers", None) or [])
    if found and found != [int((i + 1) % 4 != 0) for i in range(len(found))]:
        yield "no_rope_layers"


FAMILIES: dict[str, Family] = {
    "llama": Family("llama", permutes=True),
    "mistral": Family("llama", permutes=True),
    "qwen2": Family("qwen2"),
    "qwen3": Family("qwen3"),
    "gemma": Family(
        "gemma", norm_shift=1.0, activation="gelu", tied_only=True, by_transformers=False
    ),
    "gemma2": Family(
        "gemma2",
        norm_shift=1.0,
        window="layers",
        period=2,
        activation="gelu",
        tied_only=True,
        reasons=_gemma_scale,
    ),
    "gemma3_text": Family(
        "gemma3", norm_shift=1.0, window="layers", period=6, activation="gelu", reasons=_gemma_scale
    ),
    "phi3": Family("phi3"),
    "smollm3": Family("smollm3", permutes=True, by_transformers=False, reasons=_smollm3_positions),
}
"""Transformers' model type -> row."""
GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")


def family_of(config: Any, where: str) -> Family:
    """The row of a configuration. Raises UsageError (E-EXPORT-22) for a family that has none, and
    (E-EXPORT-23) where llama.cpp would compute something else."""
    kind = str(config.model_type)
    found = FAMILIES.get(kind)
    if found is None:
        known = ", ".join(sorted(FAMILIES))
        raise UsageError.of("E-EXPORT-22", where, model_type=kind, known=known)
    reasons = list(_reasons(found, config))
    if reasons:
        raise UsageError.of("E-EXPORT-23", where, reason="; ".join(reasons))
    return found


def _reasons(family: Family, config: Any) -> Iterator[Reason]:
    act = getattr(config, "hidden_activation", None) or getattr(config, "hidden_act", "silu")
    if act not in (GELU if family.activation == "gelu" else ("silu", "swish")):
        yield f"activation {act}"
    if family.tied_only and not config.tie_word_embeddings:
        yield "tie_word_embeddings false"
    for rope in _ropes(config):
        kind = rope.get("rope_type", "default")
        known = {"default", "linear", "yarn"}
        known |= {"llama3"} if family.arch in ("llama", "smollm3") else set()
        known |= {"longrope"} if family.arch == "phi3" else set()
        if kind not in known:
            yield f"rope_type {kind}"
    if family.window == "layers" and _period(config) is None:
        yield "layer_types"
    if family.reasons is not None:
        yield from family.reasons(config)


def _ropes(config: Any) -> list[dict[str, Any]]:
    """The rotary settings: one, or one for each kind of block."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    inner = [one for one in found.values() if isinstance(one, dict)]
    return inner or [found]


def rope_of(config: Any, kind: str = "full_attention") -> dict[str, Any]:
    """The rotary settings of a kind of blocks."""
    found = dict(getattr(config, "rope_parameters", None) or {})
    inner = found.get(kind)
    return dict(inner) if isinstance(inner, dict) else found


def _period(config: Any) -> int | None:
    """Every how many blocks one sees everything; 0 where all do. None where they lie otherwise."""
    kinds = list(getattr(config, "layer_types", None) or [])
    whole = [i for i, kind in enumerate(kinds) if kind == "full_attention"]
    if len(whole) == len(kinds):
        return 0
    period = whole[0] + 1 if whole else len(kinds) + 1
    return period if whole == list(range(period - 1, len(kinds), period)) else None


def notes(family: Family, config: Any) -> list[str]:
    """What a person should know of the file, in sentences."""
    window = getattr(config, "sliding_window", None)
    context = config.max_position_embeddings
    used = getattr(config, "use_sliding_window", True)
    if family.window == "none" and window and used and window < context:
        return [say("gguf.window", window=window)]
    return []


def metadata(family: Family, config: Any, rows: int) -> dict[str, Any]:
    """The settings of the model, by key without the architecture's name: numbers, floats, lists.
    `rows` is the number of tokens."""
    heads, width = config.num_attention_heads, config.hidden_size
    head = getattr(config, "head_dim", None) or width // heads
    rope = rope_of(config)
    turned = int(head * float(rope.get("partial_rotary_factor", 1.0)))
    found: dict[str, Any] = {
        "vocab_size": rows,
        "context_length": config.max_position_embeddings,
        "embedding_length": width,
        "block_count": config.num_hidden_layers,
        "feed_forward_length": config.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": getattr(config, "num_key_value_heads", None) or heads,
        "attention.layer_norm_rms_epsilon": float(config.rms_norm_eps),
        "rope.dimension_count": turned,
        "rope.freq_base": float(rope.get("rope_theta", 10000.0)),
    }
    if getattr(config, "head_dim", None):
        found |= {"attention.key_length": head, "attention.value_length": head}
    if family.window == "layers":
        found |= _windows(family, config)
    for ours, theirs in (
        ("attn_logit_softcapping", "attn_logit_softcapping"),
        ("final_logit_softcapping", "final_logit_softcapping"),
    ):
        value = getattr(config, ours, None)
        if value and family.norm_shift:
            found[theirs] = float(value)
    return found | _scaling(family, config, rope)


def _windows(family: Family, config: Any) -> dict[str, Any]:
    """Sliding windows, and the rotary base of the blocks that have one."""
    period = _period(config)
    if not period:
        return {}
    found: dict[str, Any] = {"attention.sliding_window": config.sliding_window}
    if period != family.period:
        found["attention.sliding_window_pattern"] = period
    local = rope_of(config, "sliding_attention").get("rope_theta")
    if local is not None and isinstance(config.rope_parameters.get("sliding_attention"), dict):
        found["rope.freq_base_swa"] = float(local)
    return found


def _scaling(family: Family, config: Any, rope: dict[str, Any]) -> dict[str, Any]:
    """Rotary scaling that is stated by keys; Llama 3's and Phi-3's are tensors."""
    kind = rope.get("rope_type", "default")
    original = rope.get("original_max_position_embeddings")
    if family.arch == "phi3":
        original = original or getattr(config, "original_max_position_embeddings", None)
        found = {"rope.scaling.original_context_length": original} if original else {}
        if kind == "longrope":
            found["rope.scaling.attn_factor"] = _long_factor(config, rope, int(original or 1))
        return found
    if kind not in ("linear", "yarn"):
        return {}
    found = {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        found["rope.scaling.original_context_length"] = original or config.max_position_embeddings
        for theirs, ours in (("attn_factor", "attention_factor"), ("yarn_beta_fast", "beta_fast")):
            if rope.get(ours) is not None:
                found[f"rope.scaling.{theirs}"] = float(rope[ours])
        if rope.get("beta_slow") is not None:
            found["rope.scaling.yarn_beta_slow"] = float(rope["beta_slow"])
    return found


def _long_factor(config: Any, rope: dict[str, Any], original: int) -> float:
    """How much longrope scales attention."""
    stated = rope.get("attention_factor")
    if stated is not None:
        return float(stated)
    scale = config.max_position_embeddings / original
    return math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0


def rotary_tensors(config: Any) -> dict[str, Any]:
    """Name -> float32 numbers of rotary scaling that is stated by tensors."""
    import numpy as np

    rope = rope_of(config)
    kind = rope.get("rope_type", "default")
    if kind == "longrope":
        return {
            f"rope_factors_{way}.weight": np.asarray(rope[f"{way}_factor"], dtype=np.float32)
            for way in ("long", "short")
        }
    if kind != "llama3":
        return {}
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    base = float(rope.get("rope_theta", 10000.0))
    wavelength = 2 * np.pi * base ** (np.arange(0, head, 2, dtype=np.float64) / head)
    factor, low, high = (
        float(rope.get(name, usual))
        for name, usual in (("factor", 8), ("low_freq_factor", 1), ("high_freq_factor", 4))
    )
    original = float(rope.get("original_max_position_embeddings", 8192))
    smooth = np.clip((original / wavelength - low) / (high - low), 0.0, 1.0)
    factors = 1 / ((1 - smooth) / factor + smooth)
    return {"rope_freqs.weight": factors.astype(np.float32)}
