"""What a base and a trained model say of the same rows: one pass through stock attention each, and
a few greedy answers of the trained one.

Every place of a row is read once: of its distribution only the few log-probabilities are kept that
the rules ask about, so memory is that of one group of rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tunewright.advise.doctor.decoding import Line
from tunewright.advise.doctor.facts import Probed, Scores

if TYPE_CHECKING:
    from torch import Tensor

OFFSETS = (-1, 0, 1, 2, 3)
PADS = 3
"""Padding that is put behind a row, to see whether it goes on."""
MOST_NUMBERS = 1 << 25
"""Logits that are held at once: 128 MiB."""


@dataclass(frozen=True)
class Asking:
    """What is to be read of the rows. `words` are the places of each row's question words, `pads`
    the tokens that padding may be, `stops` those that end an answer."""

    lines: Sequence[Line]
    words: Sequence[Sequence[int]]
    pads: Sequence[int]
    stops: Sequence[int]

    def ids(self, i: int) -> list[int]:
        """Row i with padding behind its end."""
        return [*self.lines[i].ids, *list(self.pads[:1]) * PADS]


@dataclass
class Reading:
    """What one model said, not yet as means."""

    answer: list[tuple[int, float]] = field(default_factory=list)
    taught: list[list[float]] = field(default_factory=list)
    """Of each row what a training learns: the answer and its stop token."""
    whole: list[list[float]] = field(default_factory=list)
    """Of each row all of its tokens but the first."""
    first: list[float] = field(default_factory=list)
    later: list[float] = field(default_factory=list)
    prompt: list[float] = field(default_factory=list)
    stop: list[float] = field(default_factory=list)
    early_stop: list[float] = field(default_factory=list)
    after_answer: dict[int, list[float]] = field(default_factory=dict)
    after_stop: dict[int, list[float]] = field(default_factory=dict)
    after_pad: list[float] = field(default_factory=list)
    offsets: dict[int, list[float]] = field(default_factory=dict)
    penalised: int = 0
    """Rows whose every token was the likeliest until the penalty came."""
    lucky: list[float] = field(default_factory=list)
    """Of rows whose every token is the likeliest the chance to draw them all."""


def words_of(lines: Sequence[Line], learnt: Sequence[set[int]]) -> list[list[int]]:
    """The places of each row's question that hold words of its own: what all questions begin or
    end with is the template's, and what is learnt is an earlier answer."""
    prompts = [line.prompt for line in lines]
    if len({tuple(prompt) for prompt in prompts}) < 2:
        return [[] for _ in lines]
    begin = _alike(prompts)
    end = _alike([prompt[::-1] for prompt in prompts])
    return [
        [i for i in range(max(begin, 1), len(prompt) - end) if i not in known]
        for prompt, known in zip(prompts, learnt, strict=True)
    ]


def _alike(texts: Sequence[Sequence[int]]) -> int:
    """How many tokens all texts begin with."""
    count = 0
    for column in zip(*texts, strict=False):
        if len(set(column)) > 1:
            break
        count += 1
    return count


