"""A model on this machine: where its files are, and what pins them."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, raise_all
from tunewright.core.files import sha256_of
from tunewright.core.publish import cache_root
from tunewright.sources import gguf, headers, vet

CONFIG_PATTERNS = [
    "*.json",
    "*.jinja",
    "*.txt",
    "tokenizer.model",
    "tokenizer.model.v*",
    "spiece.model",
    "sentencepiece.bpe.model",
    "*.tiktoken",
    "additional_chat_templates/*.jinja",
]


@dataclass(frozen=True)
class Source:
    """A model on this machine. `identity` pins what it is (commit, or SHA-256 of the file it came
    from) for the run's record."""

    spec: str
    kind: str
    """folder, gguf, pypi, hub or modelscope."""
    folder: Path
    note: str
    """One sentence for people: where the files are."""
    identity: str


Report = Callable[[str], None]


def models_folder() -> Path:
    """Where converted models are kept."""
    return cache_root() / "models"


def slug(name: str) -> str:
    """A name as a part of a folder's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:60] or "model"


def convert(spec: str, file: Path, folder: Path, report: Report) -> dict[str, Any]:
    """Write the model of a GGUF file into `folder`; what its marker keeps of it. Raises
    ModelError."""
    digest = sha256_of(file)
    gguf.convert(file, folder, report)
    raise_all(vet.problems_of(folder), ModelError)
    return {"spec": spec, "name": file.stem, "sha256": digest, "converter": gguf.CONVERTER}


def identity_of(folder: Path) -> str:
    """A SHA-256 over the configuration and tokenizer files and the headers and sizes of the
    weights. Reading all weights would take minutes."""
    digest = hashlib.sha256()
    for path in sorted(
        p
        for p in folder.iterdir()
        if p.is_file() and p.suffix in (".json", ".jinja", ".txt", ".model", ".safetensors")
    ):
        digest.update(f"{path.name}|{path.stat().st_size}|".encode())
        with open(path, "rb") as handle:
            if path.suffix == ".safetensors":
                digest.update(
                    handle.read(
                        min(int.from_bytes(handle.read(8), "little"), headers.MAX_HEADER_BYTES)
                    )
                )
            else:
                while piece := handle.read(1 << 20):
                    digest.update(piece)
    return f"folder:sha256:{digest.hexdigest()}"
