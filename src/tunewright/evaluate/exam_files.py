"""Multiple-choice exams on disk, as MMLU, C-Eval and CMMLU are handed out, and own files in any of
their forms.

- MMLU: `{dev,val,test}/SUBJECT_{dev,val,test}.csv` without a header (question, A, B, C, D, answer),
  or from the Hugging Face Hub `SUBJECT/test-00000-of-00001.parquet` with `question`, `choices` and
  the index `answer`;
- C-Eval: `{dev,val,test}/SUBJECT_{dev,val,test}.csv` with a header (id, question, A ... D, answer,
  explanation); its test has no answers, so the validation part is asked;
- CMMLU: `{dev,test}/SUBJECT.csv` with Question, A ... D, Answer.

JSON, JSON lines, Parquet and CSV may each hold any of these columns. Examples (shots) come from the
`dev` part.
"""

from __future__ import annotations

import csv
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from tunewright.core.errors import DataError, problem
from tunewright.core.types import Origin
from tunewright.core.words import ASSETS, say
from tunewright.data.files.encodings import find_encoding
from tunewright.data.files.reading import stream
from tunewright.data.files.source import ending_of, find

TABLES = (".csv", ".jsonl", ".ndjson", ".json", ".parquet")
"""Endings of the files of a folder that may hold questions."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Kind = Literal["mmlu", "ceval", "cmmlu"]
SPLITS = {
    "test": "test",
    "dev": "dev",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "train": "train",
    "auxiliary_train": "train",
}
_NAMED = re.compile(rf"(?P<subject>.+?)[_-](?P<split>{'|'.join(SPLITS)})$")
_SHARD = re.compile(rf"(?P<split>{'|'.join(SPLITS)})(-\d+-of-\d+)?$")
ASKED = ("test", "val", "")
"""Parts that are asked, the first that has answers; `""` is a file that names no part."""
SHOWN = ("dev", "train", "val")
"""Parts that examples come from, the first that there is and that is not asked."""
QUESTION, CHOICES = ("question", "Question"), ("choices", "options")
ANSWERS = ("answer", "Answer", "answerKey", "answer_index")


LeftOut = dict[str, list[str]]
"""Why rows cannot be asked (keys of `exam.reason.*`) -> where they stand."""


@dataclass(frozen=True)
class Item:
    """One question. `right` is the index of its answer among the choices."""

    question: str
    choices: tuple[str, ...]
    right: int
    origin: Origin


@dataclass
class Subject:
    """The questions of a subject, and the examples that are shown before each."""

    name: str
    items: list[Item] = field(default_factory=list)
    examples: list[Item] = field(default_factory=list)
    is_named: bool = True
    """Whether `name` says what the questions are about; else it is only the file's."""


@dataclass
class Exam:
    """Everything that is asked."""

    kind: Kind
    split: str
    subjects: list[Subject]
    left_out: LeftOut = field(default_factory=dict)
    """Rows of the part that cannot be asked."""

    def names(self, subject: str) -> tuple[str | None, list[str]]:
        """(Chinese name, categories) of a subject, as the exam's authors give them."""
        known = tables()[self.kind].get(subject, {})
        return known.get("zh"), list(known.get("categories", []))


@cache
def tables() -> dict[str, dict[str, Any]]:
    """Kind -> subject -> its Chinese name and its categories."""
    text = (ASSETS / "exam_subjects.json").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = json.loads(text)
    return found


def read_exam(place: str) -> Exam:
    """The exam in a file or folder. Raises DataError (E-EXAM-01) where there is no question with an
    answer, and what reading a file raises."""
    path = Path(place).expanduser()
    if not path.exists():
        raise DataError(problem("E-DATA-01", place, file=place, here=str(Path.cwd())))
    left_out: dict[str, LeftOut] = {}
    kinds: list[Kind] = []
    found: dict[tuple[str, bool], dict[str, list[Item]]] = {}
    for file in _files_of(path):
        subject, split, is_named = _place_of(file, path)
        for one, row_subject, kind in _rows_of(file, left_out.setdefault(split, {})):
            kinds.append(kind)
            name = (row_subject, True) if row_subject else (subject, is_named)
            found.setdefault(name, {}).setdefault(split, []).append(one)
    exam = _chosen(found, left_out, place)
    exam.kind = max(set(kinds), key=lambda kind: (kinds.count(kind), kind))
    if exam.kind == "mmlu":
        exam.kind = _told_by_subjects(exam)
    return exam


