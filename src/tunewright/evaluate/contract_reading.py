"""A contract file read: what in it cannot be meant is said, all of it at once, with the line."""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from tunewright.core.errors import ConfigError, Problem, problem, raise_all
from tunewright.core.refusals import reason_of
from tunewright.core.runfile import read_mapping
from tunewright.evaluate.contract import (
    FORMS,
    PATTERN_SECONDS,
    SECTIONS,
    TYPES,
    Asked,
    Asking,
    Bytes,
    Clause,
    Contract,
    Form,
    Language,
    NotSay,
    Speed,
)
from tunewright.rewards import schema
from tunewright.rewards.patterns import PatternError, matches


def load(path: Path) -> Contract:
    """Read a contract. Raises ConfigError with everything that is wrong in it, or for a file that
    is not there (E-GATE-17)."""
    if not path.is_file():
        new = "contract.yaml" if path.is_dir() else path
        raise ConfigError(problem("E-GATE-17", str(path), file=path, new=new))
    content, node = read_mapping(path)
    raise_all(_twice(node, path.name), ConfigError)
    return parse(content, path.name, _places(node))


def parse(content: dict[str, Any], name: str = "contract", places: Any = None) -> Contract:
    """A contract from plain values. `places` says which line a key stands in. Raises
    ConfigError."""
    where = _Where(name, places or {})
    raise_all(_unknown(content, where), ConfigError)
    try:
        contract = Contract.model_validate(content)
    except ValidationError as e:
        raise ConfigError(_wrong_values(e, where)) from e
    raise_all(_senseless(contract, where), ConfigError)
    return contract


class _Where:
    """`contract.yaml, line 9` of a key."""

    def __init__(self, name: str, lines: dict[tuple[str | int, ...], int]):
        self.name, self.lines = name, lines

    def of(self, *key: str | int) -> str:
        while key and key not in self.lines:
            key = key[:-1]
        return f"{self.name}, line {self.lines[key]}" if key else self.name


def _twice(node: yaml.Node | None, name: str) -> list[Problem]:
    """Keys that stand twice, of which YAML would keep the last without a word."""
    found: list[Problem] = []
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if key.value in seen:
                fields = {"field": key.value, "line": seen[key.value]}
                found.append(problem("E-CONFIG-06", f"{name}, line {line}", **fields))
            seen[key.value] = line
            found += _twice(value, name)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            found += _twice(value, name)
    return found


def _places(
    node: yaml.Node | None, at: tuple[str | int, ...] = ()
) -> dict[tuple[str | int, ...], int]:
    """Key -> 1-based line, through mappings and lists."""
    found: dict[tuple[str | int, ...], int] = {}
    inside: list[tuple[str | int, int, yaml.Node]] = []
    if isinstance(node, yaml.MappingNode):
        inside = [(str(k.value), k.start_mark.line, value) for k, value in node.value]
    elif isinstance(node, yaml.SequenceNode):
        inside = [(n, value.start_mark.line, value) for n, value in enumerate(node.value)]
    for name, line, value in inside:
        key = (*at, name)
        found[key] = line + 1
        found |= _places(value, key)
    return found


def _names(model: type[BaseModel]) -> list[str]:
    return [info.alias or name for name, info in model.model_fields.items()]


def _unknown(content: dict[str, Any], where: _Where) -> list[Problem]:
    """Keys that nobody knows, each with a guess."""
    found = _strange(content, Contract, (), where)
    for section, model in SECTIONS.items():
        value = content.get(section)
        clauses = value if isinstance(value, list) else [value]
        for n, clause in enumerate(clauses):
            at: tuple[str | int, ...] = (section, n) if isinstance(value, list) else (section,)
            if not isinstance(clause, dict):
                continue
            found += _strange(clause, model, at, where)
            asked = clause.get("questions")
            for i, item in enumerate(asked if isinstance(asked, list) else []):
                if isinstance(item, dict):
                    found += _strange(item, Asked, (*at, "questions", i), where)
    return found


def _strange(
    content: dict[str, Any], model: type[BaseModel], at: tuple[str | int, ...], where: _Where
) -> list[Problem]:
    known = _names(model)
    found = []
    for key in map(str, content):
        if key in known:
            continue
        guess = difflib.get_close_matches(key, known, n=1, cutoff=0.6)
        place = where.of(*at, key)
        shown = ".".join(str(part) for part in (*at, key) if not isinstance(part, int))
        if guess:
            found.append(problem("E-GATE-01", place, field=shown, guess=guess[0]))
        else:
            found.append(problem("E-GATE-02", place, field=shown, known=", ".join(known)))
    return found


