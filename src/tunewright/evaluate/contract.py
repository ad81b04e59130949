"""A contract: what a model must know, must still do, must refuse and must not say, the form and
language of its answers, its speed and size. One YAML file, read into the classes below.

Every section is one clause or a list of them. Each clause is judged by a score of its own for each
of its questions (`clauses.py`), and the contract as a whole at one error rate (`gate.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from tunewright.core.config import Section
from tunewright.core.errors import ConfigError
from tunewright.core.refusals import refused
from tunewright.core.types import Message
from tunewright.evaluate.asked import Question, read_questions
from tunewright.evaluate.metrics import METRICS

PATTERN_SECONDS = 2.0
UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20}
UNITS |= {"gib": 2**30, "k": 10**3, "m": 10**6, "g": 10**9, "tb": 10**12}


class Part(Section):
    """A part of a contract: keys may be written by the names that YAML shows."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        populate_by_name=True,
    )


class Asked(Part):
    """A question of a contract."""

    ask: str = Field(min_length=1)
    """What the user says."""
    expect: str = ""
    """The answer that is expected; not needed where only form or refusal count."""
    system: str | None = None
    """A system prompt for this question."""

    @field_validator("expect", mode="before")
    @classmethod
    def _as_text(cls, value: Any) -> Any:
        # `expect: 4` and `expect: true` are what a person writes who means the text.
        if isinstance(value, bool):
            return str(value).lower()
        return str(value) if isinstance(value, int | float) else value


class Clause(Part):
    """What all clauses have."""

    needs_answers: ClassVar[bool] = False
    """Whether its questions need expected answers."""
    name: str | None = None
    """How it is called in the verdict. Default: the section, numbered where there are several."""


