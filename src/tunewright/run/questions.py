"""The questions of a run, chosen: its own, or some rows of its data. `asking` puts them to the
models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tunewright.core.config import RunConfig
from tunewright.core.errors import DataError, problem
from tunewright.core.seeds import permutation
from tunewright.core.telling import Tell
from tunewright.core.types import (
    Conversation,
    Judged,
    Message,
    Objective,
    Origin,
    PlainText,
    Preference,
    Prompt,
    Stepwise,
    asks,
)
from tunewright.core.words import say
from tunewright.data import DataSet
from tunewright.data.files.source import RawRow
from tunewright.data.formats.shaping import shape
from tunewright.data.store.columns import asking_places
from tunewright.models.limits import ANSWER_TOKENS, answer_room
from tunewright.text.renderer import said

ROW_ANSWER_TOKENS = 128
"""Most of a question that stands for its row: the beginning shows what was learnt, and whole long
answers take longer than a short training."""
Asking = Conversation | Preference | Judged | Prompt


@dataclass(eq=False)
class Probe:
    """A question asked before and after, equal to itself alone. `expected` may be empty."""

    question: str
    messages: list[Message]
    expected: str = ""
    kind: str = "probe"
    before: str = ""
    after: str = ""
    """Of the files that were saved, loaded afresh."""
    after_reload: str = ""
    """The same: only the reloaded files are asked."""
    reload_differs: bool = False
    """The model in memory would have begun the answer otherwise."""
    sample: Any = None
    """Both answers of a pair, where the run is asked for numbers."""
    before_end: str = ""
    after_end: str = ""
    """How the answers ended (`decoding.writer.End`); empty where nothing was written."""
    is_row: bool = False
    """Chosen from the rows of the data, so it may be left out where asking takes long."""

    def form(self, renderer: Any) -> Any:
        """The form in which it is asked: that of its row, where it has an answer."""
        return renderer.form_of([*said(self.messages), self.expected] if self.expected else None)


@dataclass(frozen=True)
class Questions:
    """What a run asks before and after."""

    probes: list[Probe]
    scored: bool
    """The run trains a head that gives numbers, so it is asked for numbers and not for words."""
    answer_tokens: list[int]
    """Most tokens of the answer to each."""


def questions_of(
    config: RunConfig,
    data: DataSet,
    objective: Objective,
    renderer: Any,
    context: int | None,
    extra: Sequence[Probe],
    tell: Tell,
) -> Questions:
    """The questions of a run and `extra` ones, without those that fill the context, which is said.
    Raises DataError for a probe that asks nothing."""
    if "score" in objective.heads:
        probes = pair_probes(config.probes, data)
        return Questions(probes, True, [0] * len(probes))
    found = under(config.data.system, [*choose_probes(config.probes, data), *extra])
    kept = [
        probe
        for probe in found
        if context is None or len(renderer.prompt(probe.messages)) < context
    ]
    if len(kept) < len(found):
        lost = len(found) - len(kept)
        tell.line(say("train.probes_too_long", count=lost, context=context))
    return Questions(kept, False, [_longest_answer(p, renderer.tokenizer) for p in kept])


def _longest_answer(probe: Probe, tokenizer: Any) -> int:
    """Most tokens of an answer."""
    if not probe.expected:
        return ANSWER_TOKENS
    wanted = answer_room(len(tokenizer(probe.expected)["input_ids"]))
    return min(wanted, ROW_ANSWER_TOKENS) if probe.is_row else wanted


def choose_probes(setting: int | list[Any], data: DataSet) -> list[Probe]:
    """The questions asked before and after: as given, or `setting` rows of the data, held-out ones
    first."""
    if isinstance(setting, list):
        return [_given_probe(item, i) for i, item in enumerate(setting)]
    # Only the chosen rows are read: the others may be millions.
    held, trained = asking_places(data.held_out_rows), asking_places(data.train_rows)
    pool = len(held) if len(held) >= setting else len(held) + len(trained)
    found: dict[int, Probe] = {}
    for i in permutation(0, "probes", pool):
        if len(found) == setting:
            break
        rows, place, kind = (
            (data.held_out_rows, held[i], "held_out")
            if i < len(held)
            else (data.train_rows, trained[i - len(held)], "train")
        )
        row = rows[place]
        if asks(row):
            found[i] = Probe(_last_question(row), row.question(), row.answer(), kind, is_row=True)
    return [probe for _, probe in sorted(found.items())]


def under(system: str | None, probes: list[Probe]) -> list[Probe]:
    """The probes with the run's system prompt where they bring none, as its rows have it."""
    for probe in probes:
        if system is not None and not (probe.messages and probe.messages[0].role == "system"):
            probe.messages = [Message("system", system), *probe.messages]
    return probes


def pair_probes(setting: int | list[Any], data: DataSet) -> list[Probe]:
    """Pairs whose two answers are scored before and after, or answers whose steps are: as many rows
    as asked for, held-out ones first.

    Questions of one's own have no answers to score.
    """
    wanted = setting if isinstance(setting, int) else len(setting)
    found: list[Probe] = []
    for rows, samples, kind in (
        (data.held_out_rows, data.held_out, "held_out"),
        (data.train_rows, data.train, "train"),
    ):
        for i in sorted(permutation(0, "probes", len(samples))[: wanted - len(found)]):
            row = rows[i]
            if isinstance(row, Preference):
                expected = f"{row.answer()}  ≻  {row.rejected[-1].content}"
                found.append(
                    Probe(_last_question(row), row.question(), expected, kind, sample=samples[i])
                )
            elif isinstance(row, Stepwise):
                expected = "\n".join(
                    f"{'✓' if right else '✗'} {text.strip()}" for text, right in row.steps
                )
                found.append(
                    Probe(_last_question(row), row.question(), expected, kind, sample=samples[i])
                )
    return found


def _last_question(row: Asking) -> str:
    return next((m.content for m in reversed(row.question()) if m.role == "user"), "")


def _bare_question(item: Any) -> Probe | None:
    """The probe of a row without an answer, which no data format would take: `{question: ...}` or
    `{messages: [..., user]}`; None for other rows."""
    if not isinstance(item, dict):
        return None
    messages = item.get("messages")
    if isinstance(messages, list) and all(
        isinstance(m, dict)
        and isinstance(m.get("content"), str)
        and m.get("role") in ("system", "user")
        for m in messages
    ):
        turns = [Message(m["role"], m["content"]) for m in messages]
        return Probe(turns[-1].content, turns) if turns and turns[-1].role == "user" else None
    text = next(
        (item[k] for k in ("question", "instruction", "prompt") if isinstance(item.get(k), str)),
        None,
    )
    if text is None or any(item.get(k) for k in ("answer", "output", "completion", "response")):
        return None
    text = text + (
        f"\n{item['input']}" if isinstance(item.get("input"), str) and item["input"] else ""
    )
    return Probe(text, [Message("user", text)])


def _given_probe(item: Any, number: int) -> Probe:
    if isinstance(item, str):
        return Probe(item, [Message("user", item)])
    bare = _bare_question(item)
    if bare is not None:
        return bare
    shaped = shape([RawRow(item, Origin(f"probes[{number}]", number + 1, number + 1))])
    if not shaped.rows or isinstance(shaped.rows[0], PlainText):
        why = shaped.dropped[0].reason if shaped.dropped else "text"
        raise DataError(problem("E-DATA-21", f"probes[{number}]", reason=why))
    row = shaped.rows[0]
    return Probe(_last_question(row), row.question(), row.answer())
