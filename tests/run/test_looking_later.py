"""What a run that was killed still shows of itself, when it is looked at later."""

from __future__ import annotations

import json
from pathlib import Path

from tunewright.advise.doctor.facts import Course, Facts
from tunewright.run import examining


def test_a_killed_run_says_how_many_steps_it_was_to_take(tmp_path: Path) -> None:
    lines = [
        json.dumps({"event": "started", "step": 0, "total_steps": 40}),
        json.dumps({"event": "step", "step": 3, "loss": 1.0}),
        '{"event": "step", "st',
    ]
    (tmp_path / "events.jsonl").write_text("\n".join(lines), encoding="utf-8")
    facts = Facts("run", course=Course(losses=[1.0], steps=3))
    course = examining.later(facts, tmp_path).course
    assert course is not None
    assert (course.ended, course.total_steps) == ("killed", 40)
