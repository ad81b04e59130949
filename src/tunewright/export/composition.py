"""Several adapters on one base, by name: switch between them, let them add up, combine them with
weights into one.

PEFT holds the adapters; this file loads them with every tensor accounted for and says what does not
go together.

    composed = compose(model, {"law": Path("runs/law/adapter"), "tone": Path("runs/tone/adapter")})
    composed.use("law")                                   # switch
    composed.use("law", "tone")                           # stack: their updates add up
    composed.use()                                        # the base
    composed.combine("both", {"law": 0.7, "tone": 0.5})   # one adapter, W + 0.7 dW_law + 0.5
    dW_tone
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from tunewright.core.errors import CompatError, Problem, UsageError, problem, raise_all
from tunewright.core.types import Model
from tunewright.methods import lora_starts
from tunewright.methods.peft import short_names
from tunewright.sources import headers, vet

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from torch import Tensor

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
"""PEFT's ways to combine. `cat` is the exact weighted sum, of the rank of all together; `svd` cuts
that back to the largest rank. The ways without `svd` in their names combine the A matrices and the
B matrices each for themselves and multiply afterwards, so what they give holds products of one
adapter's A with another's B: `linear` is not the weighted sum of the updates."""
Products: TypeAlias = "dict[str, tuple[Tensor, Tensor, float]]"
"""Module -> (A, B, scale) of one adapter: its update is scale * B A."""
DENSITY = 0.5
"""Share of each update that the pruning ways keep."""


@dataclass
class Composed:
    """A base with several adapters. `wrapped` is what computes."""

    wrapped: Any
    names: list[str]

    def use(self, *names: str) -> None:
        """Let exactly these adapters act: none is the base, one is a switch, several add up. Raises
        UsageError for a name that is not there."""
        raise_all(
            [
                problem("E-METHOD-33", name, name=name, known=", ".join(self.names))
                for name in names
                if name not in self.names
            ],
            UsageError,
        )
        if not names:
            self.wrapped.base_model.disable_adapter_layers()
            return
        self.wrapped.base_model.enable_adapter_layers()
        self.wrapped.base_model.set_adapter(list(names))
        self.wrapped.requires_grad_(False)

    def combine(self, name: str, weights: dict[str, float], way: str = "cat") -> None:
        """Make one adapter out of several LoRA adapters and use it: W + sum of weight * update,
        exactly (`cat`) or in one of PEFT's other ways."""
        more = (
            {"density": DENSITY}
            if any(word in way for word in ("ties", "dare", "magnitude"))
            else {}
        )
        configs = self.wrapped.peft_config
        own = {part: configs[part] for part in weights}
        configs.update({part: self._plain(part) for part in weights})
        try:
            with (
                warnings.catch_warnings(),
                self._scales_in_b(weights) if "svd" in way else contextlib.nullcontext(),
            ):
                warnings.simplefilter("ignore")
                self.wrapped.add_weighted_adapter(
                    list(weights), list(weights.values()), name, combination_type=way, **more
                )
        except (
            ValueError,
            RuntimeError,
        ) as e:  # a RuntimeError where layers of the same name have other ranks
            raise CompatError.of(
                "E-METHOD-24", way, type=way, cause=str(e).splitlines()[0][:300]
            ) from e
        finally:
            configs.update(own)
        self._state(name)
        self.names.append(name)
        self.use(name)

    @contextlib.contextmanager
    def _scales_in_b(self, parts: Iterable[str]) -> Iterator[None]:
        """Inside, the scale of these adapters is 1 and stands in their B: the updates are the same.
        PEFT 0.20 multiplies by the scale twice in the ways with `svd`."""
        kept: list[tuple[Any, str, float, Any, Tensor]] = []
        for layer in self.wrapped.modules():
            for part in parts:
                matrix = getattr(layer, "lora_B", {}), getattr(layer, "lora_embedding_B", {})
                held = next((one[part] for one in matrix if part in one), None)
                if held is None:
                    continue
                b = getattr(held, "weight", held)
                kept.append((layer, part, layer.scaling[part], b, b.data))
                b.data, layer.scaling[part] = b.data * layer.scaling[part], 1.0
        try:
            yield
        finally:
            for layer, part, scale, b, values in kept:
                b.data, layer.scaling[part] = values, scale

    def _plain(self, part: str) -> LoraConfig:
        """The settings of an adapter as PEFT may build the combined one on: it takes over those of
        the first, whose scaling, start and choice of blocks are not the sum's."""
        ranks = {module: len(a) for module, (a, _, _) in self.products(part).items()}
        settings: Any = self.wrapped.peft_config[part]
        plain: LoraConfig = replace(
            settings,
            use_rslora=False,
            init_lora_weights=True,
            eva_config=None,
            target_modules=set(ranks),
            layers_to_transform=None,
            layers_pattern=None,
            exclude_modules=None,
            r=max(ranks.values()),
        )
        return plain

    def _state(self, name: str) -> None:
        """Let the settings of a combined adapter say what its tensors are: the rank of each layer,
        and a scale of 1."""
        config = self.wrapped.peft_config[name]
        ranks = {module: len(a) for module, (a, _, _) in self.products(name).items()}
        config.rank_pattern = {module: rank for module, rank in ranks.items() if rank != config.r}
        config.alpha_pattern = dict(config.rank_pattern)
        config.target_modules = set(short_names(self.wrapped.get_base_model(), list(ranks)))

    def products(self, name: str) -> Products:
        """Module -> (A, B, scale) of one adapter as PEFT holds it: its update is scale * B A."""
        return products_of(self.wrapped, name)

    def save(self, name: str, folder: Path) -> None:
        """Write one adapter as a PEFT folder."""
        self.wrapped.save_pretrained(
            str(folder), selected_adapters=[name], save_embedding_layers=False
        )
        # PEFT puts every adapter but `default` into a folder of its own name.
        inner = folder / name
        if inner.is_dir():
            for file in inner.iterdir():
                shutil.move(str(file), str(folder / file.name))
            inner.rmdir()


