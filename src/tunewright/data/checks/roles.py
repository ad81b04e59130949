"""Questions in the assistant's place: rows in which two columns, or two roles, were exchanged.

A row is judged against the rest of its set: how turns begin, how they end, how long they are and
whether they have lines tells users from assistants in almost any set (naive Bayes; rows that fit
better the other way round are counted so, and the counting is repeated). The first guess comes from
what requests look like in English and Chinese, so that a set in which most rows are exchanged is
seen as well. Measured with 3 to 30 % of the rows exchanged on purpose, two plantings each
(docs/LOG.md has the table): the count is 100 % of what was planted in GSM8K, 95 to 100 % in English
and 82 to 98 % in Chinese Alpaca rows, 80 to 107 % where tasks are mixed; untouched, none of nine
sets has a finding. Counting a row without itself and adding bags of the first 8 or 16 words found
no more and named more rows wrongly.
"""

from __future__ import annotations

import re
import zlib
from array import array
from typing import Any

from tunewright.core.types import Origin, Prompt, Row, Sample
from tunewright.data.checks.base import TRAIN, Finding, Places, Severity, view_of

SWAPPED_WARN, SWAPPED_STOP, SWAPPED_ROWS = 0.015, 0.5, 5
"""Single rows like that occur by themselves (a form is filled in), so a few of them are no finding.
"""
LONGEST_QUESTION = 600
LONGER = 2
FEWEST_ROWS = 40
"""Smaller sets say too little about themselves; only what the texts look like counts there."""
ROUNDS = 4
SURE = -4.0
"""Log-odds: fifty times likelier the other way round."""
SIZES = (4096, 4096, 8, 16)
ENDS = {"?": 1, "？": 1, ".": 2, "。": 2, "!": 2, "！": 2, ":": 3, "：": 3}
"""How a text may end: asking, closed, or with something to follow."""
USUAL, SWAPPED, UNKNOWN = 1, 2, 3

_asking = re.compile(
    r"^[\s\"'“‘(\[]*(?:who|what|whats|what's|when|where|which|whose|why|how|can|could|would|will"
    r"|should|do|does|did|is|are|was|were|am|have|has|may|"
    r"explain|describe|write|give|list|name|tell|find|create|generate|make|suggest|summari[sz]e"
    r"|translate|compare|calculate|compute|identify|classify|rewrite|"
    r"provide|define|design|discuss|analy[sz]e|evaluate|choose|convert|edit|develop|construct"
    r"|compose|outline|please|help|solve|propose|determine|brainstorm|reword|transform|"
    r"produce|invent|rephrase|select|organi[sz]e|arrange|categori[sz]e|sort|rank|estimate|predict"
    r"|imagine|illustrate|come up|add|remove|replace|insert|fill|complete|"
    r"combine|paraphrase|assign|detect|recommend|formulate|draft|devise|change|respond|simplify"
    r"|extract|describe|draw|plan|research|pick|count|build|assess|correct)\b",
    re.IGNORECASE,
)
_asking_zh = re.compile(
    r"^[\s“「]*(?:请|写|列出|解释|描述|说明|介绍|什么|为什么|怎么|怎样|如何|哪|谁|是否|能否"
    r"|能不能|可以|给出|给我|告诉|帮|翻译|总结|生成|设计|分析|比较|计算|提供|推荐|简述|判断|编写"
    r"|创建|创作|讨论|识别|分类|列举|改写|重写|构造|想象|输入|用|将|把|去掉|找出|估计|评估|选择"
    r"|确定)"
)
_tasks = re.compile(
    r"^[\s\"'“]*(?:given|in this task|you will|you are|you should|instructions?:|question:|q:"
    r"|task:|给定|指示|问题[：:]|任务|在这个任务|你将|您将)",
    re.IGNORECASE,
)
_words = re.compile(r"[\u3040-\u30ff\u3400-\u9fff]{1,2}|[^\W\u3040-\u30ff\u3400-\u9fff]+")
_ends_asking = re.compile(r"[?？؟][\s\"'”’)\]」】》*]*$")


def asks(text: str) -> bool:
    """Whether a turn looks like a question or a request: it ends with a question mark, or begins as
    requests do and is short."""
    shown = text.strip()
    if _ends_asking.search(shown[-40:]):
        return True
    return len(shown) <= LONGEST_QUESTION and bool(_asking.match(shown) or _asking_zh.match(shown))


