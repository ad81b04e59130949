"""The form of an answer: JSON that follows a schema, or a template of tags."""

from __future__ import annotations

import json
import re
from typing import Any

from pydantic import Field

from tunewright.core.config import Section
from tunewright.core.errors import ConfigError, problem
from tunewright.core.registry import rewards
from tunewright.core.types import Answer
from tunewright.core.words import say
from tunewright.rewards import schema
from tunewright.rewards.base import RewardFunction, TextConfig, UnfitRow, each, short, text_of

_FENCE = re.compile(r"\A```[A-Za-z]*[ \t]*\n(.*)\n```\Z", re.DOTALL)
_PIECES = re.compile(r"<[^<>\s][^<>]*>|\.\.\.|\s+|[^<\s.]+|.", re.DOTALL)
MOST_NUMBER = 4000
"""Digits of a whole number; Python refuses to read longer ones."""


class JsonSchemaConfig(TextConfig):
    """1 where the answer is valid JSON and follows a schema, else 0. Without a schema, valid JSON
    is enough."""

    rule: dict[str, Any] | None = Field(default=None, alias="schema")
    """The schema, in the subset of JSON Schema that docs/rewards.md lists; a keyword outside of it
    is an error, never ignored. Default: the row's own."""
    column: str = "schema"
    """Column of the row that holds its schema (a mapping, or JSON as text), if none is given
    here."""
    fenced: bool = True
    """Accept JSON that stands alone in a Markdown code fence."""


class FormatConfig(Section):
    """1 where the answer has the form of a template, else 0."""

    template: str = "<think>...</think><answer>...</answer>"
    """Tags and words in order; `...` stands for any text that is not empty. Every tag must occur in
    the answer exactly once; white space around tags is free."""
    partial: bool = False
    """If the template is missed, give half of the share of its tags that occur exactly once and in
    order."""


def parse_json(text: str) -> Any:
    """The value of a JSON text as the standard has it. Raises ValueError for anything else: NaN,
    trailing words, nesting without end."""

    def refuse(word: str) -> Any:
        raise ValueError(word)

    def whole(digits: str) -> int | float:
        return int(digits) if len(digits) <= MOST_NUMBER else float(digits)

    try:
        return json.loads(text, parse_constant=refuse, parse_int=whole)
    except RecursionError as e:
        raise ValueError("nesting") from e


def json_value(text: str, *, fenced: bool = True) -> Any:
    """The value of an answer that is JSON, alone or (`fenced`) alone in a Markdown code fence.
    Raises ValueError for anything else."""
    fence = _FENCE.match(text.strip()) if fenced else None
    return parse_json(fence[1] if fence else text)


@rewards.register("json_schema", JsonSchemaConfig, needs="schema")
def json_schema(config: JsonSchemaConfig) -> RewardFunction:
    """1 or 0 an answer. Raises ConfigError for a schema outside of the subset."""
    if config.rule is not None:
        faults = schema.faults(config.rule)
        if faults:
            raise ConfigError(
                [
                    problem("E-REWARD-12", "schema", place=place or "schema", fault=fault)
                    for place, fault in faults
                ]
            )

    def rule_of(answer: Answer) -> Any:
        if config.rule is not None:
            return config.rule
        found = answer.facts.get(config.column)
        if isinstance(found, str):
            try:
                found = parse_json(found)
            except ValueError as e:
                raise UnfitRow(
                    say("rewards.why.column", column=config.column, value=short(found))
                ) from e
        faults = schema.faults(found) if found is not None else []
        if faults:
            raise UnfitRow(
                say(
                    "rewards.why.schema",
                    column=config.column,
                    place=faults[0][0] or config.column,
                    fault=faults[0][1],
                )
            )
        return found

    def judge(answer: Answer) -> float:
        rule = rule_of(answer)
        text = text_of(answer, config.inside)
        if text is None:
            return 0.0
        try:
            value = json_value(text, fenced=config.fenced)
            return float(rule is None or schema.follows(value, rule))
        except (ValueError, RecursionError):
            return 0.0

    return each(judge)


class Template:
    """A template as blocks of literals (white space between them is free) with gaps before, between
    or after the blocks."""

    def __init__(self, template: str):
        """Raises ValueError for a template without a gap, without a tag or with one tag twice."""
        blocks: list[list[str]] = []
        gap = True
        for piece in _PIECES.findall(template):
            if piece == "...":
                gap = True
            elif not piece.isspace():
                if gap:
                    blocks.append([])
                blocks[-1].append(piece)
                gap = False
        inner = template.strip()
        self.opens, self.ends = inner.startswith("..."), inner.endswith("...")
        self.tags = [
            one
            for block in blocks
            for one in block
            if one.startswith("<") and one.endswith(">") and len(one) > 2
        ]
        if not self.tags or (len(blocks) == 1 and not self.opens and not self.ends):
            raise ValueError(say("rewards.template.empty"))
        if len(set(self.tags)) < len(self.tags):
            raise ValueError(say("rewards.template.twice"))
        self.blocks = [re.compile(r"\s*".join(map(re.escape, block))) for block in blocks]
        self.last = re.compile(self.blocks[-1].pattern + r"\Z")

    def fits(self, text: str) -> bool:
        """Whether a text has this form. Every block is looked for once, from left to right: no text
        makes it slow."""
        if any(text.count(tag) != 1 for tag in self.tags):
            return False
        text, blocks, place = text.strip(), list(self.blocks), 0
        end = len(text)
        if not self.opens:
            found = blocks.pop(0).match(text)
            if not found:
                return False
            place = found.end()
        if not self.ends:
            blocks.pop()
            found = self.last.search(text, place)
            if not found:
                return False
            end = found.start()
        for block in blocks:
            gap = re.compile(r"\S").search(text, place, end)
            found = block.search(text, gap.end(), end) if gap else None
            if not found:
                return False
            place = found.end()
        return bool(text[place:end].strip())

    def share(self, text: str) -> float:
        """Share of the tags that stand exactly once and after the one before."""
        place, right = 0, 0
        for tag in self.tags:
            found = text.find(tag, place)
            if found >= 0 and text.count(tag) == 1:
                right, place = right + 1, found + len(tag)
        return right / len(self.tags)


@rewards.register("format", FormatConfig)
def form(config: FormatConfig) -> RewardFunction:
    """From 0 to 1 an answer. Raises ConfigError for a template that says nothing."""
    try:
        template = Template(config.template)
    except ValueError as e:
        raise ConfigError(
            problem("E-REWARD-13", "template", template=short(config.template), fault=str(e))
        ) from e

    thinks = "think>" in config.template

    def judge(answer: Answer) -> float:
        text = answer.whole if thinks else answer.text
        if template.fits(text):
            return 1.0
        return template.share(text) / 2 if config.partial else 0.0

    return each(judge)
