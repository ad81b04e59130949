"""A first contract for `tunewright gate`, made from the data: what the held-out rows ask, the form
and language that the answers have, and some everyday questions that a training must not cost.

The numbers in it are a start: they are limits that a trained model usually meets, to be raised when
a run has been measured. What cannot be known from rows (what must be refused) stands there as a
comment.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from tunewright.advise.starting import FEW_ANSWERS, SHORT, scalar
from tunewright.core.config import DataConfig
from tunewright.core.errors import DataError, UsageError, problem
from tunewright.core.files import write_text
from tunewright.core.types import Conversation, Preference, Prompt, Row
from tunewright.core.words import ASSETS, LANGUAGES, language
from tunewright.data import inspect
from tunewright.data.catalogue.names import held_part, resolve
from tunewright.data.checks.wording import language_of, personal_data
from tunewright.data.formats.writing import as_turns
from tunewright.rewards.structure import json_value

MOST_ROWS = 60
FEWEST_FOR_SPLIT = 20
"""Rows from which on a run keeps some apart; below, all rows are learnt and asked."""
MOSTLY = 0.95
"""What holds for this share of the answers is taken for their form."""
EVERYDAY = {
    "en": (
        ("What is the capital of France?", "Paris"),
        ("What is 7 plus 5? Answer with the number.", "12"),
        ("What colour do you get when you mix blue and yellow?", "green"),
        ("Which planet do we live on?", "Earth"),
        ("What is the opposite of hot?", "cold"),
        ("How many days are in a week? Answer with the number.", "7"),
        ("What is frozen water called?", "ice"),
        ("Translate into French: thank you", "merci"),
        ("What is the largest ocean?", "Pacific"),
        ("What do bees make?", "honey"),
        ("Who wrote Romeo and Juliet?", "Shakespeare"),
        ("What is the first month of the year?", "January"),
    ),
    "zh": (
        ("法国的首都是哪里？", "巴黎"),
        ("7 加 5 等于多少？请用数字回答。", "12"),
        ("蓝色和黄色混合会得到什么颜色？", "绿"),
        ("我们生活在哪颗行星上？", "地球"),
        ("“热”的反义词是什么？", "冷"),
        ("一个星期有几天？请用数字回答。", "7"),
        ("水结冰以后叫什么？", "冰"),
        ("把“谢谢”翻译成英文。", "thank"),
        ("世界上最大的海洋是什么？", "太平洋"),
        ("蜜蜂酿造什么？", "蜜"),
        ("中国的首都是哪里？", "北京"),
        ("一年的第一个月叫什么？请回答。", "月"),
    ),
}
_NUMBER = re.compile(r"\D{0,3}[-+−]?\d[\d.,]*\D{0,8}")


@dataclass(frozen=True)
class Seen:
    """What the answers look like. `least` and `metric` are what a clause on them says."""

    metric: str
    least: float
    is_json: bool
    keys: tuple[str, ...]
    """Keys that every answer has, where all are JSON objects."""
    labels: tuple[str, ...]
    longest: int
    language: str
    personal: bool


def seen_in(answers: Sequence[str]) -> Seen:
    """The form of some answers. Raises ValueError for none."""
    if not answers:
        raise ValueError("no answers")
    values = [_json_of(text) for text in answers]
    is_json = _mostly([value is not None for value in values])
    objects = [set(value) for value in values if isinstance(value, dict)]
    keys = set.intersection(*objects) if len(objects) == len(values) else set()
    counted = Counter(text.strip() for text in answers)
    few = 2 <= len(counted) <= min(FEW_ANSWERS, len(answers) // 4)
    labels = tuple(counted) if few and max(map(len, counted)) <= SHORT else ()
    spoken = Counter(filter(None, map(language_of, answers)))
    (name, count), *_ = spoken.most_common(1) or [("", 0)]
    known = name if name in ("en", "zh") and count >= MOSTLY * spoken.total() else ""
    longest = max(map(len, answers))
    metric, least = _metric(answers, is_json, labels)
    personal = any(personal_data(text) for text in answers)
    return Seen(metric, least, is_json, tuple(sorted(keys)), labels, longest, known, personal)


def _metric(answers: Sequence[str], is_json: bool, labels: Sequence[str]) -> tuple[str, float]:
    if is_json:
        return "json_equal", 0.5
    if labels:
        return "normalised", 0.6
    if _mostly([bool(_NUMBER.fullmatch(text.strip())) for text in answers]):
        return "number", 0.4
    if _mostly([len(text) <= SHORT for text in answers]):
        return "contains", 0.5
    return "f1", 0.2


def _json_of(text: str) -> Any:
    """An object or a list; None for anything else."""
    try:
        value = json_value(text)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None


def _mostly(claims: Sequence[bool]) -> bool:
    return sum(claims) >= MOSTLY * len(claims)


# ---- the file


def write(
    path: Path, data: str, *, columns: dict[str, str] | None = None, lang: str | None = None
) -> Path:
    """Write a contract for `data`, and beside it the rows that it asks, whose file comes back.

    Raises UsageError (E-INIT-01) where either file is there already, and DataError for data whose
    rows have no answers (E-INIT-02).
    """
    path = Path(path)
    beside = path.with_name(f"{path.stem}-rows.jsonl")
    for one in (path, beside):
        if one.exists() or one.is_symlink():
            raise UsageError.of("E-INIT-01", str(one))
    rows, held, everything = _rows_of(data, columns)
    asked = [row for row in rows if _plain(row)]
    answers = [text for text in map(_answer, everything) if text.strip()]
    if not asked or not answers:
        raise DataError(problem("E-INIT-02", data))
    chosen = [asked[i * len(asked) // MOST_ROWS] for i in range(MOST_ROWS)]
    chosen = asked if len(asked) <= MOST_ROWS else chosen
    text = _text(path.name, beside.name, seen_in(answers), held, len(chosen), lang)
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = (json.dumps(_as_messages(row), ensure_ascii=False) + "\n" for row in chosen)
    write_text(beside, "".join(lines))
    write_text(path, text)
    return beside


def _rows_of(
    data: str, columns: dict[str, str] | None
) -> tuple[Sequence[Row], bool, Sequence[Row]]:
    """(the rows that a run keeps apart, whether it keeps any, the rows it learns from)."""

    def read(held_out: float | None) -> Any:
        return inspect(
            DataConfig(
                train=data, held_out=held_out, columns=columns or {}, accept=["empty", "dropped"]
            ),
            None,
            needs_tokens=False,
        )

    found = read(None if any(map(held_part, resolve(data))) else 0.1)
    if len(found.held_out_rows) and len(found.train_rows) + len(found.held_out_rows) >= (
        FEWEST_FOR_SPLIT
    ):
        return found.held_out_rows, True, found.train_rows
    every = read(0).train_rows
    return every, False, every


def _plain(row: Row) -> bool:
    """Whether a row is a question with an answer, without tools."""
    if not isinstance(row, Conversation | Preference | Prompt) or row.tools:
        return False
    return bool(row.answer().strip()) and all(m.role != "tool" for m in row.question())


def _answer(row: Row) -> str:
    return row.answer() if isinstance(row, Conversation | Preference | Prompt) else ""


def _as_messages(row: Any) -> dict[str, Any]:
    answer = {"role": "assistant", "content": row.answer()}
    return {"messages": [*as_turns(row.question()), answer]}


def _text(name: str, rows: str, seen: Seen, held: bool, count: int, lang: str | None) -> str:
    chosen = lang if lang in LANGUAGES else language()
    template = (ASSETS / "templates" / f"contract.yaml.{chosen}").read_text(encoding="utf-8")
    parts = _comments(template)
    everyday = EVERYDAY["zh" if seen.language == "zh" else "en"]
    questions = "\n".join(
        f"    - {{ask: {json.dumps(ask, ensure_ascii=False)}, "
        f"expect: {json.dumps(answer, ensure_ascii=False)}}}"
        for ask, answer in everyday
    )
    return Template(parts["whole"]).substitute(
        name=name,
        about=parts["held" if held else "learnt"].replace("$count", str(count)),
        rows=scalar(rows),
        metric=seen.metric,
        least=seen.least,
        everyday=questions,
        form=_form(seen, parts),
        language=_language(seen, parts),
        personal=parts["personal_seen" if seen.personal else "personal"],
    )


def _comments(template: str) -> dict[str, str]:
    """The parts of the template: each begins with a line `=== name`."""
    found: dict[str, str] = {}
    for part in re.split(r"^=== ", template, flags=re.MULTILINE)[1:]:
        name, _, text = part.partition("\n")
        found[name.strip()] = text.rstrip("\n")
    return found


def _form(seen: Seen, parts: dict[str, str]) -> str:
    """The form section: what the answers of the data have in common."""
    lines = [parts["form"], "form:", "  name: form", "  of: [rows]", "  least: 0.9", "  ends: true"]
    if seen.is_json:
        schema: dict[str, Any] = {"type": "object", "required": list(seen.keys)}
        lines.append("  json: true")
        if seen.keys:
            lines.append(f"  schema: {json.dumps(schema, ensure_ascii=False)}")
    elif seen.labels:
        lines.append(f"  one_of: {json.dumps(list(seen.labels), ensure_ascii=False)}")
    else:
        lines.append(f"  most_characters: {max(40, 2 * seen.longest)}")
    return "\n".join(lines)


def _language(seen: Seen, parts: dict[str, str]) -> str:
    if not seen.language or seen.is_json or seen.labels:
        return parts["no_language"]
    lines = ["language:", "  name: language", "  of: [rows]", f"  answers: {seen.language}"]
    return "\n".join([parts["language"], *lines])
