"""`tunewright init`: a commented run file for the data it is given, with settings that suit its
size and kind.

Small data is the case that goes wrong most often: three rows in one epoch change nothing, and the
usual rate of a large run learns next to nothing from them. The table below turns rows into epochs
so that a run takes some hundred steps; docs/fit.md says where the numbers come from.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from string import Template

from tunewright.core.config import DataConfig
from tunewright.core.errors import UsageError
from tunewright.core.files import write_text
from tunewright.core.types import PlainText, Row
from tunewright.core.words import ASSETS, LANGUAGES, language, say
from tunewright.data import inspect
from tunewright.data.catalogue.names import held_part, resolve

MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
# (rows up to, epochs). Samples a step and the learning rate stay `auto`: training resolves them
# from the same number of rows, in one place.
EPOCHS = ((8, 40), (30, 20), (100, 10), (600, 6), (5_000, 3), (20_000, 2))
EPOCHS_OF_LARGE = 1
FEW_ANSWERS = 20
"""Distinct answers up to which the data may be a classification."""
SHORT, LONG = 40, 600
"""Characters of an answer: a label, or a text of several sentences."""
PLAIN = re.compile(r"[A-Za-z./\u4e00-\u9fff][\w./\u4e00-\u9fff-]*")
RESERVED = {"true", "false", "null", ".inf", ".nan"}


@dataclass(frozen=True)
class Look:
    """What the data looks like without a tokenizer."""

    rows: int
    dropped: int
    format: str
    labels: tuple[str, ...]
    """The distinct answers, most frequent first, where they are few and short; else empty."""
    median_answer: int
    """Characters."""
    has_valid: bool = False
    """Whether the data brings rows of its own to measure with."""


def look_at(data: str, columns: dict[str, str] | None = None) -> Look:
    """Read the data as a run would. Raises DataError when nothing of it can be used."""
    found = inspect(
        DataConfig(train=data, held_out=0, columns=columns or {}, accept=["empty", "dropped"]),
        None,
        needs_tokens=False,
    )
    answers = [text for text in map(_answer, found.train_rows) if text]
    counted = Counter(answers)
    few = (
        2 <= len(counted) <= min(FEW_ANSWERS, len(answers) // 4) and max(map(len, counted)) <= SHORT
    )
    lengths = sorted(map(len, answers)) or [0]
    labels = tuple(text for text, _ in counted.most_common()) if few else ()
    has_valid = any(map(held_part, resolve(data)))
    return Look(
        found.report["rows_kept"],
        found.report["rows_dropped"],
        found.report["format"],
        labels,
        lengths[len(lengths) // 2],
        has_valid,
    )


def _answer(row: Row) -> str:
    return row.text.strip() if isinstance(row, PlainText) else row.answer().strip()


def epochs_for(look: Look) -> int:
    """Epochs that suit the number of rows. Labels are learnt in fewer rounds than sentences."""
    epochs = next((epochs for most, epochs in EPOCHS if look.rows <= most), EPOCHS_OF_LARGE)
    return max(1, min(epochs, epochs // 2 + 1)) if look.labels and look.rows > 8 else epochs


def starter(
    data: str,
    model: str | None = None,
    *,
    out: str | None = None,
    lang: str | None = None,
    name: str = "run.yaml",
    columns: dict[str, str] | None = None,
    gate: Path | None = None,
) -> str:
    """The text of a run file for `data`, commented in the reader's language. `name` is what the
    comments call the file, `gate` a contract that it may be held to.

    Raises DataError when the data cannot be read: better now than at the first run.
    """
    chosen = lang if lang in LANGUAGES else language()
    look = look_at(data, columns)
    template = Template((ASSETS / "templates" / f"run.yaml.{chosen}").read_text(encoding="utf-8"))
    held_out = "null" if look.has_valid else "0.1" if look.rows >= 20 else "0"
    held_to = "" if gate is None else f"\n{_gate_lines(gate, chosen)}\n"
    text = template.substitute(
        name=name,
        found="\n".join(f"# {line}" for line in findings(look, chosen)),
        model=scalar(model or MODEL),
        data=scalar(data),
        held_out=held_out,
        format=look.format,
        columns=_columns_line(columns),
        rank=16 if look.rows > 100 else 8,
        epochs=epochs_for(look),
        # Without the key every run gets a folder of its own: runs/<data>-<method>-<n>.
        out_line=f"out: {scalar(out)}" if out else f"# out: runs/{_stem(data)}",
        probes=min(5, look.rows),
    )
    return text + held_to


def _gate_lines(gate: Path, lang: str) -> str:
    """The contract as a comment: its limits are a start, and nobody has looked at them yet."""
    return f"# {say('init.gate', lang)}\n# gate: {scalar(str(gate))}"


def _columns_line(columns: dict[str, str] | None) -> str:
    pairs = ", ".join(
        f"{scalar(ours)}: {scalar(theirs)}" for ours, theirs in (columns or {}).items()
    )
    return f"  columns: {{{pairs}}}\n" if pairs else ""


def findings(look: Look, lang: str | None = None) -> list[str]:
    """Sentences about the data: how many rows, what kind, what follows from it."""
    lines = [say("init.rows", lang, rows=f"{look.rows:,}", format=look.format)]
    if look.dropped:
        lines.append(say("init.dropped", lang, count=look.dropped))
    if look.rows <= 30:
        lines.append(say("init.small", lang))
    if look.labels:
        shown = " / ".join(_one_line(text) for text in look.labels[:6]) + (
            " ..." if len(look.labels) > 6 else ""
        )
        lines.append(say("init.labels", lang, count=len(look.labels), labels=shown))
    elif look.median_answer >= LONG:
        lines.append(say("init.long", lang))
    return lines


def scalar(text: str) -> str:
    """A string as YAML: bare where that is safe, else in double quotes."""
    if PLAIN.fullmatch(text) and text.lower() not in RESERVED:
        return text
    return json.dumps(text, ensure_ascii=not text.isprintable())


def _one_line(text: str) -> str:
    """What may stand in a comment: no line ends, nothing that a YAML reader refuses."""
    return "".join(c if c.isprintable() else " " for c in text)


def _stem(data: str) -> str:
    return re.sub(r"[^\w.-]+", "-", Path(data).stem).strip("-.") or "first"


def write(path: Path, text: str) -> None:
    """Write a new run file. Raises UsageError (E-INIT-01) when there is one, or anything else, of
    that name."""
    path = Path(path)
    if path.exists() or path.is_symlink():
        raise UsageError.of("E-INIT-01", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
