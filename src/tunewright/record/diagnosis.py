"""A finding of the doctor, the file that holds them, and its lines for people."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from tunewright.core.files import write_json
from tunewright.core.words import say

VERSION = 1
FILE = "doctor.json"
NAMED = 6
"""Checks without figures that a terminal names."""
Severity = Literal["bad", "warn", "info"]
ORDER: tuple[Severity, ...] = ("bad", "warn", "info")


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `code` names its sentences, `doctor.<code>.*`; `evidence` are the
    figures that they speak of."""

    code: str
    severity: Severity
    evidence: dict[str, Any] = field(default_factory=dict)

    def name(self, lang: str | None = None) -> str:
        """Two or three words for a heading."""
        return say(f"doctor.{self.code}.name", lang)

    def what(self, lang: str | None = None) -> str:
        """What was seen, with the figures."""
        return say(f"doctor.{self.code}.what", lang, **self._spoken())

    def cause(self, lang: str | None = None) -> str:
        """Why that happens."""
        return say(f"doctor.{self.code}.cause", lang, **self._spoken())

    def remedy(self, lang: str | None = None) -> str:
        """What to change."""
        return say(f"doctor.{self.code}.do", lang, **self._spoken())

    def as_dict(self) -> dict[str, Any]:
        """For JSON; the sentences in the reader's language."""
        return {
            "code": self.code,
            "name": self.name(),
            "severity": self.severity,
            "evidence": self.evidence,
            "what": self.what(),
            "cause": self.cause(),
            "remedy": self.remedy(),
        }

    @classmethod
    def of_dict(cls, told: Mapping[str, Any]) -> Finding:
        """What `as_dict` gave. Raises KeyError, TypeError or ValueError for something else."""
        if told["severity"] not in ORDER or not isinstance(told["evidence"], dict):
            raise ValueError(told)
        return cls(str(told["code"]), told["severity"], dict(told["evidence"]))

    def _spoken(self) -> dict[str, str]:
        return {name: spoken(name, value) for name, value in self.evidence.items()}


def spoken(name: str, value: Any) -> str:
    """A figure as a sentence has it: a `..._share` in per cent, a rate short, a list joined."""
    if isinstance(value, bool) or value is None:
        return str(value).lower() if value is not None else "-"
    if isinstance(value, list | tuple):
        return ", ".join(spoken("", one) for one in value)
    if isinstance(value, int):
        return f"{value:,}"
    if not isinstance(value, float):
        return str(value)
    if name.endswith("share"):
        return f"{100 * value:.0f} %" if value >= 0.0995 or not value else f"{100 * value:.2g} %"
    text = f"{value:.3g}"
    mantissa, e, exponent = text.partition("e")
    return f"{mantissa}e{int(exponent)}" if e else text


@dataclass(frozen=True)
class Examination:
    """What the rules found, the worst first, and which of them could be asked."""

    findings: Sequence[Finding]
    checked: Sequence[str]
    unchecked: Sequence[str] = ()

    @property
    def is_bad(self) -> bool:
        """Whether something is wrong that makes the training worthless."""
        return any(finding.severity == "bad" for finding in self.findings)

    def as_dict(self) -> dict[str, Any]:
        """For JSON and for the file."""
        return {
            "version": VERSION,
            "findings": [finding.as_dict() for finding in self.findings],
            "checked": list(self.checked),
            "unchecked": list(self.unchecked),
        }

    def write(self, run: Path) -> None:
        """Write `doctor.json` into a run folder."""
        write_json(run / FILE, self.as_dict())


def read(run: Path) -> Examination | None:
    """The examination that stands in a run folder; None where there is none that can be read."""
    try:
        told = json.loads((run / FILE).read_text(encoding="utf-8"))
        findings = [Finding.of_dict(one) for one in told["findings"]]
        checked, unchecked = told["checked"], told.get("unchecked", ())
        return Examination(findings, [str(one) for one in checked], [str(one) for one in unchecked])
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def lines(name: str, examination: Examination) -> list[str]:
    """An examination for a terminal."""
    checked, left = len(examination.checked), len(examination.unchecked)
    key = "doctor.nothing" if not examination.findings else "doctor.found"
    head = say(key, name=name, checked=checked, count=len(examination.findings))
    out = [head]
    for finding in examination.findings:
        tone = say(f"doctor.severity.{finding.severity}")
        out += [
            "",
            f"{tone}  {finding.code}  {finding.name()}",
            f"  {say('doctor.label.evidence')}{finding.what()}",
            f"  {say('doctor.label.cause')}{finding.cause()}",
            f"  {say('doctor.label.do')}{finding.remedy()}",
        ]
    if left:
        named, more = examination.unchecked[:NAMED], left - NAMED
        key = "doctor.unchecked_more" if more > 0 else "doctor.unchecked"
        out += ["", say(key, count=left, codes=", ".join(named), more=more)]
    return out


def last_word(examination: Examination, run: Path) -> str | None:
    """One line for the end of a run: the worst finding; None where nothing is wrong."""
    wrong = [one for one in examination.findings if one.severity != "info"]
    if not wrong:
        return None
    more = len(wrong) - 1
    key = "doctor.last_more" if more else "doctor.last"
    worst = wrong[0]
    return say(key, code=worst.code, what=worst.what(), do=worst.remedy(), count=more, folder=run)
