"""The models of a server: bases that are in memory once, and what was trained on each.

Every model is a module tree of its own over the weights of its base, with its method on it: any
kind of method is served that way, a dozen of them cost little more than the base, and none can
change what another answers. What would write into the base's own weights gets weights of its own.
"""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunewright.core.config import BaseConfig
from tunewright.core.errors import UsageError, problem
from tunewright.core.telling import Tell
from tunewright.core.words import say
from tunewright.engine import opening
from tunewright.engine.decoding.answers import AnsweringModel, answering
from tunewright.engine.decoding.writer import worth_packing
from tunewright.engine.naming import Target, find
from tunewright.engine.oracles.reward_model import sharing_weights
from tunewright.engine.placement import World
from tunewright.methods import lora_starts
from tunewright.models import load
from tunewright.models.kernels.packed import Packs
from tunewright.models.scalar_heads import has_score
from tunewright.models.vocabulary import whole_matrices


@dataclass
class _Base:
    """A base in memory. Nothing is ever put on `pristine`: models are trees over its weights."""

    pristine: Any
    packs: Packs | None
    used: int = 0
    """Models that stand on it."""


@dataclass(eq=False)
class Served:
    """One model that requests can name."""

    name: str
    opened: opening.Opened
    model: AnsweringModel
    path: str
    parent: str | None
    """What it was trained on; None for a base."""
    base: str | None = None
    """The base that it shares with others, as the pool knows it."""
    created: int = field(default_factory=lambda: int(time.time()))
    words: threading.Lock = field(default_factory=threading.Lock, repr=False)
    """Held by who uses the tokenizer: a fast one must not be asked by two threads at once."""
    grammars: Any = None
    """The tokenizer as the grammar library wants it, made at the first use."""

    @property
    def system(self) -> str | None:
        """The system prompt of the run, for conversations that bring none."""
        return self.opened.target.system

    @property
    def context(self) -> int | None:
        """Tokens of a question and its answer together; None where the model names no limit."""
        return self.model.room(0)


class Pool:
    """Models by name. Opening and dropping is done by one caller at a time; looking up by any."""

    def __init__(
        self,
        tell: Tell,
        *,
        dtype: str | None = None,
        device: str = "auto",
        threads: int | Literal["auto"] = "auto",
        think: bool | None = None,
    ) -> None:
        self.tell, self.dtype, self.device, self.threads = tell, dtype, device, threads
        self.think = think
        self.models: dict[str, Served] = {}
        self._bases: dict[str, _Base] = {}
        self._changing = threading.Lock()

    def open(self, target: str, name: str | None = None) -> Served:
        """Load what `target` names and serve it as `name`, by default the name of its folder.

        Raises UsageError for a name that is taken and a model that gives numbers, and what
        `engine.opening` raises.
        """
        with self._changing:
            found = find(target, self.tell, think=self.think)
            name = name or default_name(found)
            if name in self.models:
                raise UsageError(problem("E-SERVE-01", target, name=name))
            served = self._served(found, name)
            self.models[name] = served
            return served

    def drop(self, name: str) -> Served | None:
        """Serve `name` no more; None where there is no such model. Its base goes with the last
        model on it."""
        with self._changing:
            served = self.models.pop(name, None)
            base = self._bases.get(served.base or "") if served is not None else None
            if served is not None and base is not None:
                base.used -= 1
                if not base.used:
                    del self._bases[served.base or ""]
            return served

    def _served(self, found: Target, name: str) -> Served:
        world = opening.world_of(found, self.dtype, self.device, self.threads)
        settings, key = opening.base_of(found.settings), _key(found, world)
        there = self._bases.get(key)
        base = there or _load(found, world, settings)
        shares = settings.bits is None and (
            found.adapter is None or _leaves_base(found.adapter, base.pristine)
        )
        causal = None
        if shares:
            causal = sharing_weights(base.pristine)
        elif there is None:
            causal = base.pristine  # nobody else stands on it
        else:
            self.tell.line(say("serve.own_weights", name=name))
        loaded = opening.from_files(
            found.source.folder, found.adapter, world, settings, causal=causal
        )
        if has_score(loaded.causal):
            raise UsageError(problem("E-OBJ-37", found.name, target=found.name))
        opened = opening.Opened(
            **vars(loaded), renderer=found.renderer(), target=found, world=world
        )
        packs = base.packs if shares else None
        model = answering(loaded.causal, loaded.attached, opened.renderer, packs=packs)
        if shares:
            base.used += 1
            self._bases[key] = base
        parent = Path(found.source.folder).name if found.adapter is not None else None
        return Served(name, opened, model, found.name, parent, key if shares else None)


def _load(found: Target, world: World, settings: BaseConfig) -> _Base:
    pristine = load.load_model(
        found.source.folder, dtype=world.torch_dtype(), device=world.device, base=settings
    )
    return _Base(pristine, Packs() if worth_packing(pristine) else None)


def default_name(found: Target) -> str:
    """What a model is called where nobody says it: the last part of what it was named by."""
    text = found.name.rstrip("/\\").replace("\\", "/")
    last = text.rpartition("/")[2] or "model"
    # A run is asked by its own name, not by that of the folder in it.
    if last in ("adapter", "model", ".", "..") and Path(found.name).exists():
        parent = Path(found.name).resolve()
        last = parent.parent.name if last in ("adapter", "model") else parent.name
    return last


def _key(found: Target, world: World) -> str:
    """Equal for targets that stand on the same weights, held in the same way."""
    settings = opening.base_of(found.settings).model_dump(mode="json")
    return json.dumps(
        [str(found.source.folder.resolve()), world.dtype, str(world.device), settings],
        sort_keys=True,
    )


def _leaves_base(adapter: Path, causal: Any) -> bool:
    """Whether the method of a folder writes nothing into the weights that it stands on."""
    described = adapter / "adapter_config.json"
    if not described.is_file() or lora_starts.is_bound(adapter):
        return False
    config = json.loads(described.read_text(encoding="utf-8"))
    taken = ("pissa", "olora", "corda", "loftq", "lora_ga")
    return (
        config.get("bias", "none") in ("none", None)
        and not str(config.get("init_lora_weights", "")).startswith(taken)
        and not whole_matrices(causal, adapter)
    )
