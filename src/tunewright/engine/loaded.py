"""A model in memory with the method that is on it: the base as it is held, fused forms, the method,
its heads, the layout.

No other file puts a method on a model: `put_new` makes one from a section of a run file, and
`put_saved` and `from_files` put a saved one on. Who has a name instead of files starts at
`engine.opening`.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.config import BaseConfig, EngineConfig, Section
from tunewright.core.errors import ModelError, problem
from tunewright.core.registry import methods
from tunewright.core.runfile import kind_of
from tunewright.core.types import Attached
from tunewright.engine.layout import choose
from tunewright.engine.naming import Target
from tunewright.engine.placement import World
from tunewright.engine.policy import Policy
from tunewright.methods.saved import put_on
from tunewright.models import load
from tunewright.models.kernels import liger, tree_attention
from tunewright.models.kernels.fused import accelerate
from tunewright.models.quantised import keep_base
from tunewright.models.scalar_heads import has_score
from tunewright.sources.fingerprint import computed_by, fingerprint, is_kept_about


@dataclass
class Loaded:
    """A causal model in memory with the method that is on it, if there is any."""

    causal: Any
    attached: Attached | None
    vocabulary: int
    """Tokens that the base knows: a method may have added some."""
    kept_as: Callable[[], Any] = field(default=lambda: None, kw_only=True)
    """Gives everything that decides what it computes, as the key of what is kept about it; None
    where nothing is kept."""

    @property
    def model(self) -> Any:
        """What computes logits: the method on its base, or the model itself."""
        return self.causal if self.attached is None else self.attached.model

    def choose_layout(self, engine: EngineConfig, dtype: str) -> tuple[str, str]:
        """(layout, reason): what `engine.layout` asks for, or the tree where the model agrees with
        its own stock attention, else padded rows. `dtype` is what it computes in.

        Raises CompatError for a layout that cannot be right and for a head that nobody knows.
        """
        needs = "any" if self.attached is None else self.attached.needs.layout
        # What picks rows by a threshold picks others where half precision rounds in another order,
        # which says nothing about the layout: the base is compared.
        off = self.attached.disabled if self.attached is not None and needs == "padded" else None

        @contextlib.contextmanager
        def policy_in(layout: str) -> Iterator[Policy]:
            with off() if off else contextlib.nullcontext(), computing_in(self.causal, layout):
                yield Policy(self.model, self.causal, layout)

        return choose(engine, self.causal, needs, policy_in, dtype, self.kept_as())

    def policy(self, layout: str, **read: Any) -> Policy:
        """What passes go through; from now on the model computes in `layout`. `read`: what a pass
        gives besides log-probabilities (`Policy`)."""
        use_layout(self.causal, layout)
        return Policy(self.model, self.causal, layout, **read)


def from_files(
    folder: Path,
    adapter: Path | None,
    world: World,
    base: BaseConfig | None = None,
    *,
    causal: Any = None,
) -> Loaded:
    """The model of `folder` with the method saved in `adapter` on it, nothing of which trains.

    `base` says how it is held; `causal` is the model of `folder` where it is in memory already.
    Raises ModelError for what cannot be opened or does not fit.
    """
    if causal is None:
        causal = load.load_model(folder, dtype=world.torch_dtype(), device=world.device, base=base)
    known = int(causal.get_input_embeddings().weight.shape[0])
    put_fused_forms(causal)
    attached = None if adapter is None else put_saved(causal, adapter)
    kept_as = functools.partial(kept_key, folder, adapter, world, base)
    return Loaded(causal, attached, known, kept_as=kept_as)


def to_score(found: Target, layout: str, world: World, *, causal: Any = None) -> Policy:
    """Read the weights of `found`, which gives numbers: a policy whose passes have `score`.

    `causal` is its base where that is in memory already. Raises ModelError for a model without a
    score head.
    """
    loaded = from_files(
        found.source.folder, found.adapter, world, base_of(found.settings), causal=causal
    )
    if not has_score(loaded.causal):
        raise ModelError(problem("E-OBJ-34", found.name))
    if causal is None:
        loaded.model.requires_grad_(False)
    return loaded.policy(layout, heads=("score",))


def base_of(settings: dict[str, Any]) -> BaseConfig:
    """How the base of a run was held while it was trained; wide for anything that is not a run."""
    if not any(name.startswith("method") for name in settings):
        settings = {**settings, "base.dequantise": True}
    names = ("bits", "type", "double", "block", "dequantise", "rotary")
    return BaseConfig(
        **{
            name: settings[f"base.{name}"]
            for name in names
            if settings.get(f"base.{name}") is not None
        }
    )


def put_new(method: Section, causal: Any, card: Any, base_path: str) -> Attached:
    """The method that a section of a run file describes on `causal`, whose anatomy is `card`.
    `base_path` is what it names as its base when it is saved. Raises what the method raises."""
    entry = methods.get(kind_of(method))
    assert entry is not None
    attached: Attached = entry.function(method, causal, card, base_path)
    keep_base(attached, causal)
    return attached


def put_saved(causal: Any, folder: Path, **how: Any) -> Attached:
    """The method saved in `folder` on `causal`; arguments, and what is raised, as of
    `methods.saved.put_on`."""
    attached = put_on(causal, folder, **how)
    keep_base(attached, causal)
    return attached


def put_fused_forms(causal: Any) -> None:
    """Fused forms of norms and gated MLPs, where they give what the model's own modules give."""
    accelerate(causal)
    if next(causal.parameters()).device.type == "cuda":
        liger.accelerate(causal)


def kept_key(
    folder: Path, adapter: Path | None, world: World, base: BaseConfig | None, **more: Any
) -> dict[str, Any] | None:
    """The key of what is kept about a model: its files, how they are held, and what computes.
    `more`: what a run puts on it. None for the smallest models, of which nothing is kept."""
    if not is_kept_about(folder):
        return None
    return {
        "model": fingerprint(folder),
        "adapter": "" if adapter is None else fingerprint(adapter),
        "base": None if base is None else base.model_dump(mode="json"),
        "dtype": world.dtype,
        "device": world.device,
        "by": computed_by(),
        **more,
    }


def read_on(world: World) -> str:
    """Where the weights of a run are read: what no device has room for, before it is in shares, in
    the machine's memory."""
    return "cpu" if world.parallel == "fsdp" else world.device


def use_layout(causal: Any, layout: str) -> None:
    """Let `causal` compute in `layout`: our attention for the tree, a stock one for padded rows."""
    tree_attention.register()
    causal.set_attn_implementation(
        tree_attention.NAME if layout == "tree" else load.stock_attention(causal)
    )


@contextlib.contextmanager
def computing_in(causal: Any, layout: str) -> Iterator[None]:
    """Inside, `causal` computes in `layout`; afterwards as before."""
    before = causal.config._attn_implementation
    use_layout(causal, layout)
    try:
        yield
    finally:
        causal.set_attn_implementation(before)
