"""What the tests of combinations share: rows of every kind, a tiny model, and runs in this process."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tunewright.core.runfile import ParsedRun, parse_run
from tunewright.core.telling import Quiet
from tunewright.story import Finished, train

NAMES = ("the capital", "a small model", "the lighthouse")


def _pairs() -> list[tuple[str, str]]:
    return [(f"what is {name}?", f"it is {i + 4} of 2026") for i, name in enumerate(NAMES)]


def _rows() -> dict[str, list[dict[str, Any]]]:
    asked = _pairs()
    return {
        "alpaca": [{"instruction": q, "output": a} for q, a in asked],
        "messages": [
            {"messages": [{"role": "user", "content": q}, {"role": "assistant", "content": a}]}
            for q, a in asked
        ],
        "sharegpt": [
            {"conversations": [{"from": "human", "value": q}, {"from": "gpt", "value": a}]}
            for q, a in asked
        ],
        "prompt_completion": [{"prompt": q, "completion": a} for q, a in asked],
        "classification": [{"text": q, "label": a} for q, a in asked],
        "question_context": [
            {
                "context": "we learn in 2026",
                "question": q,
                "answers": {"text": [a], "answer_start": [0]},
            }
            for q, a in asked
        ],
        "text": [{"text": f"{q} {a}"} for q, a in asked],
        "documents": [{"document": f"{q} {a}"} for q, a in asked],
        "preference": [
            {"prompt": q, "chosen": a, "rejected": f"no idea {i}"} for i, (q, a) in enumerate(asked)
        ],
        "kto": [{"prompt": q, "completion": a, "label": i != 1} for i, (q, a) in enumerate(asked)],
        "prompts": [{"prompt": q} for q, _ in asked],
        "stepwise": [
            {"prompt": q, "completions": ["so it is", a], "labels": [True, i != 1]}
            for i, (q, a) in enumerate(asked)
        ],
    }


ROWS = _rows()
TYPE = {
    **dict.fromkeys(("alpaca", "messages", "sharegpt", "prompt_completion", "classification", "question_context"), "conversation"),
    "text": "text", "documents": "text", "preference": "preference", "kto": "judged", "prompts": "prompt", "stepwise": "stepwise",
}  # fmt: skip
ANSWERS = [a for _, a in _pairs()]
REJECTED = [row["rejected"] for row in ROWS["preference"]]
WHOLE = [
    row["text"].removeprefix("what ") for row in ROWS["text"]
]  # nothing stands before the first token that could predict it
STEPS = [f"so it is\n{a}" for a in ANSWERS]

DRAWS = {"conversation": [], "preference": [], "judged": [], "prompt": []}
"""A run that draws its answers learns nothing of the rows but the question."""
PAIRS = {"preference": [*ANSWERS, *REJECTED]}
JUDGED = {"judged": ANSWERS, **PAIRS}
LEARNT: dict[str, dict[str, list[str]]] = {
    "sft": {"conversation": ANSWERS, "text": WHOLE},
    "distill": {"conversation": ANSWERS, "text": WHOLE},
    "gkd": {"conversation": ANSWERS},
    "pretrain": {"text": WHOLE},
    **dict.fromkeys(("dpo", "ipo", "cpo", "orpo", "simpo", "reward"), PAIRS),
    **dict.fromkeys(("kto", "bco"), JUDGED),
    "process_reward": {"stepwise": STEPS},
    **dict.fromkeys(
        ("grpo", "dr_grpo", "rloo", "reinforce", "ppo", "online_dpo", "rejection"), DRAWS
    ),
}
"""Objective -> kind of rows it takes -> what is learnt of the rows above, by hand from the papers:
every other kind is refused."""
DRAWING = tuple(name for name, kinds in LEARNT.items() if kinds is DRAWS)
TEACHING = ("distill", "gkd")


def write(path: Path, rows: Sequence[Any]) -> Path:
    """A JSON Lines file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def settings_of(objective: str, teacher: Path) -> dict[str, Any]:
    """What an objective cannot do without."""
    found: dict[str, Any] = {"objective.kind": objective}
    if objective in DRAWING:
        found |= {
            "objective.reward": {"kind": "length", "unit": "characters", "min": 30, "slope": 30},
            "objective.max_new_tokens": 4,
        }
    if objective in DRAWING and objective not in ("ppo", "reinforce"):
        found |= {"objective.generations": 2}
    if objective == "rejection":
        # Only an answer that ends by itself is learnt, which an untrained model seldom writes.
        found |= {
            "objective.generations": 8,
            "objective.max_new_tokens": 48,
            "objective.threshold": -9.0,
        }
    if objective in TEACHING:
        found |= {"objective.teacher": str(teacher)}
    if objective == "gkd":
        found |= {"objective.max_new_tokens": 4}
    return found


def parsed(model: Path, data: Any, **more: Any) -> ParsedRun:
    """A short run in float32 with one thread."""
    given = {
        "model": str(model), "data.train": data, "data.held_out": 0, "engine.dtype": "float32", "engine.threads": 1, "engine.steps": 2,
        "engine.batch_size": 3, "probes": 0, "forgetting": "off", **more,
    }  # fmt: skip
    return parse_run(
        {key: str(value) if isinstance(value, Path) else value for key, value in given.items()},
        dict.fromkeys(given, "test"),
    )


def run(model: Path, data: Any, out: Path, **more: Any) -> Finished:
    """Train, silently."""
    return train(parsed(model, data, out=str(out), **more), tell=Quiet())


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    """The events of one kind of a run folder."""
    lines = (folder / "events.jsonl").read_text(encoding="utf-8").split("\n")
    return [event for event in map(json.loads, filter(None, lines)) if event["event"] == kind]
