"""Whether a method fits a model, checked from the configuration alone: missing roles, ranks above a
matrix's size, blocks that do not exist."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tunewright.core.config import RunConfig
from tunewright.core.errors import CompatError, TunewrightError, raise_all
from tunewright.core.registry import methods
from tunewright.core.runfile import kind_of


def require_place(config: RunConfig, model_config: Any) -> None:
    """Put the method on a model without weights, so that what it refuses is refused before weights
    are read. Raises what the method raises.

    What such a model cannot show (values) is left to the real one: any failure that is not the
    method's own word is passed over.
    """
    entry = methods.get(kind_of(config.method))
    if entry is None or config.adapter or entry.facts.get("needs_weights"):
        return
    method = config.method
    if getattr(method, "new_tokens", None):  # their words are no part of the configuration either
        method = method.model_copy(update={"new_tokens": []})
    from tunewright.engine.loaded import put_new

    _on_meta(model_config, lambda model, card: put_new(method, model, card, "-"))


def require_same_layers(asked: Any, adapter: Path, model_config: Any) -> None:
    """Raise CompatError where `targets` and `layers` of a method section choose other layers than
    an adapter sits on."""
    from tunewright.methods.continuing import wrong_layers

    _on_meta(
        model_config,
        lambda model, card: raise_all(wrong_layers(asked, model, card, adapter), CompatError),
    )


def _on_meta(model_config: Any, look: Callable[[Any, Any], object]) -> None:
    """`look` at a model without weights and its anatomy; only what it says in our words counts."""
    import torch
    from transformers import AutoModelForCausalLM

    from tunewright.models import anatomy

    with contextlib.suppress(_NotTheMethod), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with torch.device("meta"):
                model = AutoModelForCausalLM.from_config(model_config)
            look(model, anatomy.of(model))
        except TunewrightError:
            raise
        except Exception as e:
            raise _NotTheMethod from e


class _NotTheMethod(Exception):
    """Something failed that says nothing about the run."""
