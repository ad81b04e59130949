"""From measured figures to a verdict: the known decision tree, each branch with its evidence.

    is the model right as it is?                             -> no tuning
    does a formula or a small regressor give the numbers?    -> no language model
    does a classifier without a language model do as well?   -> no language model
    do the answers live in a table?                          -> query it
    does reading passages give what the model does not know? -> RAG; fine-tune where that is no
                                                                worse and the knowledge stays
    do examples in the prompt do it?                         -> prompt
    does training do it?                                     -> fine-tune
    else                                                     -> nothing here helps

Numbers in, words out: no model, no file. A branch is taken on differences between ways on the same
rows, never on words of the data. A way is better where the whole 95 % interval of the paired
difference is above zero and the difference is at least `MATERIAL`: with two dozen rows some
difference is always there. What was not measured speaks for nothing, and the verdict says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from tunewright.core.words import say

MATERIAL = 0.1
"""Points of the score (0 to 1) that a difference must have to decide anything."""
GOOD = 0.8
"""A score whose interval lies above it leaves nothing to gain that would be worth another way."""
HALF = 0.5
"""A model that is right less often than this does not have the skill, whatever the others do."""
MANY_ROWS = 500
"""Rows from which on knowledge that stays may be trained into a model."""
MANY_USERS = 100

Changes = Literal["often", "rarely"]
PROMPTS = ("few_fixed", "few_retrieved")
QUERIES = ("lookup", "sql")
FIGURES = ("formula", "regressor")
TRAINED = ("lora", "lora_rag")
WITHOUT_TRAINING = ("base", *PROMPTS, "rag")
ASKED = (*WITHOUT_TRAINING, *TRAINED)
"""Ways in which the model itself answers."""
NODES = ("has_it", "formula", "classifier", "table", "knowledge", "prompt", "tune")
"""The questions of the tree, in order."""


@dataclass(frozen=True)
class Score:
    """A mean over the held-out rows with its 95 % interval, from 0 to 1."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Gain:
    """How much better one way is than another on the same rows."""

    value: float
    low: float
    high: float

    @property
    def is_real(self) -> bool:
        """Beyond chance and large enough to matter."""
        return self.low > 0 and self.value >= MATERIAL


@dataclass(frozen=True)
class Figures:
    """Everything that was measured. `scores` and `forms` are by way; `gain(a, b)` is how much
    better `b` is than `a` and `form_gain` the same of the form, None where either was not
    measured."""

    scores: Mapping[str, Score]
    gain: Callable[[str, str], Gain | None]
    rows: int
    """Rows that may be trained on."""
    forms: Mapping[str, Score] = field(default_factory=dict)
    """Share of answers that are the expected ones to the letter (but case and punctuation)."""
    form_gain: Callable[[str, str], Gain | None] = lambda a, b: None
    suffices: Literal["formula", "regressor"] | None = None
    """What does without a language model where the answers are numbers."""
    formula: str | None = None
    explained: float = 0.0
    """Share of the variance that it explains on unseen rows."""
    labels: int = 0
    """Different answers, where they are a few labels."""
    has_documents: bool = False
    has_tables: bool = False
    reached: Score | None = None
    """Share of rows whose answer some simple query of the table gives."""
    reached_gain: Gain | None = None
    """The same beyond answers that were exchanged between rows."""
    found: Score | None = None
    """Share of what the answers say beyond the question that stands in the retrieved passages."""
    found_gain: Gain | None = None
    beyond: float = 1.0
    """Share of rows whose answer says something that the question does not."""
    changes: Changes | None = None
    users: int | None = None


@dataclass(frozen=True)
class Step:
    """A question of the tree and what was measured about it. `answer` None: not measured."""

    node: str
    answer: bool | None
    evidence: str


@dataclass(frozen=True)
class Verdict:
    """What to do. `branch` is the leaf of the tree, `way` the measured way that goes on."""

    branch: str
    way: str
    why: str
    path: list[Step]
    assumed: list[str] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "branch": self.branch,
            "way": self.way,
            "rule": say(f"advise.branch.{self.branch}"),
            "why": self.why,
            "path": [vars(step) for step in self.path],
            "assumed": self.assumed,
            "remarks": self.remarks,
        }


def percent(value: float) -> str:
    """0.714 -> '71 %'."""
    return f"{100 * value:.0f} %"


def told(score: Score) -> str:
    """A score with its interval."""
    return say(
        "advise.score",
        value=percent(score.value),
        low=f"{100 * score.low:.0f}",
        high=f"{100 * score.high:.0f}",
    )


def _sentence(text: str) -> str:
    """The text with a capital at its beginning."""
    return text[:1].upper() + text[1:]


