"""Open what a person names: a run folder, a bare PEFT folder, a merged or untouched model folder, a
GGUF file, a hub id, all behind one door.

Chat, evaluation and merging start here, so a model is always rendered with the template and the
stop tokens it was taught with. `find` says what a name means and reads no weights; `load_found`
reads them; `open_target` does both.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from tunewright.core.config import BaseConfig, EngineConfig
from tunewright.core.errors import ConfigError, ModelError, UsageError, problem, raise_all
from tunewright.core.telling import Quiet, Tell
from tunewright.core.types import Attached
from tunewright.core.words import say
from tunewright.engine import placement
from tunewright.methods.saved import OWN, is_saved, put_on
from tunewright.models import load
from tunewright.models.generate import AnsweringModel, answering
from tunewright.models.kernels.fused import accelerate
from tunewright.models.quantised import keep_base
from tunewright.record import folder as run_folder
from tunewright.sources import find as sources
from tunewright.sources import vet
from tunewright.text.chat_kind import stop_ids
from tunewright.text.renderer import Renderer
from tunewright.text.thinking import Thinking
from tunewright.text.tokenizer import load_tokenizer

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Target:
    """What a name means. `settings` are the run's values by dotted key, empty for anything that is
    not a run."""

    name: str
    source: sources.Source
    adapter: Path | None
    run: Path | None
    settings: dict[str, Any]
    think: bool | None = None
    """How it is asked, if told: with thinking (`--think`) or without. None: as the run was."""

    @property
    def thinking(self) -> Thinking:
        """What is done with thoughts: as in the run, unless told otherwise."""
        known = (
            run_folder.read_data_report(self.run).get("thinking") if self.run is not None else None
        )
        known = known if isinstance(known, dict) else {}
        return Thinking(
            str(self.settings.get("data.thinking") or "auto"),
            self.think,
            known.get("by_rows", True),
            known.get("asked"),
        )

    @property
    def tokenizer_folder(self) -> Path:
        """The folder of the tokenizer that the model was taught with."""
        return tokenizer_folder(self.adapter, self.source.folder)

    @property
    def stated(self) -> tuple[Path, ...]:
        """The folders that may name stop tokens."""
        return (self.source.folder,) if self.adapter is None else (self.source.folder, self.adapter)

    @property
    def system(self) -> str | None:
        """The run's system prompt, under which it was taught; None where it has none."""
        found: str | None = self.settings.get("data.system")
        return found

    def renderer(self) -> Renderer:
        """How what is opened is asked: its own tokenizer and template, and every stop token that
        its folders name."""
        return renderer_of(
            load_tokenizer(self.tokenizer_folder), *self.stated, thinking=self.thinking
        )

    def base_renderer(self) -> Renderer:
        """How the base is asked: as if nothing had been trained."""
        return renderer_of(
            load_tokenizer(self.source.folder), self.source.folder, thinking=self.thinking
        )


@dataclass
class Opened:
    """A loaded model with its tokenizer and template. `causal` is the causal model, with
    `attached`, the trained method, on it if there is any; whoever wants answers asks `answering`.
    `vocabulary` is the number of tokens that the base knows."""

    causal: Any
    attached: Attached | None
    renderer: Renderer
    target: Target
    world: placement.World
    vocabulary: int

    @property
    def tokenizer(self) -> Any:
        """The tokenizer that the model was taught with."""
        return self.renderer.tokenizer

    @property
    def model(self) -> Any:
        """What computes logits: the method on its base, or the model itself."""
        return self.causal if self.attached is None else self.attached.model

    @property
    def answering(self) -> AnsweringModel:
        """What answers: the method on its base, or the model itself."""
        return answering(self.causal, self.attached, self.renderer)

    @contextlib.contextmanager
    def untouched(self) -> Iterator[AnsweringModel]:
        """Inside, the model answers as its base does. Yields the base, to be asked with its own
        tokenizer, template and stops, knowing no added token: the same as when the base is opened
        alone. Raises UsageError where the method cannot be switched off."""
        if self.attached is None:
            if not self.switches:
                raise UsageError(
                    problem("E-RUN-15", self.target.name, reason=say("chat.whole_model"))
                )
            yield self.answering
        elif self.attached.disabled is None:
            raise UsageError(
                problem("E-RUN-15", self.target.name, reason=self.attached.disabled_reason)
            )
        else:
            with self.attached.disabled():
                yield answering(
                    self.causal, self.attached, self.base_renderer, vocabulary=self.vocabulary
                )

    @property
    def switches(self) -> bool:
        """Whether `untouched` can answer: what was trained can be switched off, or nothing was. Of
        a whole model that was trained the base is another."""
        if self.attached is not None:
            return self.attached.disabled is not None
        return (
            self.target.run is None
            or self.target.source.folder.resolve() != (self.target.run / "model").resolve()
        )

    @functools.cached_property
    def base_renderer(self) -> Renderer:
        """How the base is asked."""
        return self.target.base_renderer()


def tokenizer_folder(adapter: Path | None, base: Path) -> Path:
    """The adapter's own tokenizer where it brings one, else the base's."""
    return (
        adapter if adapter is not None and (adapter / "tokenizer_config.json").is_file() else base
    )


