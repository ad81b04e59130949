"""Columns that were not understood: the message about them, and the command to copy.

Nothing here decides how a row is read. It looks at the names and the first values of columns, and
puts into words what was found, what it is most likely meant as, and flags that can be copied. A
text that would be learnt alone while its answer stands beside it is refused here, and so is a name
in `data.columns` that the format does not read.
"""

from __future__ import annotations

import difflib
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tunewright.core.errors import DataError, problem, raise_all
from tunewright.core.registry import formats
from tunewright.core.words import say
from tunewright.data.files.source import RawRow
from tunewright.data.formats.beside import HISTORIES, choice_columns
from tunewright.data.formats.common import first_of, known_names, plain_name
from tunewright.data.formats.dialogue import REASONING, SYSTEMS
from tunewright.data.formats.ledger import Ledger, Seen, is_bookkeeping

DOCUMENT = ("text", "document", "content")
"""Columns of running text."""
SHOWN_COLUMNS, SHOWN_CHARACTERS, EXAMPLE_CHARACTERS = 20, 60, 40
WITH_EXAMPLE = 8
LABEL_CHARACTERS, PROSE_CHARACTERS, LEAST_ROWS = 40, 15, 4
CLOSE = 0.8
_needs_no_quotes = re.compile(r"[\w=,.:+/-]+")


def _set(names: str, *more: str) -> frozenset[str]:
    return frozenset((*names.split(), *more))


ASKS = _set(
    "prompt question query problem q ask user human user_input user_message user_prompt "
    "question_text input input_text inputs source src source_text article"
    " dialogue document content text passage post sentence premise context request utterance "
    "问题 提问 题目 输入 原文 内容 文章 用户 文本 正文 对话"
)
ANSWERS = _set(
    "completion answer response output solution a ans reply assistant bot gpt model "
    "assistant_message output_text target tgt target_text targets summary"
    " summaries highlights abstract tldr headline translation correct_answer final_answer "
    "best_answer answer_text paraphrase rewrite correction keywords"
    " 答案 回答 回复 输出 摘要 总结 概括 译文 翻译 助手 解答 标准答案"
)
LABELS = _set(
    "label labels category categories sentiment class classes aspect intent emotion topic rating "
    "stars polarity stance tag tags label_name"
    " 标签 类别 分类 情感 意图 主题"
)
TAKEN_FOR_ANSWERS = ANSWERS - _set(
    "answer solution correct_answer final_answer a ans model gpt keywords 标准答案"
) | {"text"}
"""Beside a prompt; `answer` and `solution` are what reward functions compare with."""
ROLES: dict[str, frozenset[str]] = {
    "instruction": _set("instruction instructions task_instruction 指令 任务 任务描述"),
    "history": _set("历史 对话历史 历史对话 历史记录 previous_turns", *HISTORIES),
    "reasoning": _set("思考 思考过程 推理 推理过程 思维链 分析过程", *REASONING),
    "system": _set("系统 系统提示 系统提示词 persona", *SYSTEMS),
    "chosen": _set("chosen preferred accepted better 选中 较好"),
    "rejected": _set("rejected dispreferred worse 拒绝 较差"),
}
TITLES = ("title", "subtitle", "标题")


def printable(text: str) -> str:
    """A text that any terminal and any file can take: half characters and control characters are
    written as escapes."""
    return "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in text)


def shown_names(names: Iterable[str]) -> str:
    """Names of columns for a message: not too many, not too long."""
    listed = list(names)
    cut = [_cut(name, SHOWN_CHARACTERS) for name in listed[:SHOWN_COLUMNS]]
    return ", ".join([*cut, "..."] if len(listed) > SHOWN_COLUMNS else cut)


def _cut(text: str, most: int) -> str:
    return printable(text[:most]) + ("..." if len(text) > most else "")


