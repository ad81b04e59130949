"""Results of commands as the page gets them, with a text in every place that a model or a file
fills. The shapes are those that the commands print with `--json`."""

from __future__ import annotations

from typing import Any

IDS = {
    name: f"0123456789abcde{i}"
    for i, name in enumerate(("evaluate", "compare", "advise", "doctor", "export"))
}
"""The job of each screen that shows a result."""


def job(kind: str, result: Any, text: str, **changes: Any) -> dict[str, Any]:
    """An ended job."""
    found = {
        "id": IDS[kind], "kind": kind, "title": f"{kind}: {text}", "state": "done",
        "created": 1796034000.0, "started": 1796034001.0, "ended": 1796034101.0,
        "command": f"tunewright {kind} {text}", "run": None, "asked": None, "problems": [],
        "progress": None, "out": None, "pages": [], "result": result, "log": f"{text}\n",
        "log_offset": 0,
    }  # fmt: skip
    return {**found, **changes}


def figure(value: float, low: float, high: float, scale: int = 1) -> dict[str, Any]:
    """A metric with its interval."""
    return {"value": value, "interval_95": [low, high], "n": 20, "scale": scale, "left_out": 0}


def comparison(text: str) -> dict[str, Any]:
    """Of `compare`: the base beside a run."""
    difference = {
        "difference": 0.65, "low": 0.4, "high": 0.9, "wins": 13, "losses": 0, "ties": 7,
    }  # fmt: skip
    subject = {
        "kind": "run", "loss": {"token_mean": 0.13}, "bytes_on_disk": 547883248,
        "memory_bytes": 547829248, "tokens_per_second": 26.4, "seconds_per_answer": 0.36,
    }  # fmt: skip
    metrics = ("exact", "contains", "chrf")
    base = {name: figure(0.1, 0.0, 0.3) for name in metrics[:2]} | {"chrf": figure(31, 25, 40, 100)}
    tuned = {name: figure(0.8, 0.6, 0.92) for name in metrics[:2]} | {
        "chrf": figure(88, 80, 95, 100)
    }
    return {
        "data": f"/x/{text}", "rows_read": 20, "n": 20, "metrics": list(metrics),
        "subjects": [
            {"name": f"base of {text}", "target": "a", "is_base": True, "figures": base, **subject},
            {"name": text, "target": "a", "is_base": False, "figures": tuned, **subject},
        ],
        "pairs": [{
            "a": f"base of {text}", "b": text, "same_answers": 0, "no_difference": False,
            "differences": {name: difference for name in metrics}, "loss": difference,
        }],
        "base_check": {"column": f"base of {text}", "places": 152, "largest_logit_difference": 0.0},
        "rows": [
            {
                "origin": f"rows.jsonl:{i}", "question": f"{text} {i}?", "expected": text,
                "answers": [f"{i} {text}", text], "scores": {"exact": [0.0, float(i % 3 > 0)]},
                "same": i % 4 == 0,
            }
            for i in range(24)
        ],
        "warnings": [text], "seconds": 35.7,
    }  # fmt: skip


def evaluation(text: str) -> dict[str, Any]:
    """Of `evaluate`: one model on rows with two possible answers."""
    classes = [
        {
            "answer": name, "rows": 15, "chosen": 15, "precision": 0.8, "recall": 0.7, "f1": 0.75,
            "precision_interval_95": [0.5, 0.9], "recall_interval_95": [0.4, 0.9],
        }
        for name in (text, "good")
    ]  # fmt: skip
    bins = [
        {
            "from": 0.5 + i / 10, "to": 0.6 + i / 10, "rows": 6, "confidence": 0.55 + i / 10,
            "accuracy": 0.4 + i / 8, "interval_95": [0.2 + i / 10, 0.6 + i / 10],
        }
        for i in range(4)
    ]  # fmt: skip
    return {
        "target": text, "model": "m", "data": text, "counts": {"rows": 30},
        "data_report": {"rows_read": 32, "rows_kept": 30, "rows_dropped": 2},
        "loss": {
            "token_mean": 2.88, "interval_95": [2.77, 2.99], "rows": 30,
            "perplexity": 17.8, "perplexity_interval_95": [15.9, 19.98],
        },
        "options": {
            "options": [text, "good"], "n": 30, "accuracy": 0.73, "interval_95": [0.56, 0.86],
            "majority": {"answer": text, "share": 0.5}, "beats_majority": True, "classes": classes,
            "macro_f1": 0.72, "macro_f1_interval_95": [0.5, 0.85],
            "confusion": {text: {text: 11, "good": 4}, "good": {text: 4, "good": 11}},
            "calibration": {
                "ece": 0.3, "by_chance_95": 0.25, "mean_confidence": 0.7, "accuracy": 0.6,
                "bins": bins,
            },
            "mistakes": [{"origin": "r:1", "answer": text, "chosen": text, "margin": -1.2}],
        },
        "metrics": {"exact": figure(0.83, 0.44, 0.97)}, "dtype": "float32", "device": "cpu",
        "warnings": [text], "seconds": {"total": 12.2},
    }  # fmt: skip