def find(target: str, tell: Tell, *, base: bool = False, think: bool | None = None) -> Target:
    """What `target` names, its files on this machine. `base` leaves the adapter out, `think` says
    how it is asked.

    Raises UsageError for a run without trained weights and ModelError for what cannot be opened.
    """
    spec, adapter, run, settings = _named(target, tell, base)
    return Target(
        target,
        sources.resolve(spec, report=tell.line),
        None if base else adapter,
        run,
        settings,
        think,
    )


def config_folder(target: str) -> Path:
    """The folder with the `config.json` of what `target` names; weights are not looked for. Raises
    as `find` does."""
    return sources.resolve(
        _named(target, Quiet(), False)[0], report=Quiet().line, weights=False
    ).folder


def _named(
    target: str, tell: Tell, base: bool
) -> tuple[str, Path | None, Path | None, dict[str, Any]]:
    """(the model, the adapter on it, the run, the run's settings) that `target` stands for."""
    folder = Path(target)
    adapter: Path | None = None
    run: Path | None = None
    settings: dict[str, Any] = {}
    spec = target
    if (folder / "run.yaml").is_file():
        run, settings = folder, run_folder.read_run(folder)
        adapter, spec = folder / "adapter", str(settings["model"])
        if (folder / "model" / "config.json").is_file() and not base:
            adapter, spec = (
                None,
                str(folder / "model"),
            )  # every weight was trained: the run holds a whole model
        elif not is_saved(adapter) and not base:
            raise UsageError(
                problem(
                    "E-RUN-05",
                    str(folder),
                    folder=folder,
                    status=run_folder.read_summary(folder).get("status", "-"),
                )
            )
    elif is_saved(folder):
        raise_all(vet.problems_of(folder, kind="adapter"), ModelError)
        adapter = folder
        described = folder / "adapter_config.json"
        described = described if described.is_file() else folder / OWN
        spec = (
            json.loads(described.read_text(encoding="utf-8")).get("base_model_name_or_path") or ""
        )
        tell.line(say("chat.base_of_adapter", base=spec))
    return spec, adapter, run, settings


def renderer_of(tokenizer: Any, *stated: Any, thinking: Thinking | None = None) -> Renderer:
    """The renderer that training used for this tokenizer and the stop tokens that `stated` name
    (`stop_ids`)."""
    return Renderer(tokenizer, stop_ids(tokenizer, *stated), thinking)


def require_words(folder: Path, name: str) -> None:
    """Raise ModelError (E-METHOD-72) where the model of `folder` is a judge: it gives numbers and
    has no head that predicts words."""
    if load.is_scorer(folder):
        raise ModelError(problem("E-METHOD-72", name))


def read_config(found: Target) -> Any:
    """The model's configuration, judged when it was found; no weights are read."""
    return load.load_config(found.source.folder)


def load_found(
    found: Target,
    *,
    dtype: str | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
) -> Opened:
    """Read the weights. `dtype` None: the run's own dtype, else what suits the device. Raises
    ConfigError for values that do not fit."""
    wanted = dtype or str(found.settings.get("engine.dtype", "auto"))
    if wanted not in DTYPES:
        raise ConfigError(
            problem(
                "E-CONFIG-08",
                "--dtype",
                field="engine.dtype",
                value=wanted,
                reason=", ".join(DTYPES),
            )
        )
    world = placement.start(
        EngineConfig.model_validate({"dtype": wanted, "device": device, "threads": threads})
    )
    causal: Any = load.load_model(
        found.source.folder, dtype=world.dtype, device=world.device, base=base_of(found.settings)
    )
    vocabulary = int(causal.get_input_embeddings().weight.shape[0])
    accelerate(causal)
    attached = None if found.adapter is None else put_on(causal, found.adapter)
    if attached is not None:
        keep_base(attached, causal)
    return Opened(causal, attached, found.renderer(), found, world, vocabulary)


def base_of(settings: dict[str, Any]) -> BaseConfig:
    """How the base of a run was held while it was trained; not quantised for anything that is not a
    run."""
    names = ("bits", "type", "double", "block")
    return BaseConfig(
        **{
            name: settings[f"base.{name}"]
            for name in names
            if settings.get(f"base.{name}") is not None
        }
    )


def open_target(
    target: str,
    tell: Tell,
    *,
    base: bool = False,
    dtype: str | None = None,
    device: str = "auto",
    threads: int | Literal["auto"] = "auto",
    think: bool | None = None,
) -> Opened:
    """`find` and `load_found` in one: what `target` names, ready to answer."""
    return load_found(
        find(target, tell, base=base, think=think), dtype=dtype, device=device, threads=threads
    )


def use_layout(causal: Any, layout: str) -> None:
    """Let `causal` compute in `layout`: our attention for the tree, a stock one for padded rows."""
    from tunewright.models.kernels import tree_attention

    tree_attention.register()
    stock = "sdpa" if getattr(causal, "_supports_sdpa", True) else "eager"
    causal.set_attn_implementation(tree_attention.NAME if layout == "tree" else stock)


@contextlib.contextmanager
def computing_in(causal: Any, layout: str, inside: Any = None) -> Iterator[Any]:
    """Inside, `causal` computes in `layout`; afterwards as before. Yields `inside`."""
    before = causal.config._attn_implementation
    use_layout(causal, layout)
    try:
        yield inside
    finally:
        causal.set_attn_implementation(before)