def example_of(value: Any) -> str:
    """A short example of what a column holds."""
    if isinstance(value, str):
        return f'"{_cut(value.strip(), EXAMPLE_CHARACTERS)}"'
    if isinstance(value, dict):
        return say("data.found.object", names=shown_names(map(str, list(value)[:5])) or "-")
    if isinstance(value, list):
        inner = value[0] if value else None
        return say("data.found.list", of=example_of(inner) if inner is not None else "-")
    return _cut(str(value), EXAMPLE_CHARACTERS)


def flags(columns: Mapping[str, str]) -> str:
    """The flag that says which column is which, ready to be copied; what keeps its name is left
    out."""
    pairs = ",".join(f"{ours}={theirs}" for ours, theirs in columns.items() if ours != theirs)
    if not pairs:
        return ""
    return f"--columns {pairs if _needs_no_quotes.fullmatch(pairs) else shlex.quote(pairs)}"


# ---- no format


def unknown(values: Sequence[Any], where: str) -> DataError:
    """The error for rows of no format: what was found with examples, what is nearest, and the flags
    that lead on."""
    first = _first_values(values)
    if not first:
        kind = type(values[0]).__name__ if values else "-"
        hint = say("data.hint.no_objects")
        return DataError.of("E-DATA-08", where, found=f"- ({kind})", hint=hint)
    listed = [
        f"`{_cut(name, SHOWN_CHARACTERS)}` ({example_of(value)})"
        for name, value in list(first.items())[:WITH_EXAMPLE]
    ]
    found = ", ".join([*listed, "..."] if len(first) > WITH_EXAMPLE else listed)
    short = [name for name in first if name.isprintable() and len(name) <= SHOWN_CHARACTERS]
    wanted = suggested({name: first[name] for name in short})
    lists = (name for name, value in first.items() if isinstance(value, list) and value)
    turns = next((name for name in lists if isinstance(first[name][0], dict | list)), None)
    if wanted:
        read = {*wanted.values(), *(name for _, name in choice_columns(tuple(first)))}
        read |= known_names()
        left = [name for name in first if name not in read and not is_bookkeeping(name)]
        rest = say("data.hint.left_out", names=shown_names(left)) if left else ""
        hint = say("data.hint.command", command=flags(wanted) or "--columns OURS=THEIRS", rest=rest)
    elif turns is not None:
        hint = say("data.hint.turns", name=_cut(turns, SHOWN_CHARACTERS))
    else:
        hint = say("data.hint.none")
    return DataError.of("E-DATA-08", where, found=found, hint=hint)


def _first_values(values: Sequence[Any]) -> dict[str, Any]:
    """Column -> its first value that holds something."""
    found: dict[str, Any] = {}
    for value in values:
        for name, cell in value.items() if isinstance(value, dict) else ():
            if found.get(name) in (None, ""):
                found[name] = cell
    return found


def suggested(first: Mapping[str, Any]) -> dict[str, str]:
    """Our names to the file's, as they are most likely meant; empty where nothing can be said.
    `first` holds a value of every column."""
    columns = _telling_columns(first)
    roles = {role: _named(columns, names) for role, names in ROLES.items()}
    found = {role: name for role, name in roles.items() if name is not None}
    rest = {name: plain for name, plain in columns.items() if name not in found.values()}
    if "chosen" in found and "rejected" in found:
        ask = _named(rest, ASKS)
        pair = {side: found[side] for side in ("chosen", "rejected")}
        return ({"prompt": ask} if ask else {}) | pair
    beside = ("history", "reasoning", "system")
    more: dict[str, str] = {ours: found[ours] for ours in beside if ours in found}
    texts = [name for name in columns if _is_text(first[name])]
    answer, label = _named(rest, ANSWERS), _named(rest, LABELS)
    ask = _named({name: plain for name, plain in rest.items() if name != answer}, ASKS)
    if "instruction" in found and answer:
        pair = {"instruction": found["instruction"]} | ({"input": ask} if ask else {})
        return pair | {"output": answer} | more
    if ask and answer:
        return {"prompt": ask, "completion": answer} | more
    if ask and label:
        return {"text": ask, "label": label}
    if label and texts and label != texts[0]:
        return {"text": texts[0], "label": label}
    plain = {name: columns[name] for name in columns if not isinstance(first[name], list | dict)}
    if close := _nearly_ours(plain):
        return close
    texts = [name for name in texts if name not in found.values()]
    if len(texts) == len(columns) == 1:
        return {"text": texts[0]}
    return _of_two_texts(texts, ask, answer, more)