def read(model: Any, causal: Any, asking: Asking, settings: dict[str, Any]) -> Reading:
    """Let the model read every row of `asking`. `settings` are decoding settings to try."""
    import torch

    from tunewright.engine.decoding.ways import attention_of

    found = Reading()
    size = int(causal.config.get_text_config().vocab_size)
    rows = [asking.ids(i) for i in range(len(asking.lines))]
    with attention_of(causal, ""), torch.no_grad():
        for group in _groups(rows, max(1, MOST_NUMBERS // size)):
            longest = max(len(rows[i]) for i in group)
            # Filled up on the right, where no earlier place looks.
            filled = [rows[i] + rows[i][-1:] * (longest - len(rows[i])) for i in group]
            ids = torch.tensor(filled, device=next(causal.parameters()).device)
            logits_BTV = model(input_ids=ids).logits[:, -longest:].float()
            for row, i in enumerate(group):
                _note(found, logits_BTV[row], asking, i, settings)
    return found


def _groups(rows: Sequence[Sequence[int]], most: int) -> Iterator[list[int]]:
    """Rows of similar length whose tokens together are at most `most`, or one longer row."""
    group: list[int] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i])):
        if group and (len(group) + 1) * len(rows[i]) > most:
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _note(
    found: Reading, logits_TV: Tensor, asking: Asking, i: int, settings: dict[str, Any]
) -> None:
    """Keep what is asked of row i. Row t of the logits predicts token t + 1."""
    line, ids = asking.lines[i], asking.ids(i)
    said_TV = logits_TV.log_softmax(-1)
    first, after = len(line.prompt), len(line.prompt) + len(line.answer)
    stops = list(asking.stops)

    def of(place: int, token: int) -> float:
        """Of `token` standing at `place`."""
        return float(said_TV[place - 1, token]) if place > 0 else math.nan

    told = [(place, of(place, ids[place])) for place in range(max(first, 1), after)]
    found.answer += told
    end = after + (line.stop is not None)
    found.taught.append([of(place, ids[place]) for place in range(max(first, 1), end)])
    found.whole.append([of(place, ids[place]) for place in range(1, end)])
    found.first += [value for place, value in told if place == first]
    found.later += [value for place, value in told if place > first]
    found.prompt += [of(place, ids[place]) for place in asking.words[i]]
    if stops and first > 0:
        found.early_stop.append(float(said_TV[first - 1, stops].logsumexp(-1)))
    for pad in asking.pads:
        found.after_answer.setdefault(pad, []).append(of(after, pad))
    if line.stop is not None:
        found.stop.append(float(said_TV[after - 1, stops or [line.stop]].logsumexp(-1)))
        for pad in asking.pads:
            found.after_stop.setdefault(pad, []).append(of(after + 1, pad))
        if asking.pads:
            places = range(after + 2, len(ids))
            found.after_pad += [of(place, asking.pads[0]) for place in places]
    _note_offsets(found, said_TV, ids, first, end)
    _note_decoding(found, logits_TV, line, settings)


def _note_offsets(found: Reading, said_TV: Tensor, ids: list[int], first: int, end: int) -> None:
    """Where a token of the answer is to be predicted, how likely the tokens around it are. A
    neighbour that is the same token tells nothing."""
    for place in range(max(first, 1), end):
        at = place - 1
        for offset in OFFSETS:
            target = at + offset
            if not 0 <= target < end or (offset != 1 and ids[target] == ids[place]):
                continue
            found.offsets.setdefault(offset, []).append(float(said_TV[at, ids[target]]))


def _note_decoding(found: Reading, logits_TV: Tensor, line: Line, settings: dict[str, Any]) -> None:
    """Where the model would write the answer as it stands: whether a penalty for repetition turns
    it into another one, and how likely it is to be drawn."""
    ids, first = line.ids, len(line.prompt)
    given = settings.get("repetition_penalty")
    penalty = float(given) if isinstance(given, int | float) and given > 0 else 1.0
    tries = penalty != 1
    if first < 1 or not (tries or settings.get("do_sample") is True):
        return
    rows_NV = logits_TV[first - 1 : len(ids) - 1]
    wanted_N = rows_NV.new_tensor(ids[first:]).long()
    if not bool((rows_NV.argmax(-1) == wanted_N).all()):
        return
    penalised_NV = rows_NV.clone()
    if tries:
        for n in range(len(wanted_N)):
            seen = sorted(set(ids[: first + n]))
            old = penalised_NV[n, seen]
            penalised_NV[n, seen] = (old * penalty).where(old < 0, old / penalty)
        found.penalised += not bool((penalised_NV.argmax(-1) == wanted_N).all())
    if settings.get("do_sample") is True:
        found.lucky.append(_luck(penalised_NV, wanted_N, settings))