def kept_answers(text: str) -> list[dict[str, Any]]:
    """What was answered in it."""
    return [
        {
            "origin": f"rows.jsonl:{i}", "question": text, "expected": text, "answer": text,
            "end": "stop", "scores": {"exact": float(i % 2)},
        }
        for i in range(6)
    ]  # fmt: skip


def advice(text: str) -> dict[str, Any]:
    """Of `advise`."""
    names = ("constant", "base", "few_fixed", "rag", "lora")
    ways = {
        name: {
            "score": {"value": 0.18 * i, "low": max(0.0, 0.18 * i - 0.15), "high": 0.18 * i + 0.2},
            "form": {"value": 0.15 * i, "low": 0.0, "high": 0.9} if i else None,
            "seconds_per_answer": 0.35, "prompt_tokens": 39.0, "setup_seconds": 146.6 * (i > 3),
            "disk_bytes": 23122959 * (i > 3), "when_knowledge_changes": text,
        }
        for i, name in enumerate(names)
    }  # fmt: skip
    steps = [("has_it", False), ("formula", False), ("knowledge", True), ("tune", True)]
    return {
        "asked": {"model": "m", "data": "d"}, "rows": {"train": 96, "held_out": 24},
        "metric": "contains", "ways": ways, "left_out": {"sql": text},
        "verdict": {
            "branch": "stable", "way": "lora", "rule": text, "why": text,
            "path": [{"node": n, "answer": a, "evidence": text} for n, a in steps],
            "assumed": [text], "remarks": [text],
        },
        "next": [f"tunewright train {text}"],
        "examples": [
            {
                "question": text, "expected": text,
                "ways": {n: {"answer": text, "score": 1.0, "query": text} for n in names},
            }
        ],
        "page": f"/x/{text}.html",
    }  # fmt: skip


def examination(text: str) -> dict[str, Any]:
    """Of `doctor`."""
    return {
        "target": text,
        "findings": [
            {
                "code": code, "severity": severity, "evidence": {}, "what": text, "cause": text,
                "remedy": text,
            }
            for code, severity in (
                ("rate_too_large", "bad"), ("duplicates", "warn"), ("few_rows", "info"),
            )
        ],
        "checked": ["adapter_zero", "nan_steps", text], "unchecked": ["no_effect", text],
    }  # fmt: skip


def proof(text: str) -> dict[str, Any]:
    """Of `export gguf`."""
    return {
        "file": f"/x/exports/{text}.gguf", "exported": "gguf", "verdict": "agrees", "type": "q8_0",
        "run_by": {"name": "llama.cpp", "package": "xllamacpp", "version": text},
        "largest_logit_difference": 0.0666, "top1_agreement": 0.951, "positions": 1549,
        "prompts": 32, "loss": {"base": 1.1, "run": 0.06, "exported": 0.0614},
        "answers": {"asked": 8, "same": 7, "with_expectation": 8, "right_in_run": 7, "right": 6},
        "file_bytes": 144810912, "plain_bytes": 269030016, "warnings": [text], "notes": [text],
        "tokens_per_second": {"answers_with_their_prompts": 103.3}, "seconds": 66.0,
    }  # fmt: skip


def every(text: str) -> dict[str, dict[str, Any]]:
    """An ended job for each screen that shows a result, by the name of the screen."""
    return {
        "evaluate": job("evaluate", evaluation(text), text),
        "compare": job("compare", comparison(text), text),
        "advise": job("advise", advice(text), text),
        "doctor": job("doctor", examination(text), text),
        "export": job("export", proof(text), text),
    }