def _telling_columns(first: Iterable[str]) -> dict[str, str]:
    """Columns whose names may say something, with their plain names: neither choices nor where the
    row came from."""
    names = tuple(first)
    choices = {name for _, name in choice_columns(names)}
    found = {name: plain_name(name) for name in names if name not in choices}
    known = ASKS | ANSWERS
    return {n: plain for n, plain in found.items() if plain in known or not is_bookkeeping(n)}


def _nearly_ours(columns: Mapping[str, str]) -> dict[str, str]:
    """Columns whose names are ours but for a letter or two; one alone says too little, unless it is
    the text."""
    found: dict[str, str] = {}
    for name, plain in columns.items():
        for ours in difflib.get_close_matches(plain[:40], MAIN, n=1, cutoff=CLOSE):
            found[ours] = name
    return found if len(found) > 1 or "text" in found else {}


def _of_two_texts(
    texts: Sequence[str], ask: str | None, answer: str | None, more: Mapping[str, str]
) -> dict[str, str]:
    """Which of two texts asks and which answers, where one is known by its name; else the first
    asks."""
    if len(texts) != 2:
        return {}
    first, second = texts
    if ask == second or answer == first:
        first, second = second, first
    return {"prompt": first, "completion": second, **more}


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and any(map(str.isalpha, value[:1000]))


MAIN = tuple(
    """
    instruction input output prompt completion question answer response text label messages
    chosen rejected
    """.split()
)


def _named(columns: Mapping[str, str], names: Iterable[str]) -> str | None:
    """The column with one of these names; the one whose name comes first in the file."""
    return next((name for name, plain in columns.items() if plain in names), None)


# ---- a text whose answer stands beside it


def refuse_text_with_answer(rows: Sequence[Seen], name: str, where: str) -> None:
    """Raise E-DATA-86 where running text would be learnt and a column that looks like its answer
    thrown away. Naming the format says that this is meant."""
    having = [row for row in rows if first_of(row, DOCUMENT) is not None]
    if not having:
        return
    text = first_of(having[0], DOCUMENT) or "text"
    every = dict.fromkeys(column for row in having for column in row)
    beside = [column for column in every if column not in (text, "weight")]
    cells = {
        column: [value for row in having if (value := dict.get(row, column)) not in (None, "")]
        for column in beside
    }
    texts = [str(dict.get(row, text)) for row in having]
    answers = [
        column for column in beside if _is_answer(having[0].theirs(column), cells[column], texts)
    ]
    if not answers:
        return
    answer = next(
        (column for column in answers if plain_name(column) in ANSWERS | LABELS), answers[0]
    )
    theirs = having[0].theirs
    wanted = (
        ("text", "label")
        if _are_labels(cells[answer]) or plain_name(answer) in LABELS
        else ("prompt", "completion")
    )
    command = flags({wanted[0]: theirs(text), wanted[1]: theirs(answer)})
    shown = ", ".join(
        f"`{_cut(theirs(column), SHOWN_CHARACTERS)}` ({example_of(cells[column][0])})"
        for column in answers[:WITH_EXAMPLE]
    )
    told = {"text": theirs(text), "shown": shown, "answer": theirs(answer)}
    raise DataError.of("E-DATA-86", where, **told, command=command, alone=f"--format {name}")