def _chosen(
    found: dict[tuple[str, bool], dict[str, list[Item]]], left_out: dict[str, LeftOut], place: str
) -> Exam:
    """The part that is asked of every subject, the same for all, with examples from another."""
    there = {split for parts in found.values() for split in parts}
    split = next((name for name in ASKED if name in there), None)
    if split is None:  # only examples: then these are asked
        split = next((name for name in SHOWN if name in there), None)
    if split is None:
        lost = [(reason, rows) for one in left_out.values() for reason, rows in one.items()]
        reasons = ", ".join(f"{len(rows)} × {say(f'exam.reason.{why}')}" for why, rows in lost)
        raise DataError(problem("E-EXAM-01", place, reasons=reasons or "-"))
    subjects = []
    for (name, is_named), parts in sorted(found.items()):
        if split in parts:
            shown = next((s for s in SHOWN if s in parts and s != split), None)
            examples = parts[shown] if shown else []
            subjects.append(Subject(name, parts[split], examples, is_named))
    return Exam("mmlu", split, subjects, left_out.get(split, {}))


def _told_by_subjects(exam: Exam) -> Kind:
    """MMLU's form with Chinese questions is asked in Chinese, as CMMLU."""
    text = "".join(item.question for subject in exam.subjects for item in subject.items[:20])
    return "cmmlu" if is_chinese(text) else "mmlu"


def is_chinese(text: str) -> bool:
    """Whether at least three tenths of the letters are Chinese characters: questions on formulas
    and names have many others."""
    letters = [c for c in text if unicodedata.category(c).startswith("L")]
    return sum("\u3400" <= c <= "\u9fff" for c in letters) >= 0.3 * max(1, len(letters))


# ---- which file is what


def _files_of(path: Path) -> list[Path]:
    """The readable files, in order. MMLU's `all` repeats the subjects beside it."""
    if path.is_file():
        subject, split, _ = _place_of(path, path)
        near = [path.parent, path.parent.parent / "dev"] if split in ASKED else []
        beside = [
            file
            for folder in near
            if folder.is_dir()
            for file in _readable(folder.iterdir())
            if file != path and _place_of(file, file)[:2] == (subject, "dev")
        ]
        return [path, *beside[:1]]
    files = _readable(path.rglob("*"))
    # What describes an exam has another ending than its questions.
    endings = Counter(ending_of(file)[0] for file in files)
    files = [f for f in files if ending_of(f)[0] == endings.most_common(1)[0][0]]
    whole = [f for f in files if f.parent.name == "all"]
    parts = [f for f in files if f.parent.name not in ("all", "auxiliary_train")]
    return parts or whole


def _readable(files: Iterable[Path]) -> list[Path]:
    return sorted(
        f for f in files if f.is_file() and not f.name.startswith(".") and ending_of(f)[0] in TABLES
    )


def _place_of(file: Path, root: Path) -> tuple[str, str, bool]:
    """(subject, part, whether the subject was named as one) told by a file's name and folder."""
    stem = file.name.removesuffix(".gz").rpartition(".")[0]
    if named := _NAMED.match(stem):
        return named["subject"], SPLITS[named["split"]], True
    if shard := _SHARD.match(stem):
        folder = file.parent
        inside = root.is_dir() and folder != root
        return folder.name, SPLITS[shard["split"]], inside
    if file.parent.name in SPLITS:
        return stem, SPLITS[file.parent.name], True
    return stem, "", root.is_dir() or any(stem in table for table in tables().values())


# ---- rows


def _rows_of(file: Path, left_out: dict[str, list[str]]) -> Iterator[tuple[Item, str | None, Kind]]:
    """(question, its subject where the row names one, the form of the row)."""
    for raw, origin, kind in _raw_rows(file):
        made = _item(raw, origin) if isinstance(raw, dict) else "no_question"
        if isinstance(made, str):
            left_out.setdefault(made, []).append(str(origin))
            continue
        subject = raw.get("subject") or raw.get("category")
        named = isinstance(subject, str) and subject.strip()
        yield made, str(subject).strip() if named else None, kind


