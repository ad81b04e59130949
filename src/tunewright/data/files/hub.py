"""Sets of the Hugging Face Hub and of ModelScope: fetched by their own libraries, then read from
the Arrow files these leave on this machine.

`hf:owner/name`, `modelscope:owner/name`, or plain `owner/name` where no such path exists (the Hub).
A configuration and a split may follow: `hf:owner/name/config#test`; the split is `train` otherwise.
Code of a set is never run. Only whole splits are read: of a slice such as `train[:10]` the
libraries leave the files of the whole split and keep the slice in memory, so reading the files
would train on rows that nobody asked for.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

from tunewright.core.errors import DataError
from tunewright.data.files.source import READERS, ending_of

PREFIXES = {"hf:": "datasets", "modelscope:": "modelscope"}
INSTALL = "pip install 'tunewright[hub]'"
_id = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(?:/[\w.-]+)?(?:#[\w.+:%\[\]-]+)?")
_whole_split = re.compile(r"[\w.-]+")


def is_named(place: str) -> bool:
    """Whether a place says itself that it is a set of a hub."""
    return place.startswith(tuple(PREFIXES))


def could_be(place: str) -> bool:
    """Whether a place that is no path here has the form of a set of the Hub, and not of a file that
    is missing."""
    return bool(_id.fullmatch(place)) and ending_of(Path(place.partition("#")[0]))[0] not in READERS


def fetch(place: str) -> list[Path]:
    """The files of a set, fetched if they are not here yet. Raises DataError where the library or
    the set is missing."""
    prefix = next((p for p in PREFIXES if place.startswith(p)), "hf:")
    bare = place.removeprefix(prefix)
    if not _id.fullmatch(bare):
        raise DataError.of(
            "E-DATA-39", place, name=place, cause=f"{prefix}owner/name[/config][#split]"
        )
    library = PREFIXES[prefix]
    try:
        module = importlib.import_module(library)
        if library == "modelscope":
            module = importlib.import_module("modelscope.msdatasets")
    except ImportError as error:
        raise DataError.of(
            "E-DATA-38", place, name=bare, library=library, install=INSTALL
        ) from error
    path, _, split = bare.partition("#")
    if split and not _whole_split.fullmatch(split):
        raise DataError.of("E-DATA-80", place, name=bare, part=split)
    owner, name, *rest = path.split("/")
    config = rest[0] if rest else None
    try:
        found = _load(module, library, f"{owner}/{name}", config, split or "train")
        files = _arrow_files(found)
        given, stored = getattr(found, "num_rows", None), _rows_in(files)
    except Exception as error:
        # A library's own errors, of many kinds: no network, no such set, a set that needs code.
        cause = " ".join(str(error).split())[:300] or type(error).__name__
        raise DataError.of("E-DATA-39", place, name=bare, cause=cause) from error
    if given is not None and given != stored:
        part = f"{split or 'train'}: {given:,} / {stored:,}"
        raise DataError.of("E-DATA-80", place, name=bare, part=part)
    return files


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


def _rows_in(files: list[Path]) -> int:
    """Rows that stand in Arrow files, streams and random-access files alike; nothing is copied into
    memory."""
    import pyarrow as pa

    count = 0
    for file in files:
        with pa.memory_map(str(file)) as source:
            try:
                count += sum(batch.num_rows for batch in pa.ipc.open_stream(source))
            except pa.ArrowInvalid:
                opened = pa.ipc.open_file(source)
                count += sum(opened.get_batch(i).num_rows for i in range(opened.num_record_batches))
    return count
