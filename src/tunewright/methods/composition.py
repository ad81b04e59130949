"""Several adapters on one base, by name: switch between them, let them add up, combine them with weights into one.

PEFT holds the adapters; this file loads them with every tensor accounted for and says what does not go together.

    composed = compose(model, {"law": Path("runs/law/adapter"), "tone": Path("runs/tone/adapter")})
    composed.use("law")                                   # switch
    composed.use("law", "tone")                           # stack: their updates add up
    composed.use()                                        # the base
    composed.combine("both", {"law": 0.7, "tone": 0.5})   # one adapter, W + 0.7 dW_law + 0.5 dW_tone
"""

from __future__ import annotations

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import CompatError, Problem, UsageError, problem, raise_all
from tunewright.models import vet

WAYS = (
    "cat",
    "svd",
    "linear",
    "ties",
    "ties_svd",
    "dare_ties",
    "dare_linear",
    "dare_ties_svd",
    "dare_linear_svd",
    "magnitude_prune",
    "magnitude_prune_svd",
)
"""PEFT's ways to combine. `cat` is the exact weighted sum, of the rank of all together; `svd` cuts that back to the largest rank."""
DENSITY = 0.5
"""Share of each update that the pruning ways keep."""


@dataclass
class Composed:
    """A base with several adapters. `wrapped` is what computes."""

    wrapped: Any
    names: list[str]

    def use(self, *names: str) -> None:
        """Let exactly these adapters act: none is the base, one is a switch, several add up. Raises UsageError for a name that is not there."""
        raise_all([problem("E-METHOD-33", name, name=name, known=", ".join(self.names)) for name in names if name not in self.names], UsageError)
        if not names:
            self.wrapped.base_model.disable_adapter_layers()
            return
        self.wrapped.base_model.enable_adapter_layers()
        self.wrapped.base_model.set_adapter(list(names))
        self.wrapped.requires_grad_(False)

    def combine(self, name: str, weights: dict[str, float], way: str = "cat") -> None:
        """Make one adapter out of several LoRA adapters and use it: W + sum of weight * update, exactly (`cat`) or in one of PEFT's other ways."""
        more = {"density": DENSITY} if any(word in way for word in ("ties", "dare", "magnitude")) else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                self.wrapped.add_weighted_adapter(list(weights), list(weights.values()), name, combination_type=way, **more)
        except ValueError as e:
            raise CompatError(problem("E-METHOD-24", way, type=way, cause=str(e).splitlines()[0][:300])) from e
        self.names.append(name)
        self.use(name)

    def save(self, name: str, folder: Path) -> None:
        """Write one adapter as a PEFT folder."""
        import shutil

        self.wrapped.save_pretrained(str(folder), selected_adapters=[name], save_embedding_layers=False)
        # PEFT puts every adapter but `default` into a folder of its own name.
        inner = folder / name
        if inner.is_dir():
            for file in inner.iterdir():
                shutil.move(str(file), str(folder / file.name))
            inner.rmdir()


def obstacles(folders: dict[str, Path]) -> list[Problem]:
    """Why these folders cannot be combined into one adapter, judged by their configurations."""
    found = []
    for name, folder in folders.items():
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        kind = str(config.get("peft_type", "?"))
        extras = {"DoRA": config.get("use_dora"), "bias": config.get("bias", "none") != "none", "modules_to_save": config.get("modules_to_save")}
        # Rows of words are put in place of others, which is no sum; PEFT would leave them out.
        extras |= {"trainable_token_indices": config.get("trainable_token_indices"), "embedding": kind == "LORA" and _holds_whole_matrices(folder)}
        reason = next((word for word, there in extras.items() if there), "")
        if kind != "LORA" or reason:
            found.append(problem("E-METHOD-30", name, folder=folder, type=reason or kind))
    return found


def _holds_whole_matrices(folder: Path) -> bool:
    """Whether a LoRA's file holds more than LoRA: the embedding of a model that was made larger, for instance."""
    if vet.weight_problems(folder, "adapter"):
        return False  # said when it is opened
    files, _ = vet.weight_files(folder, "adapter")
    return any(".lora_" not in name and not name.endswith(".score.weight") for path in files for name in vet.read_safetensors_header(path))


def compose(model: Any, folders: dict[str, Path]) -> Composed:
    """The adapters of `folders` on the causal model `model`; the first is in use. Raises ModelError for a folder that does not fit, CompatError
    for learnt prompts, of which only one can stand before an input."""
    from tunewright.models.adapters import add_adapter, load_adapter

    (first, folder), *others = folders.items()
    wrapped = load_adapter(model, folder, name=first)
    for name, other in others:
        add_adapter(wrapped, other, name)
    if any(config.is_prompt_learning for config in wrapped.peft_config.values()) and others:
        raise CompatError(problem("E-METHOD-30", "", folder=folder, type="prompt"))
    composed = Composed(wrapped, list(folders))
    composed.use(first)
    return composed
