"""The columns of rows as their files have them, for reward functions that look at more than
question and answer: a pattern, a schema, a list of accepted answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from tunewright.core.config import DataConfig
from tunewright.core.types import Origin
from tunewright.data.catalogue import names as catalogue


def columns_beside(
    config: DataConfig, wanted: Iterable[Origin], *, to_train: bool = False
) -> dict[Origin, dict[str, Any]]:
    """The columns of the rows of `wanted` that can be written down as JSON; none for a row that is
    no mapping. The files of `config.train` are read again. Raises what reading them raises."""
    left, found = set(wanted), dict[Origin, dict[str, Any]]()
    listed = config.train if isinstance(config.train, list) else [config.train]
    for entry in listed:
        known = {"file": entry} if isinstance(entry, str) else entry
        asked = {
            "file": known["file"],
            "format": known.get("format", config.format),
            "columns": known.get("columns", config.columns),
        }
        for one in catalogue.resolve(asked, config.dir, to_train=to_train):
            for path in one.files:
                if not left:
                    return found
                for raw in one.stream(path).rows:
                    if raw.origin in left:
                        left.discard(raw.origin)
                        found[raw.origin] = _kept(raw.value)
    return found


def _kept(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {}
    return {str(key): one for key, one in value.items() if _is_plain(one)}


def _is_plain(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8")
    except (TypeError, ValueError, RecursionError):
        return False
    return True