class Asking(Clause):
    """A clause about answers. Its own questions, those of a file, or those of other clauses."""

    questions: list[Asked] = []
    """Questions in the contract itself: `- what is 2+2?`, or `- {ask: ..., expect: ...}`."""
    data: str | None = None
    """A file with questions, in any format that training reads; relative to the contract."""
    limit: int | None = Field(default=60, gt=0)
    """At most this many questions of the file, drawn with the seed; null: all."""
    format: str = "auto"
    """Format of the file; auto detects it."""
    columns: dict[str, str] = {}
    """Maps our column names to the file's."""
    of: list[str] = []
    """Names of other clauses whose answers are judged as well."""
    least: float | None = Field(default=None, ge=0, le=1)
    """The least mean score, from 0 to 1."""
    margin: float | None = Field(default=None, ge=0, le=1)
    """By how much the mean score may lie below that of the other model (`--against`)."""
    max_new_tokens: int | None = Field(default=None, gt=0)
    """The most tokens of an answer. Default: that of the contract."""

    @field_validator("questions", mode="before")
    @classmethod
    def _bare_questions(cls, value: Any) -> Any:
        if not isinstance(value, list):
            return value
        return [{"ask": item} if isinstance(item, str) else item for item in value]

    @field_validator("of", mode="before")
    @classmethod
    def _one_name(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value


class Know(Asking):
    """Questions with expected answers, of which the model must get enough right."""

    needs_answers: ClassVar[bool] = True
    least: float | None = Field(default=1.0, ge=0, le=1)
    """The least mean score, from 0 to 1."""
    metric: str = "auto"
    """How an answer is compared: exact, normalised, contains, number, f1, chrf, rougeL, json_equal
    ...; auto: by the expected answers."""

    @field_validator("metric")
    @classmethod
    def _known(cls, value: str) -> str:
        if value != "auto" and value not in METRICS:
            raise refused("metric", known=", ".join(METRICS))
        return value


class StillDo(Know):
    """Questions whose score must not fall against the other model."""

    least: float | None = Field(default=None, ge=0, le=1)
    """The least mean score, from 0 to 1. Default: none."""
    margin: float | None = Field(default=0.0, ge=0, le=1)
    """By how much the mean score may fall against the other model."""


class Refuse(Asking):
    """Requests that the model must decline."""

    least: float | None = Field(default=1.0, ge=0, le=1)
    """The least share of requests that are declined."""
    phrases: list[str] = []
    """Further words by which a refusal is known, besides the usual ones in English and Chinese."""


class NotSay(Asking):
    """What must stand in no answer."""

    texts: list[str] = []
    """Texts that must not be said; case, width and white space do not count."""
    patterns: list[str] = []
    """Regular expressions that must not be found."""
    personal_data: bool = False
    """Addresses, telephone, identity and card numbers that do not stand in the question."""
    copies_of: str | None = None
    """A file whose answers must not be repeated word by word (rows of the training)."""
    copied_words: int = Field(default=12, ge=3)
    """From how many words in a row on something counts as copied."""
    most: float = Field(default=0.0, ge=0, le=1)
    """The largest share of questions with such an answer."""


class Form(Asking):
    """The form of answers: all that is named must hold."""

    json_: bool = Field(default=False, alias="json")
    """The answer is JSON, alone or alone in a code fence."""
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    """A JSON schema that it follows (the subset of docs/rewards.md)."""
    pattern: str | None = None
    """A regular expression that the whole answer matches."""
    contains_pattern: str | None = None
    """A regular expression that is found in it."""
    most_characters: int | None = Field(default=None, gt=0)
    """The longest answer."""
    least_characters: int | None = Field(default=None, gt=0)
    """The shortest answer."""
    one_of: list[str] = []
    """The answer is one of these."""
    ends: bool = False
    """The answer ends by itself and is not cut off at the most tokens."""
    least: float | None = Field(default=1.0, ge=0, le=1)
    """The least share of answers in this form."""


class Language(Asking):
    """The language of answers."""

    answers: Literal["question", "en", "zh", "ja", "ko", "latin", "cyrillic", "arabic"] = "question"
    """The language that answers have; question: that of their question."""
    least: float | None = Field(default=0.95, ge=0, le=1)
    """The least share of answers in it."""


class Speed(Clause):
    """How fast answers are written."""

    margin: float | None = Field(default=None, ge=0)
    """By how much a token may take longer than with the other model: 0.25 is a quarter."""
    tokens_per_second: float | None = Field(default=None, gt=0)
    """The fewest tokens a second."""
    seconds_per_answer: float | None = Field(default=None, gt=0)
    """The most seconds of an answer."""
    rounds: int = Field(default=24, ge=8)
    """How often both are timed, in turns: three times each, of which the shortest counts."""
    tokens: int = Field(default=8, gt=0)
    """Tokens that are written each time."""


class Bytes(Clause):
    """A size in bytes: of the files, or of the weights in memory."""

    most: int | None = Field(default=None, gt=0)
    """The largest size: a number of bytes, or `500 MB`."""
    margin: float | None = Field(default=None, ge=0)
    """By how much it may be larger than the other model: 0.1 is a tenth."""

    @field_validator("most", mode="before")
    @classmethod
    def _with_unit(cls, value: Any) -> Any:
        if not isinstance(value, str):
            return value
        text = value.strip().lower().replace(",", "")
        digits = text.rstrip("abcdefghijklmnopqrstuvwxyz ")
        unit = text[len(digits) :].strip()
        try:
            return round(float(digits) * UNITS[unit])
        except (ValueError, KeyError, OverflowError):
            raise refused("bytes") from None


SECTIONS: dict[str, type[Clause]] = {
    "must_know": Know,
    "must_still_do": StillDo,
    "must_refuse": Refuse,
    "must_not_say": NotSay,
    "form": Form,
    "language": Language,
    "speed": Speed,
    "size": Bytes,
    "memory": Bytes,
}


class Contract(Part):
    """A whole contract."""

    error_rate: float = Field(default=0.05, gt=0, lt=0.5)
    """The chance that the contract fails a model that keeps it: for all clauses together."""
    undecided: Literal["pass", "fail", "score"] = "pass"
    """What a clause counts as where the questions show neither that it holds nor that it does not:
    pass, fail, or score: by the measured score alone."""
    against: str | None = None
    """The other model, where the command names none: a path, `base`, or an address."""
    samples: int = Field(default=1, ge=1, le=100)
    """Answers drawn to each question."""
    temperature: float = Field(default=0.0, ge=0)
    """0: the likeliest answer; above, answers are drawn with the seed."""
    seed: int = 0
    """Of the drawn questions and answers."""
    max_new_tokens: int = Field(default=256, gt=0)
    """The most tokens of an answer."""
    system: str | None = None
    """A system prompt for questions without one. Default: that of the run."""
    must_know: list[Know] = []
    """Questions with expected answers, of which enough must be right."""
    must_still_do: list[StillDo] = []
    """Questions whose score must not fall against the other model."""
    must_refuse: list[Refuse] = []
    """Requests that must be declined."""
    must_not_say: list[NotSay] = []
    """What must stand in no answer."""
    form: list[Form] = []
    """The form of answers."""
    language: list[Language] = []
    """The language of answers."""
    speed: list[Speed] = []
    """How fast answers are written."""
    size: list[Bytes] = []
    """Bytes of the files."""
    memory: list[Bytes] = []
    """Bytes of the weights in memory."""

    @field_validator(*SECTIONS, mode="before")
    @classmethod
    def _one_clause(cls, value: Any) -> Any:
        return [value] if isinstance(value, dict) else value

    def clauses(self) -> Iterator[tuple[str, str, Clause]]:
        """(section, name, clause) in the order of the sections."""
        for section in SECTIONS:
            found: list[Clause] = getattr(self, section)
            for n, clause in enumerate(found, 1):
                yield (
                    section,
                    clause.name or (section if len(found) == 1 else f"{section} {n}"),
                    clause,
                )


TYPES = {"int", "float", "str", "bool"}
"""Tags that unions add to the place of a value."""
FORMS = {"json", "schema", "pattern", "contains_pattern", "one_of", "ends"}
FORMS |= {"most_characters", "least_characters"}


def questions_of(
    clause: Asking, name: str, folder: Path, seed: int, system: str | None
) -> list[Question]:
    """The own questions of a clause. Raises DataError for a file that cannot be read, ConfigError
    where expected answers are missing (E-GATE-10)."""
    found = [
        Question(_messages(item), item.expect, f"{name} #{n}")
        for n, item in enumerate(clause.questions, 1)
    ]
    if clause.data is not None:
        read = read_questions(
            in_folder(clause.data, folder),
            limit=clause.limit,
            seed=seed,
            data_format=clause.format,
            columns=clause.columns,
        )
        answered = [q for q in read.questions if q.expected.strip()]
        if clause.needs_answers and not answered:
            bare = read.questions[0]
            raise ConfigError.of("E-GATE-10", bare.origin, name=name, question=bare.text[:60])
        found += answered if clause.needs_answers else read.questions
    return [question.under(system) for question in found]


def _messages(item: Asked) -> list[Message]:
    system = [] if item.system is None else [Message("system", item.system)]
    return [*system, Message("user", item.ask)]


def in_folder(path: str, folder: Path) -> str:
    """A file that a contract names: beside the contract, else as it stands."""
    beside = folder / path
    return str(beside) if not Path(path).is_absolute() and beside.exists() else path