def _is_task(text: str) -> bool:
    """Whether a turn cannot be an answer: a question stands anywhere in it, or it begins by setting
    a task."""
    return "?" in text or "？" in text or bool(_tasks.search(text))


def traits(text: str) -> tuple[int, int, int, int]:
    """Hashes of the first word and the first two; how the text ends and whether it has several
    lines; its length in powers of two."""
    words = [*_words.findall(text[:60].lower())[:2], "", ""]
    last = text.rstrip()[-1:]
    end = ENDS.get(last, 0)
    first, second = (
        zlib.crc32(part.encode("utf-8", "surrogatepass")) & 0xFFF
        for part in (words[0], f"{words[0]} {words[1]}")
    )
    return first, second, 2 * end + ("\n" in text.strip()), min(15, len(text).bit_length())


class Roles:
    """Dialogues in which the assistant asks and the user answers."""

    name = "roles"

    def __init__(self) -> None:
        self._looks = bytearray()
        self._traits = array("H")
        self._places = Places()

    def feature(self, row: Row, sample: Sample | None) -> tuple[int, ...] | None:
        """What the texts look like by themselves, and the traits of the last question and the last
        answer; None without both."""
        view = view_of(row)
        if view.kind != "dialogue" or isinstance(row, Prompt):
            return None
        if not view.question.strip() or not view.last.strip():
            return None
        asking, answering = asks(view.question) or _is_task(view.question), asks(view.last)
        # A system prompt may say that questions are wanted, and who asks back (which size, which
        # day) says more than the other did.
        doubtful = view.others or len(view.last) > LONGER * len(view.question)
        look = USUAL if asking and not answering else UNKNOWN
        if answering and not asking and not doubtful:
            look = SWAPPED
        return (look, *traits(view.question), *traits(view.last))

    def add(self, side: str, index: int, origin: Origin, feature: Any) -> None:
        """Keep the traits of a row that is trained on."""
        if side == TRAIN and feature is not None:
            self._looks.append(feature[0])
            self._traits.extend(feature[1:])
            self._places.add(origin)

    def findings(self) -> list[Finding]:
        """`swapped_roles`, where there are enough of them."""
        import numpy

        total = len(self._looks)
        if not total:
            return []
        looks = numpy.frombuffer(bytes(self._looks), numpy.uint8)
        swapped = looks == SWAPPED
        if total >= FEWEST_ROWS:
            traits_R2K = numpy.frombuffer(self._traits, numpy.uint16).reshape(total, 2, len(SIZES))
            mostly_swapped = int(swapped.sum()) > int((looks == USUAL).sum())
            guess = numpy.zeros(total, bool) if mostly_swapped else ~swapped
            swapped = (_log_odds(traits_R2K, guess) < SURE) & (looks != USUAL)
        rows = numpy.flatnonzero(swapped)
        if len(rows) < max(SWAPPED_ROWS, SWAPPED_WARN * total):
            return []
        severity: Severity = "stop" if len(rows) >= SWAPPED_STOP * total else "warn"
        return [Finding("swapped_roles", severity, len(rows), total, self._places.first(rows))]


def _log_odds(traits_R2K: Any, fits_R: Any) -> Any:
    """How much likelier each of R rows is as it stands than with its two turns exchanged, in nats;
    K traits of 2 turns. `fits_R` is a first guess."""
    import numpy

    users, answers = traits_R2K[:, 0], traits_R2K[:, 1]
    fits = fits_R
    odds = numpy.zeros(len(users))
    for _ in range(ROUNDS):
        odds = numpy.zeros(len(users))
        for k, size in enumerate(SIZES):
            # Rows that fit better exchanged are counted as if they were.
            asked = numpy.where(fits, users[:, k], answers[:, k])
            said = numpy.where(fits, answers[:, k], users[:, k])
            ratio = numpy.log(
                (numpy.bincount(asked, minlength=size) + 0.5)
                / (numpy.bincount(said, minlength=size) + 0.5)
            )
            odds += ratio[users[:, k]] - ratio[answers[:, k]]
        fits = odds > 0
    return odds