def _wrong_values(error: ValidationError, where: _Where) -> list[Problem]:
    found: dict[str, Problem] = {}
    for item in error.errors():
        at = [p for p in item["loc"] if not (isinstance(p, str) and ("[" in p or p in TYPES))]
        key = ".".join(str(part) for part in at if not isinstance(part, int))
        place = where.of(*at) if tuple(at) in where.lines else where.of(*(p for p in at if p != 0))
        reason = reason_of(item)
        value = None if item["type"] == "missing" else item.get("input")
        wrong = problem("E-GATE-03", place, field=key, value=repr(value)[:80], reason=reason)
        found.setdefault(f"{place} {key}", wrong)
    return list(found.values())


def _senseless(contract: Contract, where: _Where) -> list[Problem]:
    """What every key allows and no contract can mean."""
    clauses = list(contract.clauses())
    if not clauses:
        return [problem("E-GATE-04", where.name, known=", ".join(SECTIONS))]
    found = []
    names = [name for _, name, _ in clauses]
    for name, count in Counter(names).items():
        if count > 1:
            found.append(problem("E-GATE-05", where.name, name=name))
    asking = {name for _, name, clause in clauses if _asks(clause)}
    for section, name, clause in clauses:
        place = where.of(section)
        if isinstance(clause, Asking):
            found += _about_questions(name, clause, asking, place)
        for fault in _empty(clause):
            found.append(problem("E-GATE-06", place, name=name, missing=fault))
        found += _about_patterns(name, clause, place)
    if contract.temperature == 0 and contract.samples > 1:
        found.append(problem("E-GATE-07", where.of("samples"), samples=contract.samples))
    return found


def _asks(clause: Clause) -> bool:
    return isinstance(clause, Asking) and bool(clause.questions or clause.data)


def _about_questions(name: str, clause: Asking, asking: set[str], place: str) -> list[Problem]:
    found = []
    unknown = [other for other in clause.of if other not in asking]
    if unknown:
        known = ", ".join(sorted(asking)) or "-"
        found.append(
            problem("E-GATE-08", place, name=name, unknown=", ".join(unknown), known=known)
        )
    own = _asks(clause) or bool(clause.of)
    may_borrow = isinstance(clause, NotSay | Form | Language)
    if not own and not (may_borrow and asking):
        found.append(problem("E-GATE-09", place, name=name))
    if clause.needs_answers:
        bare = [q.ask for q in clause.questions if not q.expect.strip()]
        if bare:
            found.append(problem("E-GATE-10", place, name=name, question=bare[0][:60]))
    return found


def _empty(clause: Clause) -> list[str]:
    """What a clause would have to say to mean anything."""
    if isinstance(clause, NotSay) and not (
        clause.texts or clause.patterns or clause.personal_data or clause.copies_of
    ):
        return ["texts, patterns, personal_data, copies_of"]
    if isinstance(clause, NotSay) and not all(text.strip() for text in clause.texts):
        return ["texts"]
    if isinstance(clause, Form) and not (set(_given(clause)) & FORMS):
        return [", ".join(sorted(FORMS))]
    if isinstance(clause, Speed) and not (
        clause.margin is not None or clause.tokens_per_second or clause.seconds_per_answer
    ):
        return ["margin, tokens_per_second, seconds_per_answer"]
    if isinstance(clause, Bytes) and clause.most is None and clause.margin is None:
        return ["most, margin"]
    if (
        isinstance(clause, Asking)
        and not isinstance(clause, NotSay)
        and (clause.least is None and clause.margin is None)
    ):
        return ["least, margin"]
    return []


def _given(clause: Form) -> list[str]:
    return [
        info.alias or name
        for name, info in Form.model_fields.items()
        if getattr(clause, name) not in (None, False, [])
    ]


def _about_patterns(name: str, clause: Clause, place: str) -> list[Problem]:
    found = []
    patterns: list[str] = []
    if isinstance(clause, NotSay):
        patterns = clause.patterns
    elif isinstance(clause, Form):
        patterns = [p for p in (clause.pattern, clause.contains_pattern) if p is not None]
        for at, fault in schema.faults(clause.schema_) if clause.schema_ is not None else []:
            found.append(problem("E-GATE-12", place, name=name, place=at or "schema", fault=fault))
    for pattern in patterns:
        try:
            matches(pattern, "", "search", 0, PATTERN_SECONDS)
        except PatternError as e:
            found.append(problem("E-GATE-11", place, name=name, cause=e))
    return found