def enough(figures: Figures) -> bool:
    """Whether what was measured already decides, so that nothing more expensive need be measured:
    a formula, the model as it is, or a query, whose interval leaves no room above."""
    if figures.suffices is not None:
        return True
    if _is_good(figures, "base"):
        return True
    if figures.has_tables and any(_is_good(figures, way) for way in QUERIES):
        return "few_fixed" in figures.scores
    return False


def _is_good(figures: Figures, way: str) -> bool:
    """Whether the whole interval of a way lies above `GOOD`."""
    return way in figures.scores and figures.scores[way].low >= GOOD


def decide(figures: Figures) -> Verdict:
    """The verdict. Raises ValueError where the model as it is was not measured and no formula
    suffices."""
    return _Walk(figures).verdict()


class _Walk:
    """The way down the tree."""

    def __init__(self, figures: Figures):
        """At the root: no question is answered yet."""
        self.f = figures
        self.path: list[Step] = []
        self.assumed: list[str] = []
        self.remarks: list[str] = []

    # ---- helpers

    def best(self, ways: Iterable[str]) -> str | None:
        """The measured way with the highest score; of equal ones the first, which costs least."""
        there = [way for way in ways if way in self.f.scores]
        return max(there, key=lambda way: self.f.scores[way].value, default=None)

    def beats(self, better: str | None, worse: str | None) -> bool:
        """Whether one way is really better than another; False where either was not measured."""
        if better is None or worse is None:
            return False
        gain = self.f.gain(worse, better)
        return gain is not None and gain.is_real

    def beaten_by(self, way: str, others: Iterable[str]) -> str | None:
        """The best of the ways that are really better than `way`."""
        return self.best(other for other in others if other != way and self.beats(other, way))

    def step(self, node: str, answer: bool | None, key: str, /, **fields: Any) -> bool:
        """Note a question of the tree with its answer and its evidence. Returns the answer."""
        self.path.append(Step(node, answer, _sentence(say(f"advise.evidence.{key}", **fields))))
        return bool(answer)

    def end(self, branch: str, way: str, key: str, /, **fields: Any) -> Verdict:
        """The verdict at a leaf, with the whole path to it."""
        why = _sentence(say(f"advise.why.{key}", **fields))
        return Verdict(branch, way, why, self.path, self.assumed, self.remarks)

    def told(self, way: str) -> str:
        """The score of a measured way with its interval."""
        return told(self.f.scores[way])

    def against(self, worse: str, better: str) -> dict[str, str]:
        """The figures of a comparison, for a sentence."""
        gain = self.f.gain(worse, better)
        assert gain is not None
        return {
            "better": say(f"advise.way.{better}"),
            "better_score": self.told(better),
            "worse": say(f"advise.way.{worse}"),
            "worse_score": self.told(worse),
            "points": f"{100 * gain.value:+.0f}",
            "low": f"{100 * gain.low:+.0f}",
            "high": f"{100 * gain.high:+.0f}",
        }

    # ---- the tree

    def verdict(self) -> Verdict:
        """The first branch that applies. Raises KeyError where the base was not measured."""
        for visit in (
            self.has_it,
            self.formula,
            self.classifier,
            self.table,
            self.knowledge,
            self.prompt,
            self.tune,
        ):
            found = visit()
            if found is not None:
                self.remark_on(found)
                return found
        return self.nothing()

    def formula(self) -> Verdict | None:
        """Are the answers numbers that a formula or a small regressor gives?"""
        f = self.f
        if f.suffices is None:
            key = "no_formula" if f.explained > 0 else "no_numbers"
            self.step("formula", False, key, explained=percent(f.explained))
            return None
        fields = {"formula": f.formula or "-", "explained": percent(f.explained)}
        self.step("formula", True, f.suffices, **fields)
        return self.end("no_model", f.suffices, f.suffices, **fields)

    def has_it(self) -> Verdict | None:
        """Is the model right as it is, better than a constant answer, and no way better still?"""
        f = self.f
        base = f.scores["base"]
        over = self.beaten_by("base", (*ASKED[1:], *QUERIES, *FIGURES))
        constant = self.beats("base", "constant") or "constant" not in f.scores
        # A regressor that suffices is judged by the variance, not by figures met to the digit.
        figures = f.suffices is None or _is_good(f, "base")
        yes = base.value >= HALF and constant and over is None and figures
        if yes:
            self.step("has_it", True, "has_it", score=self.told("base"))
            return self._has_it()
        if over is not None:
            self.step(
                "has_it", False, "has_not", score=self.told("base"), **self.against("base", over)
            )
        else:
            self.step("has_it", False, "has_not_alone", score=self.told("base"))
        return None

    def _has_it(self) -> Verdict:
        """The model knows it. Where its answers lack the form of the rows: do examples in the
        prompt give it, and keep what it knows? Training for the form alone is a remark: what is
        said is right already."""
        f = self.f
        form = f.forms.get("base")
        if form is None or form.value >= f.scores["base"].value - MATERIAL:
            return self.end("has_it", "base", "has_it", score=self.told("base"))

        def gives_form(way: str) -> bool:
            """Whether a way writes the form of the rows and knows no less."""
            gain = f.form_gain("base", way)
            return gain is not None and gain.is_real and not self.beats("base", way)

        ways = [way for way in PROMPTS if gives_form(way)]
        few = max(ways, key=lambda way: f.forms[way].value, default=None)
        if few is not None:
            fields = {"before": told(form), "after": told(f.forms[few])}
            return self.end("has_it", few, "form_by_prompt", score=self.told("base"), **fields)
        if gives_form("lora"):
            self.remarks.append(say("advise.remark.form", after=told(f.forms["lora"])))
        return self.end("has_it", "base", "form_is_other", score=self.told("base"), form=told(form))

    def classifier(self) -> Verdict | None:
        """Are the answers a few labels that a classifier without a language model gives as well?"""
        f = self.f
        if not f.labels or not {"classes", "constant"} <= f.scores.keys():
            self.step("classifier", None, "no_labels")
            return None
        models = self.best(ASKED)
        chance = self.beats("classes", "constant")
        good = chance and self.beaten_by("classes", ASKED) is None
        if not good:
            over = models if models and self.beats(models, "classes") else "constant"
            key = "no_classifier" if over == models else "no_classifier_chance"
            self.step("classifier", False, key, **self.against("classes", over))
            return None
        fields = {"score": self.told("classes"), "models": self.told(str(models))}
        fields["way"] = say(f"advise.way.{models}")
        self.step("classifier", True, "classifier", **fields)
        return self.end("no_model", "classes", "classifier", **fields)

    def table(self) -> Verdict | None:
        """Do queries of the table answer, whether the model writes them already or not?"""
        f = self.f
        if not f.has_tables:
            self.step("table", None, "no_table")
            return None
        query = self.best(QUERIES)
        over = self.best(ASKED)
        if query is not None and self.beats(query, "base"):
            rival = self.beaten_by(query, ASKED)
            if rival is None:
                fields = self.against("base", query)
                self.step("table", True, "table", reached=self._reached(), **fields)
                return self.end("query", query, "query", reached=self._reached(), **fields)
            self.step("table", False, "table_beaten", **self.against(query, rival))
            return None
        # Nobody here writes the query, but the answers are there: that is what counts.
        there = f.reached_gain is not None and f.reached_gain.is_real and f.reached is not None
        if (
            there
            and f.reached is not None
            and over is not None
            and f.reached.low > f.scores[over].high
        ):
            fields = {"reached": told(f.reached), "score": self.told(over)}
            self.step("table", True, "table_reached", **fields)
            return self.end("query", query or "sql", "query_unwritten", **fields)
        self.step("table", False, "table_not", reached=self._reached(), base=self.told("base"))
        return None

    def _reached(self) -> str:
        """The share of answers that some query gives."""
        return told(self.f.reached) if self.f.reached is not None else "-"

    def knowledge(self) -> Verdict | None:
        """Is knowledge missing that passages hold?"""
        f = self.f
        reading = ("rag",) if f.has_documents else ("rag", "few_retrieved")
        rag = self.best(reading)
        if rag is None or (f.labels and not f.has_documents):
            self.step("knowledge", None, "no_reading")
            return None
        if f.found is None:
            # Yes or no, say: nothing in the answer can be looked up, but reading may decide it.
            prompts = self.best(("base", *PROMPTS)) or "base"
            if f.has_documents and self.beats(rag, prompts):
                fields = self.against(prompts, rag)
                self.step("knowledge", True, "read", **fields)
                return self._knowledge(rag, fields)
            self.step("knowledge", False, "nothing_beyond")
            return None
        if f.found_gain is None or not f.found_gain.is_real:
            fields = {"found": told(f.found), "beyond": percent(f.beyond)}
            self.step("knowledge", False, "not_in_passages", **fields)
            return None
        without = self.best(("base", "few_fixed")) or "base"
        fields = {"found": told(f.found), **self.against(without, rag)}
        if self.beats(rag, without):
            self.step("knowledge", True, "in_passages", **fields)
            return self._knowledge(rag, fields)
        rival = self.best(way for way in ASKED if way not in reading and way != "lora_rag")
        if rival is not None and f.found.low > f.scores[rival].high:
            # The passages hold the answers and nothing else gives them: a better reader is needed.
            fields["score"] = self.told(rag)
            self.step("knowledge", True, "in_passages_unread", **fields)
            return self.end("rag", rag, "rag_unread", **fields)
        self.step("knowledge", False, "passages_do_not_help", **fields)
        return None

    def _knowledge(self, rag: str, fields: dict[str, Any]) -> Verdict:
        """The knowledge is missing, and passages give it: read them, or learn it?"""
        f = self.f
        tuned = "lora" if "lora" in f.scores else None
        if f.changes is None:
            self.assumed.append(say("advise.assumed.changes"))
        both = "lora_rag" if "lora_rag" in f.scores else None
        learnt = tuned is not None and self.beats(tuned, "base") and not self.beats(rag, tuned)
        many = f.rows >= MANY_ROWS
        may_train = f.changes == "rarely" or (f.changes is None and (many or not f.has_documents))
        if tuned is not None and learnt and not self.beats(both, tuned):
            better, stays = self.beats(tuned, rag), f.changes == "rarely" and many
            if may_train and (better or stays):
                sides = self.against(rag, tuned)
                return self.end("stable", "lora", "stable", rows=f.rows, **sides)
            if better:
                self.remarks.append(say("advise.remark.trained", score=self.told(tuned)))
        if both is not None and self.beats(both, rag) and not self.beats(tuned, both):
            return self.end("rag_and_tune", "lora_rag", "rag_and_tune", **self.against(rag, both))
        if tuned is None:
            return self.end("rag", rag, "rag_alone", **fields)
        return self.end("rag", rag, "rag", lora=self.told(tuned), **fields)

    def prompt(self) -> Verdict | None:
        """Do examples in the prompt do it, and does training do no better?"""
        few = self.best(PROMPTS)
        if few is None:
            self.step("prompt", None, "no_prompt")
            return None
        if not self.beats(few, "base"):
            self.step("prompt", False, "prompt_not", **self.against("base", few))
            return None
        tuned = self.beaten_by(few, TRAINED)
        fields = self.against("base", few)
        if tuned is not None:
            self.step("prompt", False, "prompt_beaten", **self.against(few, tuned))
            return None
        self.step("prompt", True, "prompt", **fields)
        lora = self.told("lora") if "lora" in self.f.scores else say("advise.not_measured")
        form = "_form" if self.f.beyond < HALF else ""
        return self.end("format", few, f"prompt{form}", lora=lora, **fields)

    def tune(self) -> Verdict | None:
        """Does training do it?"""
        tuned = self.best(TRAINED)
        before = self.best(WITHOUT_TRAINING) or "base"
        if tuned is None:
            self.step("tune", None, "no_training")
            return None
        if not self.beats(tuned, before):
            self.step("tune", False, "tune_not", **self.against(before, tuned))
            return None
        fields = self.against(before, tuned)
        self.step("tune", True, "tune", **fields)
        form = "_form" if self.f.beyond < HALF else ""
        return self.end("format", tuned, f"tune{form}", **fields)

    def nothing(self) -> Verdict:
        """No branch applies."""
        best = self.best((*ASKED, *QUERIES)) or "base"
        lacks = [way for way in ("few_fixed", "rag", "lora") if way not in self.f.scores]
        if lacks:
            names = ", ".join(say(f"advise.way.{way}") for way in lacks)
            self.remarks.append(say("advise.remark.lacks", ways=names))
        fields = {"way": say(f"advise.way.{best}"), "score": self.told(best)}
        return self.end("nothing", best, "nothing", **fields)

    # ---- beside the verdict

    def remark_on(self, found: Verdict) -> None:
        """What a person should know besides."""
        f = self.f
        classes = f.scores.get("classes") if f.labels else None
        if (
            found.branch != "no_model"
            and classes is not None
            and self.beats("classes", "constant")
            and not self.beats(found.way, "classes")
            and not self.beats("classes", found.way)
        ):
            self.remarks.append(say("advise.remark.classifier", score=told(classes)))
        if found.branch == "has_it" and _is_good(f, "base"):
            self.remarks.append(say("advise.remark.smaller", score=self.told("base")))
        prompts = found.way in (*PROMPTS, "rag")
        many = f.users is not None and f.users >= MANY_USERS
        if prompts and many and "lora" in f.scores and not self.beats(found.way, "lora"):
            self.remarks.append(say("advise.remark.users", users=f"{f.users:,}"))
        if found.branch == "stable" and f.rows < MANY_ROWS:
            self.remarks.append(say("advise.remark.few_rows", rows=f.rows))
        if f.users is None and prompts:
            self.assumed.append(say("advise.assumed.users"))
