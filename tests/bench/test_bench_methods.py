"""`bench methods`: every kind trains on the same rows in a process of its own, and the table holds
what those runs measured."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import forks, story

from tunewright.bench import methods
from tunewright.bench.methods import Entrant, table
from tunewright.core.errors import UsageError


def forked(command: list[str], **_: Any) -> Any:
    """A process of its own for `python -m tunewright ...` that starts at once; the interpreter is
    started where a budget of seconds is tested."""
    assert command[:3] == [sys.executable, "-m", "tunewright"]
    return forks.run(*command[3:])


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("compared")
    model, data = story.model_folder(place / "model"), story.rows_file(place / "rows.json", 30)
    words = [
        "bench",
        "methods",
        str(model),
        "--data",
        str(data),
        "--kinds",
        "lora,norms,bitfit,lora:4",
        "--steps",
        "3",
        "--out",
        str(place / "out"),
    ]
    words += [
        "engine.dtype=float32",
        "engine.threads=1",
        "engine.batch_size=4",
        "data.held_out=6",
        "probes=6",
        "--json",
    ]
    with pytest.MonkeyPatch.context() as patch:
        if hasattr(os, "fork"):
            patch.setattr(methods.subprocess, "run", forked)
        done = story.tunewright(*words)
    assert done.returncode == 0, done.stderr
    (place / "words.json").write_text(json.dumps(words))
    (place / "result.json").write_text(done.stdout)
    return place


def test_every_figure_is_what_the_run_itself_recorded(compared: Path) -> None:
    rows = {row["kind"]: row for row in json.loads((compared / "result.json").read_text())["rows"]}
    assert list(rows) == ["lora", "norms", "bitfit", "lora:4"]
    for kind, folder in (("lora", "lora"), ("norms", "norms"), ("lora:4", "lora-4bit")):
        row, run = rows[kind], compared / "out" / folder
        summary = json.loads((run / "summary.json").read_text())
        events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
        losses = [e["held_out_loss"] for e in events if e["event"] == "evaluation"]
        assert (row["held_out_before"], row["held_out_after"]) == (losses[0], losses[-1])
        assert row["steps"] == 3 == summary["steps"]
        assert row["trainable"] == summary["trainable_parameters"]
        assert row["samples_per_second"] == pytest.approx(12 / summary["train_seconds"])
        assert (
            row["adapter_bytes"]
            == sum(f.stat().st_size for f in (run / "adapter").glob("*.safetensors"))
            > 0
        )
        assert row["merges"] is True
    assert yaml.safe_load((compared / "out" / "lora-4bit.bench.yaml").read_text())["base"] == {
        "bits": 4
    }
    assert (
        rows["norms"]["trainable"] == 5 * 64
        and rows["lora"]["trainable"] > rows["norms"]["trainable"]
    )


def test_all_kinds_start_from_the_same_loss_but_for_the_quantised_base(compared: Path) -> None:
    rows = {row["kind"]: row for row in json.loads((compared / "result.json").read_text())["rows"]}
    assert rows["lora"]["held_out_before"] == pytest.approx(
        rows["norms"]["held_out_before"], abs=1e-5
    )
    assert rows["lora:4"]["held_out_before"] != rows["lora"]["held_out_before"]


def test_what_cannot_run_stands_below_the_table_with_its_reason(compared: Path) -> None:
    text = (compared / "out" / "methods.md").read_text(encoding="utf-8").splitlines()
    assert text[0].startswith("| method | trains | held-out before | after | answers right |")
    assert [line.split("`")[1] for line in text if line.startswith("| `")] == [
        "lora",
        "norms",
        "lora:4",
    ]
    assert text[-1].startswith("- `bitfit`: E-METHOD-01")


def test_the_page_shows_the_table_the_losses_and_everybodys_answers_to_the_same_held_out_questions(
    compared: Path,
) -> None:
    result = json.loads((compared / "result.json").read_text())
    page = (compared / "out" / "methods.html").read_text(encoding="utf-8")
    assert result["page"].endswith("methods.html")
    done = [row for row in result["rows"] if "problem" not in row]
    for row in done:
        asked = [
            json.loads(line)
            for line in (Path(row["folder"]) / "before_after.jsonl").read_text().splitlines()
        ]
        assert [a["question"] for a in row["answers"]] == [a["question"] for a in asked] and row[
            "asked"
        ] == len(asked) == 6
        assert {a["kind"] for a in asked} == {"held_out"}
        assert row["right_after"] == sum(
            bool(a["expected"]) and a["expected"].lower() in a["after_reload"].lower()
            for a in asked
        )
        assert (
            f'href="{Path(row["folder"]).name}/report.html"' in page
            and f">{row['held_out_after']:.3f}</text>" in page
        )
    assert page.count("<rect") == len(done) and "bitfit" in page and "E-METHOD-01" in page
    assert page.count("<h3>") == 6 and page.count("<details open>") == 1


def test_what_is_finished_is_not_done_again_and_another_run_is_never_overwritten(
    compared: Path,
) -> None:
    words = json.loads((compared / "words.json").read_text())
    stamp = (compared / "out" / "lora" / "summary.json").stat().st_mtime_ns
    again = story.tunewright(*words)
    assert again.returncode == 0
    assert (compared / "out" / "lora" / "summary.json").stat().st_mtime_ns == stamp
    assert (
        json.loads(again.stdout)["rows"]
        == json.loads((compared / "result.json").read_text())["rows"]
    )
    other = story.tunewright(
        *[
            w.replace("engine.batch_size=4", "engine.batch_size=8").replace(
                "lora,norms,bitfit,lora:4", "lora"
            )
            for w in words
        ]
    )
    assert json.loads(other.stdout)["rows"][0]["problem"].startswith("E-METHOD-69")
    assert (compared / "out" / "lora" / "summary.json").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_a_budget_of_seconds_becomes_steps_by_a_trial_of_each_kind(
    compared: Path, tmp_path: Path
) -> None:
    words = json.loads((compared / "words.json").read_text())
    out = words.index("--out") + 1
    words = [*words[:out], str(tmp_path / "out"), *words[out + 1 :], "--seconds", "1"]
    words[words.index("--kinds") + 1] = "norms"
    done = story.tunewright(*words)
    assert done.returncode == 0, done.stderr
    (row,) = json.loads(done.stdout)["rows"]
    trial = json.loads((tmp_path / "out" / "norms.trial" / "summary.json").read_text())
    assert trial["steps"] == 4 and row["steps"] == max(1, int(4 / trial["train_seconds"]))
    assert json.loads(story.tunewright(*words).stdout)["rows"] == [row]


def test_a_run_of_the_comparison_can_be_asked(compared: Path) -> None:
    done = story.tunewright("chat", str(compared / "out" / "lora"), "-q", "what is it?", "--json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("word", "read"),
    [
        ("lora", ("lora", None)),
        (" full ", ("full", None)),
        ("lora:4", ("lora", 4)),
        ("ia3:8", ("ia3", 8)),
    ],
)
def test_kinds_are_read_with_their_bits(word: str, read: tuple[str, int | None]) -> None:
    assert (Entrant.read(word).kind, Entrant.read(word).bits) == read


@pytest.mark.parametrize("word", ["loar", "lora:5", ""])
def test_an_unknown_kind_is_refused_before_anything_runs(word: str) -> None:
    with pytest.raises(UsageError) as caught:
        Entrant.read(word)
    assert caught.value.problems[0].code == "E-METHOD-68"


def test_a_table_of_failures_alone_is_still_a_table() -> None:
    text = table([{"kind": "bitfit", "problem": "E-METHOD-01  none"}])
    assert len(text) == 4 and text[-1] == "- `bitfit`: E-METHOD-01  none"