def refuse_prompt_with_answer(rows: Sequence[Seen], name: str, where: str) -> None:
    """Raise E-DATA-88 for prompts with a text beside them that is an answer by its name: kept as a
    fact for reward functions it would teach nothing."""
    having = [row for row in rows if "prompt" in row]
    for column in dict.fromkeys(column for row in having for column in row):
        cells = (dict.get(row, column) for row in having)
        value = next((cell for cell in cells if _is_text(cell)), None)
        if value is not None and plain_name(column) in TAKEN_FOR_ANSWERS:
            theirs = having[0].theirs(column)
            command = flags({"prompt": having[0].theirs("prompt"), "completion": theirs})
            told = {"answer": theirs, "example": example_of(value), "command": command}
            raise DataError.of("E-DATA-88", where, **told)


def _is_answer(name: str, values: Sequence[Any], texts: Sequence[str]) -> bool:
    """Whether a column beside a text looks like its answer: by its name, as labels (a few short
    texts again and again), or as prose."""
    plain = plain_name(name)
    if not values or plain.endswith(TITLES) or plain == "text":
        return False
    if plain in LABELS or (plain in ANSWERS and any(isinstance(value, str) for value in values)):
        return True
    words = [value for value in values if isinstance(value, str)]
    if is_bookkeeping(name) or len(words) < len(values):
        return False
    if not any(any(map(str.isalpha, word)) for word in words):
        return False
    if len(values) > 1 and len(set(words)) == 1:
        return False
    pairs = zip(words, texts, strict=False)
    if sum(word in text or text in word for word, text in pairs) > len(words) / 2:
        return False  # the text once more, or a piece of it
    is_prose = sum(
        len(word) >= PROSE_CHARACTERS
        and (" " in word.strip() or any("\u3040" <= c <= "\u9fff" for c in word))
        for word in words
    )
    return _are_labels(words) or is_prose > len(words) / 2


def _are_labels(values: Sequence[Any]) -> bool:
    words = [value for value in values if isinstance(value, str)]
    few = len(words) >= LEAST_ROWS and 2 <= len(set(words)) <= len(words) / 2
    return few and all(len(word) <= LABEL_CHARACTERS for word in words)


# ---- a name that is not there, or not read


def columns_of(rows: Iterable[RawRow]) -> list[str]:
    """Names of columns of these rows, in the order in which they appear."""
    objects = (row.value for row in rows if isinstance(row.value, dict))
    return list(dict.fromkeys(name for value in objects for name in value))


def require_columns(columns: Mapping[str, str], found: Iterable[str], there: Sequence[str]) -> None:
    """Raise DataError for renamed columns that are not `found` in any row, with the closest names.
    `there` are the first rows' columns, for the message."""
    known, problems = {*found}, []
    for ours, theirs in columns.items():
        if theirs in known:
            continue
        near = sorted(name for name in {*there, *known} if isinstance(name, str))[:1000]
        guess = shown_names(difflib.get_close_matches(theirs, near, n=1)) or "-"
        told = {"column": theirs, "guess": guess, "columns": shown_names(map(str, there))}
        problems.append(problem("E-DATA-11", f"data.columns.{ours}", **told))
    raise_all(problems, DataError)


def require_read(name: str, columns: Mapping[str, str] | None, ledger: Ledger) -> None:
    """Raise DataError for a column that was named in `data.columns` and that the format `name` took
    from no row, though it holds something."""
    entry = formats.get(name)
    if not columns or entry is None:
        return
    reads, used = list(entry.facts.get("reads", ())), set(ledger.used())
    problems = []
    for ours, theirs in columns.items():
        left = ledger.left.get(theirs)
        if left is None or not left.filled or theirs in used:
            continue
        told = {"ours": ours, "theirs": theirs, "format": name}
        if ours in reads:
            told["used"] = shown_names(sorted(used)) or "-"
        else:
            close = difflib.get_close_matches(ours, reads, n=1) or ["-"]
            told |= {"guess": close[0], "reads": ", ".join(reads)}
        code = "E-DATA-87" if ours in reads else "E-DATA-85"
        problems.append(problem(code, f"data.columns.{ours}", **told))
    raise_all(problems, DataError)
