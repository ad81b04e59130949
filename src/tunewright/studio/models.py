"""The models that the page can choose: known ones, folders of the workspace, the hub's cache, and
what runs left."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tunewright.core.publish import cache_root
from tunewright.core.words import ASSETS
from tunewright.studio.places import Places, is_plain_path
from tunewright.studio.runs import Head, read_json

DEEPEST, MOST, MOST_FOLDERS = 3, 500, 5000
WEIGHTS = (".safetensors", ".bin", ".gguf")


def known() -> list[dict[str, Any]]:
    """Models by name that were tried, smallest first; assets/studio/models.json."""
    path = ASSETS / "studio" / "models.json"
    found: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return found


def models(places: Places, heads: list[Head]) -> list[dict[str, Any]]:
    """Every model that can be chosen; an id is what a run file says."""
    cached = _hub_cache()
    found = [
        {**model, "where": "known", "local": model["id"] in cached or _is_unpacked(model["id"])}
        for model in known()
    ]
    names = {model["id"] for model in found}
    found += [_of_folder(path, name, "cache") for name, path in cached.items() if name not in names]
    found += [_of_folder(path, str(path), "folder", places) for path in _folders(places)]
    for head in heads:
        run = places.root / head["path"]
        for part, where in (("adapter", "adapter"), ("model", "run")):
            if head["status"] == "finished" and (run / part).is_dir():
                entry = _of_folder(run / part, str(run / part), where, places)
                found.append({**entry, "label": head["name"], "run": head["id"]})
    return found[:MOST]


def _of_folder(
    path: Path, identity: str, where: str, places: Places | None = None
) -> dict[str, Any]:
    """One entry, from the small files of a folder or the header of a GGUF file."""
    config = read_json(path / "config.json") if path.is_dir() else {}
    weights = [path] if path.is_file() else [p for p in path.iterdir() if p.suffix in WEIGHTS]
    size = sum(p.stat().st_size for p in weights if p.exists())
    dtype = str(config.get("dtype") or config.get("torch_dtype"))
    width = {"float32": 4, "bfloat16": 2, "float16": 2}.get(dtype)
    label = identity if places is None else places.short(identity)
    return {
        "id": identity,
        "label": label,
        "where": where,
        "bytes": size,
        "parameters": size // width if width and where != "adapter" else None,
        "licence": None,
        "chat": _is_chat(path),
        "context": config.get("max_position_embeddings"),
        "local": True,
    }


def _is_chat(path: Path) -> bool | None:
    if path.is_file():
        return None
    if (path / "chat_template.jinja").is_file():
        return True
    return bool(read_json(path / "tokenizer_config.json").get("chat_template"))


def _folders(places: Places) -> Iterator[Path]:
    """Folders with config.json and weights, and GGUF files, in the roots; not those of runs."""
    for root in (places.root, *places.allowed):
        yield from _below(root, DEEPEST, [MOST_FOLDERS])


def _below(folder: Path, deepest: int, left: list[int]) -> Iterator[Path]:
    left[0] -= 1
    if left[0] < 0:
        return
    try:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError:
        return
    names = {entry.name for entry in found}
    if "run.yaml" in names:
        return
    if "config.json" in names and any(name.endswith(WEIGHTS) for name in names):
        yield folder
        return
    for entry in found:
        if entry.name.startswith(".") or entry.is_symlink() or not is_plain_path(entry.path):
            continue
        if entry.is_dir(follow_symlinks=False) and deepest > 1 and entry.name != "node_modules":
            yield from _below(Path(entry.path), deepest - 1, left)
        elif entry.name.endswith(".gguf"):
            yield Path(entry.path)


def _hub_cache() -> dict[str, Path]:
    """Hub id -> the newest snapshot of it in the hub's cache."""
    home = os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface"
    root = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub")
    found: dict[str, Path] = {}
    for place in sorted(root.glob("models--*")):
        snapshots = [p for p in (place / "snapshots").glob("*") if (p / "config.json").exists()]
        if snapshots:
            name = place.name.removeprefix("models--").replace("--", "/", 1)
            found[name] = max(snapshots, key=lambda p: p.stat().st_mtime)
    return found


def _is_unpacked(name: str) -> bool:
    """Whether a wheel's model was converted here before."""
    package = name.removeprefix("pypi:")
    return package != name and any((cache_root() / "models").glob(f"pypi-{package}-*"))
