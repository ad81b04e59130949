"""Sets of the Hugging Face Hub and of ModelScope: fetched by their own libraries, then read from the Arrow files these leave on this machine.

`hf:owner/name`, `modelscope:owner/name`, or plain `owner/name` where no such path exists (the Hub). A configuration and a split may follow:
`hf:owner/name/config#test`; the split is `train` otherwise. Code of a set is never run.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from tunewright.core.errors import DataError, problem

PREFIXES = {"hf:": "datasets", "modelscope:": "modelscope"}
INSTALL = "pip install 'tunewright[hub]'"
_id = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?(?:#[\w.-]+)?")


def is_named(place: str) -> bool:
    """Whether a place says itself that it is a set of a hub."""
    return place.startswith(tuple(PREFIXES))


def could_be(place: str) -> bool:
    """Whether a place that is no path here has the form of a set of the Hub, and not of a file that is missing."""
    from tunewright.data.files.kinds import READERS, ending_of

    return bool(_id.fullmatch(place)) and ending_of(Path(place.partition("#")[0]))[0] not in READERS


def fetch(place: str) -> list[Path]:
    """The files of a set, fetched if they are not here yet. Raises DataError where the library or the set is missing."""
    prefix = next((p for p in PREFIXES if place.startswith(p)), "hf:")
    bare = place.removeprefix(prefix)
    if not _id.fullmatch(bare):
        raise DataError(problem("E-DATA-39", place, name=place, cause=f"{prefix}owner/name[/config][#split]"))
    library = PREFIXES[prefix]
    try:
        module = importlib.import_module(library)
        if library == "modelscope":
            module = importlib.import_module("modelscope.msdatasets")
    except ImportError as error:
        raise DataError(problem("E-DATA-38", place, name=bare, library=library, install=INSTALL)) from error
    path, _, split = bare.partition("#")
    owner, name, *rest = path.split("/")
    config = rest[0] if rest else None
    try:
        found = _load(module, library, f"{owner}/{name}", config, split or "train")
        return _arrow_files(found)
    except Exception as error:  # a library's own errors, of many kinds: no network, no such set, a set that needs code
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError(problem("E-DATA-39", place, name=bare, cause=cause)) from error


def _load(module: Any, library: str, name: str, config: str | None, split: str) -> Any:
    if library == "datasets":
        return module.load_dataset(name, config, split=split)
    more = {"subset_name": config} if config else {}
    found = module.MsDataset.load(name, split=split, **more)
    return found.to_hf_dataset() if hasattr(found, "to_hf_dataset") else found


def _arrow_files(found: Any) -> list[Path]:
    """The Arrow files of a loaded set, in order."""
    files = [Path(entry["filename"]) for entry in found.cache_files]
    if not files:
        raise ValueError("the library holds this set in memory only")
    return files
