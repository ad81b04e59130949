"""What decoding settings make of answers that are known: pure integers in, counts out.

`generation_config.json` travels with a model and is obeyed by whoever calls `generate` of
Transformers; a setting that suits a chat model may make an answer impossible to write. Each rule is
followed as Transformers follows it (`generation/logits_process.py`): `no_repeat_ngram_size` counts
the question's n-grams, too, `max_length` its tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.advise.doctor.facts import Decoding
from tunewright.sources import headers

NAMES = (
    "no_repeat_ngram_size",
    "repetition_penalty",
    "bad_words_ids",
    "suppress_tokens",
    "begin_suppress_tokens",
    "max_new_tokens",
    "max_length",
    "min_new_tokens",
    "min_length",
    "eos_token_id",
    "do_sample",
    "temperature",
    "top_p",
    "top_k",
)
STRONG_PENALTY, REPEATS = 1.2, 0.5
"""Without a model to try it on: a penalty from here on, for answers of which so much stands in the
text before."""


@dataclass(frozen=True)
class Line:
    """A row as tokens. `stop` ends the answer; None where the row has no end."""

    prompt: list[int]
    answer: list[int]
    stop: int | None

    @property
    def ids(self) -> list[int]:
        """All of it."""
        return [*self.prompt, *self.answer, *([] if self.stop is None else [self.stop])]


def settings_of(*folders: Path) -> dict[str, Any]:
    """The decoding settings that the first folder with a generation config states, and what older
    folders say in `config.json`."""
    found: dict[str, Any] = {}
    for folder in folders:
        given = headers.config_of(folder, "generation_config.json")
        older = headers.config_of(folder, "config.json")
        for config in (given, older):
            for name in NAMES:
                if config.get(name) is not None:
                    found.setdefault(name, config[name])
        if given or older:
            break
    return found


def decoding_of(
    settings: dict[str, Any],
    lines: Sequence[Line],
    *,
    stop: str = "",
    looks_at_stop: bool = True,
    penalty: int | None = None,
    luck: float | None = None,
) -> Decoding | None:
    """What `settings` make of the answers of `lines`; None where there is nothing to look at.

    `stop` is the text of the stop token; `looks_at_stop` False: whoever answers finds its stop
    tokens elsewhere. `penalty` and `luck` were found with a model.
    """
    known = [line for line in lines if line.answer]
    if not known or not settings:
        return None
    ends = _ids(settings.get("eos_token_id"))
    size, most = _whole(settings, "no_repeat_ngram_size"), _whole(settings, "max_new_tokens")
    whole, least = _whole(settings, "max_length"), _whole(settings, "min_new_tokens")
    least_whole = _whole(settings, "min_length")
    stops = {line.stop for line in known if line.stop is not None}
    return Decoding(
        rows=len(known),
        settings={name: settings[name] for name in NAMES if name in settings},
        ngram=sum(repeats(line, size) for line in known) if size > 0 else 0,
        penalty=_penalised(settings, known) if penalty is None else penalty,
        forbidden=sum(_is_forbidden(line, settings) for line in known),
        too_short=sum(_is_cut(line, most, whole) for line in known),
        longest=max(len(line.answer) for line in known),
        must_go_on=sum(_goes_on(line, least, least_whole) for line in known),
        stop_missing=looks_at_stop and bool(stops) and not stops & ends,
        cuts=sum(any(token in ends for token in line.answer) for line in known),
        stop=stop,
        luck=luck,
    )


def repeats(line: Line, size: int) -> bool:
    """Whether writing the answer, with its stop token, would complete an n-gram of `size` tokens
    that stands in the text already."""
    ids, first = line.ids, len(line.prompt)
    seen: set[tuple[int, ...]] = set()
    for end in range(size, len(ids) + 1):
        gram = tuple(ids[end - size : end])
        if end > first and gram in seen:
            return True
        seen.add(gram)
    return False


def _penalised(settings: dict[str, Any], lines: Sequence[Line]) -> int | None:
    """Without a model: answers that say much again, under a strong penalty."""
    value = settings.get("repetition_penalty")
    if not isinstance(value, int | float) or value < STRONG_PENALTY:
        return None
    return sum(_again(line) >= REPEATS for line in lines)


def _again(line: Line) -> float:
    """Share of the answer's tokens that stand before them."""
    seen, again = set(line.prompt), 0
    for token in line.answer:
        again += token in seen
        seen.add(token)
    return again / len(line.answer)


def _is_forbidden(line: Line, settings: dict[str, Any]) -> bool:
    never = _ids(settings.get("suppress_tokens"))
    if any(token in never for token in line.answer):
        return True
    if line.answer[0] in _ids(settings.get("begin_suppress_tokens")):
        return True
    words = settings.get("bad_words_ids")
    for word in words if isinstance(words, list) else []:
        ids = [word] if isinstance(word, int) else word
        if not isinstance(ids, list) or not ids:
            continue
        text = line.answer
        if any(text[i : i + len(ids)] == ids for i in range(len(text) - len(ids) + 1)):
            return True
    return False


def _is_cut(line: Line, most: int, whole: int) -> bool:
    if most > 0:  # which `generate` obeys in place of `max_length`
        return len(line.answer) > most
    return whole > 0 and len(line.prompt) + len(line.answer) > whole


def _goes_on(line: Line, least: int, whole: int) -> bool:
    return len(line.answer) < least or (
        least <= 0 and whole > 0 and len(line.prompt) + len(line.answer) < whole
    )


def _ids(value: Any) -> set[int]:
    found = value if isinstance(value, list | tuple) else [value]
    return {one for one in found if isinstance(one, int) and not isinstance(one, bool)}


def _whole(settings: dict[str, Any], name: str) -> int:
    value = settings.get(name)
    return value if isinstance(value, int) and not isinstance(value, bool) else 0