def _raw_rows(file: Path) -> Iterator[tuple[Any, Origin, Kind]]:
    if ending_of(file)[0] == ".csv":
        yield from _table(file)
        return
    for row in stream(file).rows:
        value = row.value
        capital = isinstance(value, dict) and "Question" in value
        yield value, row.origin, "cmmlu" if capital else _form(value)


def _form(value: Any) -> Kind:
    return "ceval" if isinstance(value, dict) and {"A", "B", "question"} <= set(value) else "mmlu"


def _table(file: Path) -> Iterator[tuple[dict[str, Any], Origin, Kind]]:
    """The rows of a CSV file, whose first row is a header or, as in MMLU, already a question."""
    source = find(file)
    source.encoding = find_encoding(source.bytes, source.name)
    with source.text(newline="") as text:
        reader = csv.reader(text)
        header: list[str] | None = None
        started, row = 1, 0
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as e:
                where = f"{file}:{started}"
                raise DataError(problem("E-EXAM-02", where, reason=str(e))) from e
            at, started = started, reader.line_num + 1
            if not any(cell.strip() for cell in cells):
                continue
            if header is None:
                header = [cell.strip() for cell in cells]
                if not set(header) & set(QUESTION):
                    header = ["question", *LETTERS[: len(cells) - 2], "answer"]
                    _require_headerless(cells, f"{file}:{at}")
                    kind: Kind = "mmlu"
                else:
                    kind = "cmmlu" if "Question" in header else "ceval"
                    continue
            row += 1
            yield dict(zip(header, cells, strict=False)), Origin(str(file), at, row), kind


def _require_headerless(cells: Sequence[str], where: str) -> None:
    """Raises DataError (E-EXAM-02) where a first row is neither names nor a question."""
    answer = cells[-1].strip().upper()
    if len(cells) < 4 or not answer or answer not in LETTERS[: len(cells) - 2]:
        shown = ", ".join(cell[:30] for cell in cells[:8])
        raise DataError(problem("E-EXAM-02", where, reason=shown))


def _item(raw: dict[str, Any], origin: Origin) -> Item | str:
    """A question of a row, or why there is none."""
    question = next((raw[name] for name in QUESTION if raw.get(name)), None)
    if not isinstance(question, str) or not question.strip():
        return "no_question"
    choices, labels = _choices(raw)
    if len(choices) < 2 or len(choices) > len(LETTERS):
        return "no_choices"
    answer = next((raw[name] for name in ANSWERS if raw.get(name) not in (None, "")), None)
    right = _right(answer, labels, choices)
    if right is None:
        return "no_answer" if answer is None else "unknown_answer"
    return Item(question, tuple(choices), right, origin)


def _choices(raw: dict[str, Any]) -> tuple[list[str], list[str]]:
    """(choices, their labels)."""
    given = next((raw[name] for name in CHOICES if raw.get(name)), None)
    if isinstance(given, dict) and isinstance(given.get("text"), list):  # as in ARC
        labels = [str(label) for label in given.get("label", [])]
        return [str(one) for one in given["text"]], labels
    if isinstance(given, dict):
        return [str(one) for one in given.values()], [str(label) for label in given]
    if isinstance(given, list):
        return [str(one) for one in given], list(LETTERS[: len(given)])
    found = []
    for letter in LETTERS:
        if raw.get(letter) is None:
            break
        found.append(str(raw[letter]))
    while found and not found[-1].strip():
        found.pop()
    return found, list(LETTERS[: len(found)])


def _right(answer: Any, labels: Sequence[str], choices: Sequence[str]) -> int | None:
    """The index that an answer names: an index from 0, a label, or the text of one choice."""
    if isinstance(answer, bool) or answer is None:
        return None
    if isinstance(answer, int | float):
        return int(answer) if answer == int(answer) and 0 <= answer < len(choices) else None
    text = str(answer).strip()
    upper = text.strip("().。 ").upper()
    if upper in labels:
        return list(labels).index(upper)
    if text in choices and choices.count(text) == 1:
        return list(choices).index(text)
    if text.isdigit() and int(text) < len(choices) and labels[:1] == ["A"]:
        return int(text)
    return None
