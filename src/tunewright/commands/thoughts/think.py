"""Rows with answers alone become rows with the model's own thoughts: `tunewright data think`.

To each question the model writes several answers; one that reaches the row's answer is kept, with
its thought. What is not reached is asked again with the answer given away, and marked, or stays as
it is. A model that was tuned on its own right thoughts keeps thinking; one that was tuned on bare
answers forgets how. Sources: STaR (Zelikman et al. 2022, arXiv 2203.14465), rejection sampling
fine-tuning (Yuan et al. 2023, 2308.01825).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tunewright import rewards
from tunewright.commands.thoughts.draws import Draw
from tunewright.commands.thoughts.made import How, Thought
from tunewright.commands.thoughts.work import Asked, Work
from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError, UsageError, problem
from tunewright.core.files import write_bytes, write_json
from tunewright.core.telling import Tell
from tunewright.core.types import Conversation, Message, Prompt, Row, asks
from tunewright.core.words import say
from tunewright.data import inspect
from tunewright.data.beside import columns_beside
from tunewright.data.files.writing import WRITERS
from tunewright.data.formats.messages import write as as_messages
from tunewright.rewards import RewardSet


def think(
    model: str,
    rows: str,
    out: Path,
    how: How | None = None,
    *,
    data_format: str = "auto",
    columns: dict[str, str] | None = None,
    data_dir: str | None = None,
    limit: int | None = None,
    system: str | None = None,
    dtype: str | None = None,
    device: str = "auto",
    force: bool = False,
    tell: Tell | None = None,
) -> Thought:
    """Write `rows` with thoughts of `model` to `out`, JSON Lines in the form `messages`.

    Raises DataError for rows without a question and an answer (E-THINK-03), UsageError for what
    cannot be meant, and what opening a model and reading rows raise. `out` exists afterwards only
    if this returns; the draws lie beside it whatever happens, and are not drawn again.
    """
    from tunewright.engine import opening

    how, tell, started = how or How(), tell or Tell(), time.perf_counter()
    _require_sensible(how, out, force)
    judges = _judges(how)
    found = opening.find(model, tell, think=True)
    config = DataConfig(
        train=rows,
        held_out=0,
        format=data_format,
        columns=columns or {},
        dir=data_dir,
        limit=limit,
        system=system,
    )
    data = inspect(config, None, needs_tokens=False, wants=("conversation", "prompt"), refuse=False)
    every = [_conversation(row) for row in data.train_rows]
    made = Thought(str(out), str(_draws_file(out)), rows=len(every))
    made.rest = "stays" if how.keep_rest else "goes"
    asked = _to_ask(every, rows)
    if asked:
        beside = columns_beside(config, [one.row.origin for one in asked])
        opened = opening.to_answer(found, dtype=dtype, device=device)
        Work(opened, how, judges, beside, made, tell).run(asked)
    _write(out, every, asked, how, made, data.report)
    made.seconds = round(time.perf_counter() - started, 3)
    write_json(out.with_name(out.name + ".report.json"), made.as_dict())
    return made


def _draws_file(out: Path) -> Path:
    return out.with_name(out.name + ".draws")


# ---- what can be meant


def _require_sensible(how: How, out: Path, force: bool) -> None:
    if how.draws < 1 or (how.max_new_tokens is not None and how.max_new_tokens < 1):
        raise UsageError(problem("E-THINK-04", "--draws --max-new-tokens"))
    if not 0 <= how.temperature <= 10 or not 0 < how.top_p <= 1:
        raise UsageError(problem("E-THINK-04", "--temperature --top-p"))
    if how.temperature == 0 and how.draws > 1:
        raise UsageError(problem("E-THINK-05", "--temperature", draws=how.draws))
    if out.suffix.lower() != ".jsonl":
        raise DataError.of("E-DATA-48", str(out), to=out.suffix or "-", known=".jsonl")
    if out.exists() and (not force or out.is_dir()):
        raise DataError.of("E-DATA-47", str(out), file=str(out))


def _judges(how: How) -> RewardSet:
    """What a draw must pass: the functions of `--rewards`, else the row's own answer."""
    if how.rewards is None:
        return rewards.read({"kind": "reaches", "mode": how.match}, on_bad="skip", place="--match")
    from tunewright.evaluate.written import read_rewards

    return read_rewards(how.rewards, {})


