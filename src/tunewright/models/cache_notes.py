"""What a method notes on a model's own cache, row by row, so that whoever reorders the rows of the
cache reorders the notes too."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import Cache


def noted(cache: Cache | None) -> dict[str, Tensor]:
    """Name -> tensor whose first dimension are the rows of `cache`; empty without a cache."""
    found: dict[str, Tensor] = {} if cache is None else vars(cache).setdefault("tunewright", {})
    return found


def reorder(cache: Cache, rows: Tensor) -> None:
    """Go on with these rows (indices; each may come several times), notes and all."""
    cache.reorder_cache(rows)  # type: ignore[arg-type]
    notes = noted(cache)
    for name, tensor in notes.items():
        notes[name] = tensor.index_select(0, rows.to(tensor.device))
