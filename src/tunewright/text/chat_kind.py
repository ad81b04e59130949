"""Which tokens end an answer, and whether a model was trained to hold a dialogue."""

from __future__ import annotations

import contextlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.publish import MARKER
from tunewright.core.words import say
from tunewright.sources import headers

DOCUMENT_ENDS = {
    "<|endoftext|>",
    "<|end_of_text|>",
    "</s>",
    "<eos>",
    "<|end▁of▁sentence|>",
    "[EOS]",
    "<|endofdocument|>",
    "<|eos|>",
    "<EOS>",
}
"""Tokens that end a document in pretraining; a base model knows them too, so they prove nothing
about chat."""
CHAT_NAME = re.compile(
    r"(?:^|[-_./ ])(instruct|chat|it|sft|dpo|rlhf|assistant|zephyr)(?:$|[-_./ ])", re.IGNORECASE
)
MARK = "tunewrightanswer"


@dataclass(frozen=True)
class ModelKind:
    """Whether a model was trained to hold a dialogue, and the evidence in one sentence."""

    is_chat: bool
    reason: str


def stop_ids(tokenizer: Any, *stated: Any) -> list[int]:
    """Every id that ends an answer, sorted: those that each of `stated` names (a model's or
    adapter's folder, a config or a dict), the tokenizer's end of text, and the special token that
    the chat template writes after an assistant turn. What a run stops at, what a check of data asks
    with, and what is written when a model is exported."""
    ids = {tokenizer.eos_token_id, turn_end_id(tokenizer)}
    return sorted({i for i in ids if i is not None}.union(*map(stated_ids, stated)))


def stated_ids(one: Any) -> set[int]:
    """The ids that end an answer as a folder (its generation config and its config), a config or a
    dict states them: an id or a list of them."""
    if isinstance(one, Path):
        configs = [
            headers.config_of(one, name) for name in ("generation_config.json", "config.json")
        ]
        return set().union(*(stated_ids(c) | stated_ids(c.get("text_config")) for c in configs))
    found = one.get("eos_token_id") if isinstance(one, dict) else getattr(one, "eos_token_id", None)
    ids = found if isinstance(found, list | tuple) else [found]
    return {i for i in ids if isinstance(i, int) and not isinstance(i, bool)}


def turn_end_id(tokenizer: Any) -> int | None:
    """The special token that the chat template writes right after an assistant's answer, or None.
    The template is rendered, not searched."""
    if not tokenizer.chat_template:
        return None
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": MARK}]
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False))
    except Exception:  # a template is somebody's program, and may refuse this dialogue
        return None
    tail = text.rpartition(MARK)[2] if MARK in text else ""
    special = {
        token.content for token in tokenizer.added_tokens_decoder.values() if token.special
    } | set(tokenizer.all_special_tokens)
    first = next(
        (t for t in sorted(special, key=len, reverse=True) if tail.strip().startswith(t)), None
    )
    found = tokenizer.convert_tokens_to_ids(first) if first else None
    return found if isinstance(found, int) else None


def kind_of_model(folder: Path, tokenizer: Any) -> ModelKind:
    """Chat or base, with the reason. A template alone proves nothing: base models are published
    with one, too.

    The evidence, strongest first: does the model's own generation config stop at the template's end
    of turn; the name; the template.
    """
    turn_end = turn_end_id(tokenizer)
    name = _published_name(Path(folder))
    named = CHAT_NAME.search(name)
    if turn_end is None and not tokenizer.chat_template:
        return ModelKind(
            bool(named), say("models.kind_name" if named else "models.kind_no_template", name=name)
        )
    stated = headers.config_of(folder, "generation_config.json").get(
        "eos_token_id", headers.config_of(folder, "config.json").get("eos_token_id")
    )
    stops = {stated} if isinstance(stated, int) else set(stated or ())
    token = str(tokenizer.convert_ids_to_tokens(turn_end)) if turn_end is not None else ""
    if token and token not in DOCUMENT_ENDS and stops:
        if turn_end in stops:
            return ModelKind(True, say("models.kind_stops", token=token))
        if not named:
            ends = ", ".join(str(tokenizer.convert_ids_to_tokens(s)) for s in sorted(stops))
            return ModelKind(False, say("models.kind_never_stops", token=token, ends=ends))
    if named:
        return ModelKind(True, say("models.kind_name", name=name))
    if re.search(r"(?:^|[-_./ ])(base|pt|pretrained)(?:$|[-_./ ])", name, re.IGNORECASE):
        return ModelKind(False, say("models.kind_base_name", name=name))
    return ModelKind(
        bool(token), say("models.kind_template_only" if token else "models.kind_no_turn_end")
    )


def _published_name(folder: Path) -> str:
    """What the model was called where it came from: our marker, the hub's cache folder, the config,
    else the folder's name."""
    with contextlib.suppress(OSError, ValueError):
        marker = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return str(marker.get("name") or marker.get("spec"))
    for part in folder.resolve().parts[::-1]:
        if part.startswith("models--"):
            return part.removeprefix("models--").replace("--", "/")
    stated = headers.config_of(folder, "config.json").get("_name_or_path")
    return (
        folder.resolve().name
        if not isinstance(stated, str) or not stated
        else f"{stated} {folder.resolve().name}"
    )
