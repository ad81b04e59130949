"""The decision tree with the path that was taken: as text for a terminal, as SVG for the page."""

from __future__ import annotations

import textwrap
import unicodedata

from tunewright.advise.decide import NODES, Step, Verdict
from tunewright.core.words import say
from tunewright.report.markup import Child, Html, el

WIDTH = 92
"""Columns of a terminal."""
BOX, LEAF, GAP, ROW, TEXT = 300, 196, 44, 92, 34
"""Pixels: widths of a question and of a leaf, the room between, the height of a row, and columns of
text in a box."""
STYLE = """
.tree { width: 100%; min-width: 26rem; max-width: 44rem; height: auto; font-size: 14px; }
.tree rect { fill: var(--card); stroke: var(--line); stroke-width: 1.5; }
.tree text { fill: var(--soft); } .tree line { stroke: var(--line); stroke-width: 2; }
.tree .on rect { stroke: var(--accent); stroke-width: 2.5; } .tree .on text { fill: var(--ink); }
.tree line.on { stroke: var(--accent); stroke-width: 4; }
.tree .taken rect { fill: var(--good-paper); stroke: var(--good); stroke-width: 3; }
.tree .taken text { fill: var(--ink); font-weight: 600; }
"""
LEAF_OF = {
    "formula": "no_model",
    "has_it": "has_it",
    "classifier": "no_model",
    "table": "query",
    "knowledge": "rag",
    "prompt": "prompt",
    "tune": "tune",
}


def leaf_of(node: str, verdict: Verdict) -> str:
    """The leaf right of a question: what was decided where the path ends there."""
    end = verdict.path[-1]
    if node == end.node and end.answer and node == "knowledge":
        return say(f"advise.leaf.{verdict.branch}")
    return say(f"advise.leaf.{LEAF_OF[node]}")


def shown(step: Step | None) -> str:
    """yes, no or not measured."""
    if step is None:
        return ""
    key = {True: "yes", False: "no", None: "unknown"}[step.answer]
    return say(f"advise.answer.{key}")


def text(verdict: Verdict) -> list[str]:
    """The tree for a terminal; `━` marks the path."""
    steps = {step.node: step for step in verdict.path}
    lines = []
    for node in NODES:
        step = steps.get(node)
        question = say(f"advise.question.{node}")
        if step is None:
            lines.append(f"  │ {question}  ─ {leaf_of(node, verdict)}")
            continue
        if step.answer:
            lines.append(f"  ┗━ {question}")
            lines.append(f"     ━━ {shown(step)} ━━▶ 【{leaf_of(node, verdict)}】")
        else:
            lines.append(f"  ┃ {question}  {shown(step)}")
        bar = "     " if step.answer else "  ┃    "
        lines += [bar + piece for piece in wrapped(step.evidence, WIDTH - 8)]
    taken = verdict.branch == "nothing"
    leaf = say("advise.leaf.nothing")
    lines.append(f"  ┗━▶ 【{leaf}】" if taken else f"  └─ {leaf}")
    return lines


def wrapped(words: str, width: int) -> list[str]:
    """Lines of at most `width` columns; a Chinese character takes two."""
    if all(unicodedata.east_asian_width(c) not in "WF" for c in words):
        return textwrap.wrap(words, width)
    lines, line, used = [], "", 0
    for sign in words:
        size = 2 if unicodedata.east_asian_width(sign) in "WF" else 1
        if used + size > width:
            lines.append(line)
            line, used = "", 0
        line += sign
        used += size
    return [*lines, line] if line else lines


def svg(verdict: Verdict) -> Html:
    """The tree as a picture, its path marked."""
    steps = {step.node: step for step in verdict.path}
    end = verdict.path[-1]
    parts: list[Child] = []
    for row, node in enumerate(NODES):
        y, step = 8 + row * ROW, steps.get(node)
        on = "on" if step is not None else ""
        goes_down = step is not None and not (step is end and step.answer)
        taken = step is not None and bool(step.answer) and step is end
        middle, height = y + 30, 60
        parts += [
            el("line", class_="on" if taken else None, x1=BOX, x2=BOX + GAP, y1=middle, y2=middle),
            el("line", class_="on" if goes_down else None, x1=40, x2=40, y1=y + height, y2=y + ROW),
            _box(0, y, BOX, height, say(f"advise.question.{node}"), on, step),
            _box(
                BOX + GAP, y, LEAF, height, leaf_of(node, verdict), "taken" if taken else "", None
            ),
            el("text", say("advise.answer.yes"), x=BOX + 6, y=middle - 6, font_size=11),
            el("text", say("advise.answer.no"), x=48, y=y + height + 20, font_size=11),
        ]
        if step is not None and step.answer is None:
            parts.append(el("text", shown(step), x=86, y=y + height + 20, font_size=11))
    y = 8 + len(NODES) * ROW
    none = "taken" if verdict.branch == "nothing" else ""
    parts.append(_box(0, y, BOX, 44, say("advise.leaf.nothing"), none, None))
    label = say("advise.tree")
    box = f"-4 0 {BOX + GAP + LEAF + 8} {y + 60}"
    return el("svg", el("title", label), *parts, class_="tree", viewBox=box, role="img")


def _box(
    x: int, y: int, width: int, height: int, words: str, class_: str, step: Step | None
) -> Html:
    lines = wrapped(words, TEXT if width == BOX else TEXT * LEAF // BOX + 2)[:3]
    top = y + height / 2 - 8.5 * (len(lines) - 1) + 5
    texts = [el("text", line, x=x + 12, y=f"{top + 17 * i:.0f}") for i, line in enumerate(lines)]
    about = el("title", f"{shown(step)}: {step.evidence}") if step is not None else None
    box = el("rect", x=x, y=y, width=width, height=height, rx=8)
    return el("g", about, box, *texts, class_=class_ or None)