def products_of(wrapped: PeftModel, name: str) -> Products:
    """Module -> (A, B, scale) of one adapter on a PEFT model."""
    found = {}
    for full, layer in wrapped.named_modules():
        module = full.removeprefix("base_model.model.")
        if name in getattr(layer, "lora_A", {}):
            found[module] = (
                layer.lora_A[name].weight.detach(),
                layer.lora_B[name].weight.detach(),
                float(layer.scaling[name]),
            )
        elif name in getattr(layer, "lora_embedding_A", {}):
            found[module] = (
                layer.lora_embedding_A[name].detach(),
                layer.lora_embedding_B[name].detach(),
                float(layer.scaling[name]),
            )
    return found


def products_in(folder: Path) -> Products:
    """Module -> (A, B, scale) as the files of a LoRA folder say, read without PEFT."""
    from safetensors.torch import load_file

    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    stored = load_file(folder / "adapter_model.safetensors")

    def said(pattern: str, module: str, usual: float) -> float:
        values = config.get(pattern) or {}
        return float(
            next(
                (value for key, value in values.items() if re.match(rf"(.*\.)?({key})$", module)),
                usual,
            )
        )

    found = {}
    for key, a in stored.items():
        match = re.fullmatch(r"base_model\.model\.(.+)\.lora_(embedding_)?A(\.weight)?", key)
        if match is None:
            continue
        module, b = (
            match[1],
            stored[key.replace("lora_embedding_A", "lora_embedding_B").replace("lora_A", "lora_B")],
        )
        rank, alpha = (
            said("rank_pattern", module, config["r"]),
            said("alpha_pattern", module, config["lora_alpha"]),
        )
        found[module] = (a, b, alpha / (rank**0.5 if config.get("use_rslora") else rank))
    return found


def obstacles(folders: dict[str, Path]) -> list[Problem]:
    """Why these folders cannot be combined into one adapter, judged by their configurations."""
    found = []
    for name, folder in folders.items():
        path = folder / "adapter_config.json"
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        kind = str(config.get("peft_type", "?"))
        extras = {
            "DoRA": config.get("use_dora"),
            "LoftQ": lora_starts.is_bound(folder),
            "bias": config.get("bias", "none") != "none" or config.get("lora_bias"),
            **{
                name: config.get(name)
                for name in (
                    "modules_to_save",
                    "trainable_token_indices",
                    "target_parameters",
                    "megatron_config",
                )
            },
            # Rows of words are put in place of others, which is no sum; PEFT would leave them out.
            "embedding": kind == "LORA" and _holds_whole_matrices(folder),
        }
        reason = next((word for word, there in extras.items() if there), "")
        if kind != "LORA" or reason:
            found.append(problem("E-METHOD-30", name, folder=folder, type=reason or kind))
    return found


def _holds_whole_matrices(folder: Path) -> bool:
    """Whether a LoRA's file holds more than LoRA: the embedding of a model that was made larger,
    for instance."""
    if vet.weight_problems(folder, "adapter"):
        return False  # said when it is opened
    files, _ = headers.weight_files(folder, "adapter")
    return any(
        ".lora_" not in name and not name.endswith(".score.weight")
        for path in files
        for name in headers.read_safetensors_header(path)
    )


def compose(model: Model, folders: dict[str, Path]) -> Composed:
    """The adapters of `folders` on the causal model `model`; the first is in use. Raises ModelError
    for a folder that does not fit, CompatError for learnt prompts, of which only one can stand
    before an input."""
    from tunewright.models.adapters import add_adapter, load_adapter

    (first, folder), *others = folders.items()
    wrapped = load_adapter(model, folder, name=first)
    for name, other in others:
        add_adapter(wrapped, other, name)
    if any(config.is_prompt_learning for config in wrapped.peft_config.values()) and others:
        raise CompatError.of("E-METHOD-30", "", folder=folder, type="prompt")
    composed = Composed(wrapped, list(folders))
    composed.use(first)
    return composed
