"""Rotary scaling: a model that reads more tokens than it was trained on (`base.rotary`).

What is set is the model's own configuration, before it is built, in the words of Transformers'
rotary embeddings, so that a whole model that is saved or merged carries it. An adapter does not
hold its base: a small file beside it says how the base was held.

Sources: linear, Chen et al. 2023 (arXiv 2306.15595); dynamic NTK, emozilla 2023 as Transformers has
it; YaRN, Peng et al. 2023 (arXiv 2309.00071).
"""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

from tunewright.core.config import RotaryConfig
from tunewright.core.errors import CompatError, problem
from tunewright.core.files import write_json
from tunewright.core.words import say

FILE = "tunewright_base.json"
"""Beside an adapter: how its base was held."""
PLAIN = (None, "default")
KEPT = ("rope_theta", "partial_rotary_factor")
OPTIONAL = ("attention_factor", "beta_fast", "beta_slow")


def scale(config: Any, rotary: RotaryConfig | None) -> list[str]:
    """Set the rotary scaling of a model's configuration; sentences that say so.

    Raises CompatError (E-KEY-05) for a model whose positions are not rotary, or not in a form that
    can be scaled.
    """
    if rotary is None:
        return []
    assert rotary.factor != "auto", "settled before a model is built"
    text = config.get_text_config()
    held = getattr(text, "rope_parameters", None)
    context = getattr(text, "max_position_embeddings", None)
    parts = _layers(held)
    if not parts or not isinstance(context, int):
        raise CompatError(problem("E-KEY-05", "base.rotary", family=str(text.model_type)))
    before = parts[0].get("rope_type", "default")
    original = rotary.original or int(parts[0].get("original_max_position_embeddings") or context)
    for part in parts:
        names = [name for name in KEPT if name in part]
        kept: dict[str, Any] = {name: part[name] for name in names}
        part.clear()
        part |= {**kept, "rope_type": rotary.kind, "factor": float(rotary.factor)}
        if rotary.kind == "llama3":
            part |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0}
        if rotary.kind in ("yarn", "llama3"):
            part["original_max_position_embeddings"] = original
            given = {name: getattr(rotary, name) for name in OPTIONAL}
            part |= {name: value for name, value in given.items() if value is not None}
    # The dynamic form reads the context that the model was trained on there.
    longest = original if rotary.kind == "dynamic" else int(original * rotary.factor)
    text.max_position_embeddings = longest
    told = [
        say(
            "rotary.scaled",
            kind=rotary.kind,
            factor=f"{rotary.factor:g}",
            before=f"{original:,}",
            after=f"{int(original * rotary.factor):,}",
        )
    ]
    if before not in PLAIN:
        told.append(say("rotary.replaced", before=before))
    return told


def settled(
    rotary: RotaryConfig | None, config: Any, max_tokens: int | None
) -> tuple[RotaryConfig | None, str]:
    """The scaling with a number for its factor, and a sentence where that was `auto`: as many times
    the context as `max_tokens` needs; None where it fits already. `config` is the model's own.

    Raises CompatError (E-KEY-11) for `auto` without a length.
    """
    if rotary is None or rotary.factor != "auto":
        return rotary, ""
    if max_tokens is None:
        raise CompatError(problem("E-KEY-11", "base.rotary"))
    text = config.get_text_config()
    parts = _layers(getattr(text, "rope_parameters", None))
    stated = parts[0].get("original_max_position_embeddings") if parts else None
    context = rotary.original or stated or getattr(text, "max_position_embeddings", None)
    if not context or max_tokens <= context:
        return None, say("rotary.fits", context=f"{context or 0:,}", tokens=f"{max_tokens:,}")
    factor = float(math.ceil(max_tokens / context))
    made = rotary.model_copy(update={"factor": factor})
    return made, say("rotary.settled", factor=f"{factor:g}", tokens=f"{max_tokens:,}")


def _layers(held: Any) -> list[dict[str, Any]]:
    """The rotary settings that can be scaled: the model's, or, where kinds of layers have their
    own, those of layers that see everything."""
    if not isinstance(held, dict):
        return []
    if "rope_theta" in held or "rope_type" in held:
        return [held]
    full = held.get("full_attention")
    return [full] if isinstance(full, dict) else []


def carry(config: Any, model: Any) -> None:
    """Give a configuration that was read from the base's files the rotary settings of `model`."""
    to, held = config.get_text_config(), model.config.get_text_config()
    for name in ("rope_parameters", "max_position_embeddings"):
        if hasattr(held, name) and getattr(to, name, None) != getattr(held, name):
            setattr(to, name, copy.deepcopy(getattr(held, name)))


def context_factor(config: Any) -> float:
    """How many times its stated context a model takes: more than once where it scales by itself."""
    parts = _layers(getattr(config.get_text_config(), "rope_parameters", None))
    dynamic = bool(parts) and parts[0].get("rope_type") == "dynamic"
    return float(parts[0].get("factor") or 1.0) if dynamic else 1.0


def write(folder: Path, rotary: RotaryConfig | None) -> None:
    """Leave the note beside a saved adapter; none where nothing is scaled."""
    if rotary is not None:
        write_json(Path(folder) / FILE, {"rotary": rotary.model_dump(mode="json")})


def read(folder: Path) -> RotaryConfig | None:
    """What the note beside an adapter says. Raises ValueError for one that holds something else."""
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    found = json.loads(path.read_text(encoding="utf-8")).get("rotary")
    return RotaryConfig.model_validate(found) if found else None