def _conversation(row: Row) -> Row:
    """A row as a dialogue with its answer: also one of a question whose answer stands in a column
    beside it."""
    expected = row.facts.get("answer") if isinstance(row, Prompt) else None
    if not isinstance(row, Prompt) or expected is None or isinstance(expected, (dict, list)):
        return row
    messages = [*row.messages, Message("assistant", str(expected))]
    return Conversation(messages=messages, origin=row.origin, weight=row.weight, tools=row.tools)


def _to_ask(every: Sequence[Row], rows: str) -> list[Asked]:
    """The rows that end with an answer and have no thought. Raises DataError where none has an
    answer, or some are no dialogues."""
    from tunewright.text.thinking import has_thought, without_thoughts

    bad = [row for row in every if not isinstance(row, Conversation)]
    answered = [
        (place, row)
        for place, row in enumerate(every)
        if asks(row)
        and isinstance(row, Conversation)
        and row.messages[-1].role == "assistant"
        and row.messages[-1].content.strip()
    ]
    if bad or not answered:
        where = ", ".join(str(row.origin) for row in (bad or every)[:3])
        count = len(bad) or len(every)
        raise DataError.of("E-THINK-03", rows, count=count, rows=len(every), where=where or "-")
    return [
        Asked(row, without_thoughts(row.answer()).strip(), place)
        for place, row in answered
        if not has_thought(row.answer())
    ]


# ---- the result


def _write(
    out: Path,
    every: Sequence[Row],
    asked: list[Asked],
    how: How,
    made: Thought,
    report: dict[str, Any],
) -> None:
    """The rows in their order, each with where its thought comes from."""
    by_place = {one.place: one for one in asked}
    lines: list[dict[str, Any]] = []
    thoughts: list[int] = []
    for place, row in enumerate(every):
        assert isinstance(row, Conversation)
        one = by_place.get(place)
        source = one.source if one is not None else "row" if _has_thought(row) else "none"
        made.sources[source] += 1
        if one is not None and one.kept is not None:
            row, thoughts = _with(row, one.kept, how), [*thoughts, one.kept.tokens]
            if made.example is None:
                made.example = {"question": row.question()[-1].content, "answer": row.answer()}
        if source == "none" and not how.keep_rest:
            continue
        line = as_messages(row)
        line |= {"weight": row.weight} if row.weight != 1 else {}
        line |= {"tools": row.tools} if row.tools else {}
        lines.append(line | {"thought_source": source})
    if not lines:
        raise DataError.of("E-THINK-07", str(out), rows=len(every))
    made.written = len(lines)
    made.thought_tokens = sum(thoughts) / len(thoughts) if thoughts else None
    if report["rows_dropped"]:
        counted = {"count": report["rows_dropped"], "rows": report["rows_read"]}
        made.warnings.append(say("data.warning.dropped", **counted))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(out, WRITERS[".jsonl"](lines))


def _has_thought(row: Row) -> bool:
    from tunewright.text.thinking import has_thought

    return isinstance(row, Conversation) and has_thought(row.answer())


def _with(row: Conversation, draw: Draw, how: How) -> Conversation:
    """The row with a thought before its answer; where the model does not think, with the answer
    that it wrote."""
    last = row.messages[-1]
    if not draw.thought:
        content = draw.text
    else:
        answer = last.content.strip() if how.keep_answer else draw.text
        content = f"<think>\n{draw.thought}\n</think>\n\n{answer}"
    return replace(row, messages=[*row.messages[:-1], replace(last, content=content)])
