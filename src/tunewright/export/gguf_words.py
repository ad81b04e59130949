"""The words of a GGUF file: tokens, merges, the pre-tokenizer by llama.cpp's name, special tokens,
stop tokens and the chat template.

llama.cpp cuts texts with rules of its own, chosen by a name. The name is found from what the
tokenizer does (its regular expression, its digits), and the proof compares token ids, so a wrong
one is no opinion. GGUF has three places for tokens that end an answer; llama.cpp also stops at
tokens whose text it knows. Source: llama.cpp's llama-vocab.cpp, the GGUF specification.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from tunewright.core.errors import UsageError
from tunewright.sources.gguf import CONTROL, USER_DEFINED, known
from tunewright.text import asked_template

NORMAL, UNKNOWN, UNUSED, BYTE = 1, 2, 5, 6
"""Further kinds of tokens in `tokenizer.ggml.token_type`."""
KNOWN_STOPS = {
    "<|eot_id|>",
    "<|im_end|>",
    "<|end|>",
    "<|return|>",
    "<|call|>",
    "<|flush|>",
    "<|calls|>",
    "<end_of_turn>",
    "<|endoftext|>",
    "</s>",
    "<|eom_id|>",
    "<EOT>",
    "_<EOT>",
    "[EOT]",
    "[EOS]",
    "<|end_of_text|>",
    "<end_of_utterance>",
    "<eos>",
    "<turn|>",
    "<|tool_response>",
    "<｜end▁of▁sentence｜>",
}
"""llama.cpp stops at tokens with these texts, wherever they stand in the metadata."""
SPACE = "▁"


@dataclass
class Words:
    """Everything about words that goes into a file: key without `tokenizer.` -> value."""

    keys: dict[str, Any]
    lost_stops: list[str] = field(default_factory=list)
    """Stop tokens for which there is no place."""
    rstrips: bool = False
    """Special tokens take the white space behind them along: llama.cpp does so for one family."""


def words_of(tokenizer: Any, renderer: Any, rows: int, where: str) -> Words:
    """The words of a tokenizer for a model of `rows` tokens. Raises UsageError (E-EXPORT-24) for
    one that llama.cpp cannot have."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise UsageError.of("E-EXPORT-24", where, reason=type(tokenizer).__name__)
    parts = json.loads(backend.to_str())
    model = parts["model"]
    if model["type"] != "BPE":
        raise UsageError.of("E-EXPORT-24", where, reason=model["type"])
    tokens, kinds = _tokens(backend, parts, rows, where)
    steps = _steps(parts.get("pre_tokenizer"), "pretokenizers")
    if any(step["type"] == "ByteLevel" for step in steps):
        keys = _byte_level(parts, steps, where)
    elif model.get("byte_fallback"):
        keys = _by_spaces(parts, tokens, where)
        kinds = [
            BYTE if token.startswith("<0x") and len(token) == 6 and kind == NORMAL else kind
            for token, kind in zip(tokens, kinds, strict=True)
        ]
        tokens = [
            token.replace(SPACE, " ") if kind == USER_DEFINED else token
            for token, kind in zip(tokens, kinds, strict=True)
        ]
    else:
        raise UsageError.of("E-EXPORT-24", where, reason="BPE without bytes")
    keys |= {"ggml.tokens": tokens, "ggml.token_type": kinds}
    special, lost = _special(tokenizer, renderer, tokens)
    keys |= special | _template(tokenizer, renderer)
    added = parts.get("added_tokens") or []
    return Words(keys, lost, any(one.get("rstrip") for one in added))


def _steps(section: Any, inner: str) -> list[dict[str, Any]]:
    """The steps of a section of tokenizer.json, one by one."""
    if not section:
        return []
    steps: list[dict[str, Any]] = section[inner] if section["type"] == "Sequence" else [section]
    return steps


def _tokens(
    backend: Any, parts: dict[str, Any], rows: int, where: str
) -> tuple[list[str], list[int]]:
    """The text and the kind of each of `rows` tokens; rows without a token get a name of their
    own."""
    by_id = {number: token for token, number in backend.get_vocab(with_added_tokens=True).items()}
    if by_id and max(by_id) >= rows:
        raise UsageError.of("E-EXPORT-24", where, reason=f"{max(by_id) + 1} tokens, {rows} rows")
    added = {one["id"]: one for one in parts.get("added_tokens") or []}
    unknown = parts["model"].get("unk_token")
    tokens, kinds = [], []
    for number in range(rows):
        token = by_id.get(number)
        if token is None:
            tokens.append(f"[PAD{number}]")
            kinds.append(UNUSED)
            continue
        tokens.append(token)
        if token == unknown and parts["model"].get("byte_fallback"):
            kinds.append(UNKNOWN)
        elif number in added:
            kinds.append(CONTROL if added[number]["special"] else USER_DEFINED)
        else:
            kinds.append(NORMAL)
    return tokens, kinds


def _merges(parts: dict[str, Any]) -> list[tuple[str, str]]:
    pairs = [m.split(" ", 1) if isinstance(m, str) else m for m in parts["model"]["merges"]]
    return [(str(left), str(right)) for left, right in pairs]