def _luck(logits_NV: Tensor, wanted_N: Tensor, settings: dict[str, Any]) -> float:
    """The chance that sampling draws every wanted token, with temperature, top-k and top-p as
    Transformers applies them."""
    temperature = settings.get("temperature")
    scaled_NV = logits_NV / max(float(temperature if temperature is not None else 1.0), 1e-4)
    top_k = settings.get("top_k", 50)
    if isinstance(top_k, int) and 0 < top_k < scaled_NV.shape[-1]:
        least_N1 = scaled_NV.topk(top_k, -1).values[:, -1:]
        scaled_NV = scaled_NV.masked_fill(scaled_NV < least_N1, -math.inf)
    top_p = settings.get("top_p")
    if isinstance(top_p, int | float) and 0 < top_p < 1:
        ordered_NV, places_NV = scaled_NV.sort(-1, descending=True)
        before_NV = ordered_NV.softmax(-1).cumsum(-1) - ordered_NV.softmax(-1)
        ordered_NV = ordered_NV.masked_fill(before_NV >= top_p, -math.inf)
        scaled_NV = scaled_NV.scatter(-1, places_NV, ordered_NV)
    said_N = scaled_NV.log_softmax(-1).gather(-1, wanted_N[:, None])[:, 0]
    return math.exp(float(said_N.sum()))


# ---- as means


def compare(base: Reading | None, tuned: Reading, asking: Asking) -> Probed:
    """Both readings as the rules want them."""
    pad = _likeliest_pad(tuned, asking)
    effect = None
    if base is not None:
        pairs = [
            *zip(base.answer, tuned.answer, strict=True),
            *zip(enumerate(base.prompt), enumerate(tuned.prompt), strict=True),
        ]
        effect = max((abs(a[1] - b[1]) for a, b in pairs), default=None)
    return Probed(
        rows=len(asking.lines),
        base=None if base is None else _scores(base, pad, asking),
        tuned=_scores(tuned, pad, asking),
        effect=effect,
        pad_is_stop=pad in asking.stops,
    )


def _likeliest_pad(tuned: Reading, asking: Asking) -> int | None:
    """Which of the tokens that padding may be the trained model writes after an answer. The stop
    token, which it ought to write there, is named only where no other is likely."""
    others = [pad for pad in asking.pads if pad not in asking.stops]
    best = max(others, key=lambda pad: _pad(tuned, pad, asking), default=None)
    if best is not None and _pad(tuned, best, asking) >= math.log(0.5):
        return best
    return next((pad for pad in asking.pads if pad in asking.stops), best)


def _pad(reading: Reading, pad: int | None, asking: Asking) -> float:
    if pad is None:
        return -math.inf
    behind = _mean(reading.after_stop.get(pad, []))
    if pad in asking.stops:
        goes_on = _mean(reading.after_pad) if pad == asking.pads[0] else behind
        return min(behind, goes_on) if not math.isnan(behind) else -math.inf
    values = [behind, _mean(reading.after_answer.get(pad, []))]
    return max((value for value in values if not math.isnan(value)), default=-math.inf)


def _scores(reading: Reading, pad: int | None, asking: Asking) -> Scores:
    ways = (reading.taught, reading.whole)
    return Scores(
        answer=_mean([value for _, value in reading.answer]),
        first=_mean(reading.first),
        later=_mean(reading.later),
        prompt=_mean(reading.prompt),
        stop=_mean(reading.stop),
        early_stop=_mean(reading.early_stop),
        pad=_pad(reading, pad, asking),
        by_offset={offset: _mean(values) for offset, values in reading.offsets.items()},
        by_place=reading.answer,
        taught=-_mean([value for row in reading.taught for value in row]),
        whole=-_mean([value for row in reading.whole for value in row]),
        hardest_row=max((-_mean(row) for rows in ways for row in rows if row), default=math.nan),
    )


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
