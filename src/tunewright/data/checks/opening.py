"""What a check needs of a model: its tokenizer and template and how long a row may be. Neither torch nor, for most models, Transformers is loaded."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import DataError, problem

if TYPE_CHECKING:
    from tunewright.models.rendering import Renderer


@dataclass
class Opened:
    """A renderer, and the model's context in tokens where it is stated."""

    renderer: Renderer
    context: int | None


def open_tokenizer(model: str | None, tokenizer: str | None) -> Opened | None:
    """The renderer of a model (fetched without weights) or of a folder; None where neither is given. Raises DataError for both, ModelError."""
    if model is not None and tokenizer is not None:
        raise DataError(problem("E-DATA-55"))
    if model is None and tokenizer is None:
        return None
    from tunewright.models.light import load_light, stop_ids_of_folder
    from tunewright.models.rendering import Renderer
    from tunewright.models.sources import resolve

    folder = (
        Path(tokenizer).expanduser()
        if tokenizer is not None
        else resolve(str(model), lambda line: print(line, file=sys.stderr), weights=False).folder
    )
    loaded, _ = load_light(folder)
    return Opened(Renderer(loaded, stop_ids_of_folder(folder)), _context(folder))


def _context(folder: Path) -> int | None:
    """`max_position_embeddings` of the text model, or None."""
    try:
        config: Any = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for place in (config, config.get("text_config")) if isinstance(config, dict) else ():
        found = place.get("max_position_embeddings") if isinstance(place, dict) else None
        if isinstance(found, int) and found > 1:
            return found
    return None
