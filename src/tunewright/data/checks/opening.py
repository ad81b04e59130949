"""What a check needs of a model: its tokenizer and template and how long a row may be. Neither
torch nor, for most models, Transformers is loaded."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError
from tunewright.sources.find import resolve
from tunewright.text.renderer import Renderer
from tunewright.text.thinking import Thinking
from tunewright.text.tokenizer import load_light

RUN = "run.yaml"
ADAPTERS = ("adapter_config.json", "tunewright_method.json")


@dataclass
class Opened:
    """A renderer, and the model's context in tokens where it is stated."""

    renderer: Renderer
    context: int | None
    system: str | None = None
    """The system prompt of a run, which its rows were trained with."""
    thinking: str = "auto"
    """What a run did with thoughts."""


@dataclass
class _Named:
    """What a name means: the folder that states context and stop tokens, the folder of tokenizer
    and template, a run's system prompt and thinking."""

    base: Path
    tokenizer: Path
    system: str | None = None
    thinking: str = "auto"
    arguments: dict[str, Any] = field(default_factory=dict)
    """A run's `data.template_arguments`."""


def open_tokenizer(model: str | None, tokenizer: str | None) -> Opened | None:
    """The renderer of a model (fetched without weights), a run, an adapter or a folder; None where
    neither is given. Raises DataError for both, ModelError."""
    if model is not None and tokenizer is not None:
        raise DataError.of("E-DATA-55")
    if model is None and tokenizer is None:
        return None
    from tunewright.text.chat_kind import stop_ids

    folder = Path(tokenizer).expanduser() if tokenizer is not None else None
    named = _named(str(model)) if folder is None else _Named(folder, folder)
    loaded, _ = load_light(named.tokenizer)
    return Opened(
        Renderer(loaded, stop_ids(loaded, named.base), Thinking(arguments=named.arguments)),
        _context(named.base),
        named.system,
        named.thinking,
    )


def _named(model: str) -> _Named:
    """A run folder or a saved adapter stands for its base with its own tokenizer; anything else is
    a model."""
    place = Path(model).expanduser()
    adapter, system, thinking = place, None, "auto"
    arguments: dict[str, Any] = {}
    if (place / RUN).is_file():
        model, system, thinking, arguments = _of_run(place)
        adapter = place / "adapter"
        if (
            place / "model" / "config.json"
        ).is_file():  # every weight was trained: the run holds a whole model
            return _Named(place / "model", place / "model", system, thinking, arguments)
    else:
        described = next((place / name for name in ADAPTERS if (place / name).is_file()), None)
        if described is None or (place / "config.json").is_file():
            folder = _resolved(model)
            return _Named(folder, folder)
        model = str(_json_of(described).get("base_model_name_or_path") or "")
    base = _resolved(model)
    own = adapter if (adapter / "tokenizer_config.json").is_file() else base
    return _Named(base, own, system, thinking, arguments)


def _resolved(model: str) -> Path:
    return resolve(model, lambda line: print(line, file=sys.stderr), weights=False).folder


def _of_run(folder: Path) -> tuple[str, str | None, str, dict[str, Any]]:
    """(model, system prompt, what was done with thoughts, template arguments) of a run folder.
    Raises DataError where its run.yaml names no model."""
    import yaml

    try:
        said: Any = yaml.safe_load((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        said = None
    if not isinstance(said, dict) or not isinstance(said.get("model"), str):
        raise DataError.of("E-DATA-81", str(folder / RUN), folder=folder)
    data = said.get("data")
    settings = data if isinstance(data, dict) else {}
    system, thinking = settings.get("system"), settings.get("thinking")
    arguments = settings.get("template_arguments")
    return (
        said["model"],
        system if isinstance(system, str) else None,
        thinking if isinstance(thinking, str) else "auto",
        arguments if isinstance(arguments, dict) else {},
    )


def _json_of(path: Path) -> dict[str, Any]:
    try:
        found: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def with_system(config: DataConfig, opened: Opened | None) -> DataConfig:
    """`config` with the run's system prompt, and what it did with thoughts, where it names none of
    its own."""
    if opened is None:
        return config
    found = {"system": opened.system} if opened.system is not None and config.system is None else {}
    return config.model_copy(
        update=found | ({"thinking": opened.thinking} if config.thinking == "auto" else {})
    )


def _context(folder: Path) -> int | None:
    """`max_position_embeddings` of the text model, or None."""
    config = _json_of(folder / "config.json")
    for place in (config, config.get("text_config")):
        found = place.get("max_position_embeddings") if isinstance(place, dict) else None
        if isinstance(found, int) and found > 1:
            return found
    return None
