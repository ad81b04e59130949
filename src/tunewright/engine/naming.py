"""What a name means, before any weight is read: the model, the adapter on it, the run that made it,
and how it is asked.

Nothing here computes, so nothing here loads torch: a dry run needs no more. `opening.py`, the door
to models that compute, hands these names on.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, UsageError, problem, raise_all
from tunewright.core.telling import Quiet, Tell
from tunewright.core.words import say
from tunewright.methods.saved import OWN, is_saved
from tunewright.models import load, rotary
from tunewright.record import folder as run_folder
from tunewright.sources import find as sources
from tunewright.sources import vet
from tunewright.text.chat_kind import stop_ids
from tunewright.text.renderer import Renderer
from tunewright.text.thinking import Thinking
from tunewright.text.tokenizer import load_tokenizer


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
            dict(self.settings.get("data.template_arguments") or {}),
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
            # Every weight was trained: the run holds a whole model, whose configuration says how
            # its positions are scaled.
            adapter, spec = None, str(folder / "model")
            settings.pop("base.rotary", None)
        elif not is_saved(adapter) and not base:
            raise UsageError(
                problem(
                    "E-RUN-05",
                    str(folder),
                    folder=folder,
                    status=run_folder.read_summary(folder).get("status")
                    or say("run.status_unknown"),
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
        settings = _held(folder)
    return spec, adapter, run, settings


def _held(adapter: Path) -> dict[str, Any]:
    """How the base of an adapter was held, as settings of a run; what its folder says."""
    found = rotary.read(adapter)
    return {} if found is None else {"base.rotary": found.model_dump(mode="json")}


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
    from tunewright.core.config import BaseConfig

    held = found.settings.get("base.rotary")
    return load.load_config(found.source.folder, BaseConfig(rotary=held) if held else None)
