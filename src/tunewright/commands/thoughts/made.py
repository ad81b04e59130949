"""How thoughts are drawn, and what came of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from tunewright.core.words import say

KINDS = ("row", "drawn", "rationalised", "none")
"""Where the thought of a row comes from: the row itself, a draw, a draw that was given the answer;
or it has none."""


@dataclass(frozen=True)
class How:
    """How thoughts are drawn and judged. `draws` answers to each question at `temperature`;
    `hint`: what is not reached is asked again with the answer given away."""

    draws: int = 4
    temperature: float = 0.7
    top_p: float = 0.95
    max_new_tokens: int | None = None
    match: str = "auto"
    rewards: str | None = None
    hint: bool = True
    keep_answer: bool = True
    """A thought gets the row's own answer; else the answer that was drawn with it."""
    keep_rest: bool = True
    """Rows without a thought stay as they are; else they are left out."""
    seed: int = 0


@dataclass
class Thought:
    """What `data think` wrote, for people and machines."""

    out: str
    draws_file: str
    rows: int = 0
    sources: dict[str, int] = field(default_factory=lambda: dict.fromkeys(KINDS, 0))
    written: int = 0
    draws: int = 0
    passed: int = 0
    tokens: int = 0
    drawn_anew: int = 0
    """Questions that were drawn in this call; the others stood in the file of draws."""
    cut_off: int = 0
    no_room: int = 0
    mention_hint: int = 0
    thought_tokens: float | None = None
    thinks: bool = True
    rest: str = "stays"
    """What becomes of rows without a thought: `stays` or `goes`."""
    seconds: float = 0.0
    example: dict[str, str] | None = None
    warnings: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For `--json` and the report's file."""
        return {**vars(self), "pass_rate": self.passed / self.draws if self.draws else None}

    def lines(self) -> list[str]:
        """For a terminal."""
        share = f"{self.passed / self.draws:.0%}" if self.draws else "-"
        found = [say("think.done", out=self.out, rows=self.rows, written=self.written)]
        found += [
            say(f"think.source.{name}", count=count, kept=say(f"think.{self.rest}"))
            for name, count in self.sources.items()
            if count
        ]
        told: dict[str, Any] = {"share": share, "draws": self.draws, "tokens": f"{self.tokens:,}"}
        found.append(say("think.draws", **told, seconds=f"{self.seconds:.0f}"))
        for name in ("cut_off", "no_room", "mention_hint"):
            if count := getattr(self, name):
                found.append(say(f"think.{name}", count=count))
        found.append(say("think.file", file=self.draws_file))
        return found + [f"! {one}" for one in self.warnings]
