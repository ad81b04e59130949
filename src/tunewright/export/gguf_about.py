"""What a GGUF file says of itself: a name, the base it came from, the licence. Never a path of this
machine: what a hub or a package published is named, anything else by its family and size."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tunewright.core.publish import MARKER
from tunewright.export.gguf_words import Words
from tunewright.export.tuned import Tuned
from tunewright.models import load
from tunewright.sources import find

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
PHI3 = re.compile(r"phi-?3", re.IGNORECASE)
"""llama.cpp gives special tokens of a model of this name a rule of their own, and expects some."""
PHI3_TOKENS = {"</s>", "<unk>", "<s>", "<|endoftext|>"}
LICENCE_FILES = ("LICENSE", "LICENSE.txt", "LICENSE.md", "LICENCE", "USE_POLICY.md")


@dataclass
class About:
    """Keys of the section `general`, and the text of the licence."""

    general: dict[str, Any] = field(default_factory=dict)
    licence: str | None = None
    """Its name."""
    licence_text: str | None = None


def about(tuned: Tuned, config: Any, words: Words, name: str | None) -> About:
    """What the file of `tuned` says of itself. `name` is the person's own."""
    known = published(tuned)
    plain = known.rpartition("/")[2] if known else _by_size(tuned, config)
    title = name or (plain if tuned.is_plain else f"{plain} tuned")
    found = About(licence=licence_of(tuned.base), licence_text=_licence_text(tuned.base))
    found.general["name"] = _fitting(title, words)
    if found.licence:
        found.general["license"] = found.licence
    if not tuned.is_plain:
        found.general |= {"base_model.count": 1, "base_model.0.name": plain}
        if known and HUB_ID.fullmatch(known):
            owner = known.partition("/")[0]
            found.general |= {
                "base_model.0.organization": owner,
                "base_model.0.repo_url": f"https://huggingface.co/{known}",
            }
    return found


def rows_of(tuned: Tuned) -> int:
    """Rows that the tokenizer asks for."""
    return len(tuned.tokenizer)


def published(tuned: Tuned) -> str | None:
    """The name under which the base was published: on a hub, or in a package."""
    spec = tuned.source.spec
    if HUB_ID.fullmatch(spec) and not find.looks_like_path(spec) and not Path(spec).exists():
        return spec
    with contextlib.suppress(OSError, ValueError, AttributeError):
        marker = json.loads((tuned.base / MARKER).read_text(encoding="utf-8"))
        named = str(marker.get("name") or "")
        return named if named and not find.looks_like_path(named) else None
    return None


def _by_size(tuned: Tuned, config: Any) -> str:
    """Family and size, where nothing else may be said."""
    count = load.parameter_count(tuned.base)
    size = f"{count / 1e9:.1f}B" if count >= 1e9 else f"{max(1, round(count / 1e6))}M"
    return f"{config.model_type}-{size}"


def _fitting(title: str, words: Words) -> str:
    """The name with "Phi-3" in it where llama.cpp must follow that family's rule, and without it
    where it must not."""
    tokens = set(words.keys["ggml.tokens"])
    if words.rstrips and tokens >= PHI3_TOKENS:
        return title if PHI3.search(title) else f"Phi-3 {title}"
    return PHI3.sub("Phi 3", title)


def licence_of(folder: Path) -> str | None:
    """The licence that the base's model card states."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        text = (folder / "README.md").read_text(encoding="utf-8")
        head = text.split("---")[1] if text.startswith("---") else ""
        stated = dict(re.findall(r"^(license|license_name):\s*['\"]?([\w.+-]+)", head, re.M))
        return stated.get("license_name") or stated.get("license")
    return None


def _licence_text(folder: Path) -> str | None:
    """The base's licence itself."""
    for name in LICENCE_FILES:
        with contextlib.suppress(OSError, UnicodeDecodeError):
            return (folder / name).read_text(encoding="utf-8")
    return None