def _byte_level(parts: dict[str, Any], steps: list[dict[str, Any]], where: str) -> dict[str, Any]:
    """The keys of a byte-level vocabulary."""
    keeps = bool(parts["model"].get("ignore_merges"))
    forms = _steps(parts.get("normalizer"), "normalizers")
    nfc = bool(forms) and all(one["type"] == "NFC" for one in forms)
    if (forms and not nfc) or any(s.get("add_prefix_space") for s in steps):
        raise UsageError.of("E-EXPORT-24", where, reason="normalizer")
    split = [s for s in steps if s["type"] == "Split"]
    digits = any(s["type"] == "Digits" and s.get("individual_digits") for s in steps)
    pattern = split[0]["pattern"].get("Regex") if len(split) == 1 else None
    others = {s["type"] for s in steps} - {"ByteLevel", "Split", "Digits"}
    table = known()
    for entry in table["pre_tokenizers"].values():
        if entry.get("split") != pattern or bool(entry.get("digits")) != digits or others:
            continue
        # llama.cpp composes no characters, so a name says nothing of NFC: the ids will.
        fits = [n for n in entry["names"] if (n in table["ignore_merges"]) == keeps]
        fits.sort(key=lambda name: (name in table["nfc"]) != nfc)
        if fits and len(split) <= 1:
            merges = [" ".join(p.replace(" ", "Ġ") for p in one) for one in _merges(parts)]
            return {"ggml.model": "gpt2", "ggml.pre": fits[0], "ggml.merges": merges}
    shown = pattern or ", ".join(s["type"] for s in steps)
    raise UsageError.of("E-EXPORT-24", where, reason=f"pre-tokenizer {str(shown)[:80]}")


def _by_spaces(parts: dict[str, Any], tokens: list[str], where: str) -> dict[str, Any]:
    """The keys of a vocabulary in the manner of SentencePiece.

    llama.cpp joins the pair whose joined token has the highest score; the merges say which pair
    goes first, so the score of a token is the rank of its first merge, below zero.
    """
    rank: dict[str, int] = {}
    for number, (left, right) in enumerate(_merges(parts)):
        rank.setdefault(left + right, number)
    last = -float(len(rank) + 1)
    scores = [-float(rank[token]) if token in rank else last for token in tokens]
    forms = _steps(parts.get("normalizer"), "normalizers")
    steps = _steps(parts.get("pre_tokenizer"), "pretokenizers")
    if {f["type"] for f in forms} - {"Prepend", "Replace"}:
        raise UsageError.of("E-EXPORT-24", where, reason="normalizer")
    prefix = any(f["type"] == "Prepend" for f in forms) or any(
        s["type"] == "Metaspace" and s.get("prepend_scheme") in ("always", "first") for s in steps
    )
    return {
        "ggml.model": "llama",
        "ggml.pre": "default",
        "ggml.scores": scores,
        "ggml.add_space_prefix": prefix,
    }


def _special(tokenizer: Any, renderer: Any, tokens: list[str]) -> tuple[dict[str, Any], list[str]]:
    """Named tokens, the places of the stop tokens, and whether a text gets a token in front; then
    the stop tokens that found no place."""
    keys: dict[str, Any] = {}
    for theirs, ours in (("bos", "bos"), ("eos", "eos"), ("unknown", "unk"), ("padding", "pad")):
        number = getattr(tokenizer, f"{ours}_token_id")
        if isinstance(number, int) and number < len(tokens):
            keys[f"ggml.{theirs}_token_id"] = number
    keys |= {"ggml.add_bos_token": adds_bos(tokenizer, renderer), "ggml.add_eos_token": False}
    eos = keys.get("ggml.eos_token_id")
    # The end of a turn first: a model that does not stop there never stops.
    waiting = [i for i in renderer.stop_ids if i != eos]
    waiting.sort(key=lambda i: (i != renderer.stop_id, tokens[i] in KNOWN_STOPS))
    if eos is None and waiting:
        keys["ggml.eos_token_id"] = waiting.pop(0)
    for slot in ("eot", "eom"):
        if waiting:
            keys[f"ggml.{slot}_token_id"] = waiting.pop(0)
    return keys, [tokens[i] for i in waiting if tokens[i] not in KNOWN_STOPS]


def adds_bos(tokenizer: Any, renderer: Any) -> bool:
    """Whether a program should put the first token before every text: where the tokenizer does and
    the model learnt its dialogues so."""
    bos = tokenizer.bos_token_id
    ids = list(tokenizer("a")["input_ids"])
    if bos is None or not ids or ids[0] != bos:
        return False
    from tunewright.core.types import Message

    return bool(renderer.prompt([Message("user", "a")])[0] == bos)


def _template(tokenizer: Any, renderer: Any) -> dict[str, Any]:
    """The chat template, by name where there are several; ours where the model has none."""
    made = asked_template.for_gguf(renderer, tokenizer.chat_template)
    if isinstance(made, str):
        return {"chat_template": made}
    others = {f"chat_template.{name}": text for name, text in made.items() if name != "default"}
    names = {"chat_templates": [name for name in made if name != "default"]} if others else {}
    default = {"chat_template": made["default"]} if "default" in made else {}
    return {**default, **others, **names}
