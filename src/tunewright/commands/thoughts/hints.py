"""The question once more, with its answer given away: what a model writes then is a thought made
for a known answer (a rationalisation: Zelikman et al. 2022, STaR, arXiv 2203.14465).

A thought that speaks of the hint is of no use in a row that has none.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from tunewright.core.types import Message

EN = (
    "(The correct answer is: {answer}\nWork out step by step how to reach it, as if you did not "
    "know it. Do not mention that the answer was given.)"
)
ZH = "（正确答案是：{answer}\n请像不知道答案一样一步一步推导出它，不要提到答案已经给出。）"
_chinese = re.compile("[\u4e00-\u9fff]")
_told = re.compile(
    r"\b(?:(?:given|provided|correct|known|stated) answer|answer (?:is|was) (?:already )?"
    r"(?:given|provided|told|known)|the hint|(?:I was|we (?:are|were)|been) told|"
    r"as if (?:I|we) (?:did|do) not know)\b"
    r"|(?:给出|已知|提供|告诉)(?:我|我们)?(?:了|的)*(?:正确)?答案|答案已经?(?:给出|告诉|知道)"
    r"|正确答案是|提示(?:说|中|里)|假装不知道",
    re.IGNORECASE,
)


def with_hint(question: Sequence[Message], answer: str) -> list[Message]:
    """The dialogue with the answer behind its last question, in that question's language."""
    last = max(i for i, m in enumerate(question) if m.role == "user")
    form = ZH if _chinese.search(question[last].content) else EN
    told = f"{question[last].content}\n\n{form.format(answer=answer)}"
    return [replace(m, content=told) if i == last else m for i, m in enumerate(question)]


def speaks_of_hint(thought: str) -> bool:
    """Whether a thought says that the answer was known."""
    return _told.search(thought) is not None
