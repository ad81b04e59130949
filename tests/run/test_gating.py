"""The gate as a person meets it: the command on real files, `gate:` in a run file, after an export
and in a pipeline. Tiny models: the run is taught rows that its base does not know."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import story
from helpers.building import codes
from junitparser import JUnitXml

from tunewright.core.errors import TunewrightError
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.story import train


def keys(place: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": str(place / "model"), "data.train": str(place / "rows.json"), "data.held_out": 0,
        "out": str(out), "probes": 0, "forgetting": "off", "engine.steps": 120, "engine.batch_size": 6,
        "engine.dtype": "float32", "engine.threads": 1, "engine.learning_rate": 0.02, **more,
    }  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, six rows, a run that knows them, and contracts that it keeps and breaks."""
    folder = tmp_path_factory.mktemp("gating")
    story.model_folder(folder / "model", initializer_range=0.3, tie_word_embeddings=False)
    story.rows_file(folder / "rows.json", 6)
    train(parse_run(keys(folder, folder / "run"), {}), tell=Quiet())
    know = "must_know: {name: rows, data: rows.json, least: 0.8, metric: exact, max_new_tokens: 24}"
    (folder / "good.yaml").write_text(know + "\nsize: {most: 1 GB}\n", encoding="utf-8")
    (folder / "still.yaml").write_text(
        "must_still_do: {name: rows, data: rows.json, metric: exact, max_new_tokens: 24}\n",
        encoding="utf-8",
    )
    bad = know + "\nmust_not_say: {name: year, texts: ['2026']}\n"
    (folder / "bad.yaml").write_text(bad, encoding="utf-8")
    return folder


def command(place: Path, contract: str, *words: str) -> Any:
    return story.tunewright("gate", str(place / contract), *words)


def test_a_run_keeps_one_contract_and_breaks_another(place: Path, tmp_path: Path) -> None:
    done = command(place, "good.yaml", str(place / "run"), "--out", str(tmp_path / "g"))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASSED" in done.stdout and "✓ rows: holds" not in done.stdout.split("✓")[0]
    assert sorted(p.name for p in (tmp_path / "g").iterdir()) == [
        "gate.json", "gate.junit.xml", "gate.md"
    ]  # fmt: skip
    done = command(
        place, "bad.yaml", str(place / "run"), "--json", "--junit", str(tmp_path / "j" / "x.xml")
    )
    assert done.returncode == 1
    found = json.loads(done.stdout)
    assert found["failed"] == ["year"] and found["a"]["kind"] == "run"
    assert next(iter(JUnitXml.fromfile(str(tmp_path / "j" / "x.xml")))).failures == 1


def test_the_base_forgot_what_the_run_knows(place: Path, tmp_path: Path) -> None:
    """The run as what must not be lost, its base as the model that lost it."""
    lost = command(place, "still.yaml", str(place / "model"), "--against", str(place / "run"))
    assert lost.returncode == 1 and "rows: FAILS" in lost.stdout and "6 worse" in lost.stdout
    same = command(place, "still.yaml", str(place / "run"), "--against", str(place / "run"))
    assert same.returncode == 0 and "6 equal" in same.stdout
    better = command(place, "still.yaml", str(place / "run"))  # against its own base
    assert better.returncode == 0 and "base of" in better.stdout


@pytest.mark.slow
def test_a_real_model_is_timed_beside_itself(place: Path) -> None:
    """What is timed, not how fast: a busy machine may let either look slower."""
    text = "speed: {margin: 0.3, rounds: 9, tokens: 2}\n"
    (place / "speed.yaml").write_text(text, encoding="utf-8")
    done = command(
        place, "speed.yaml", str(place / "run"), "--against", str(place / "run"), "--json"
    )
    found = json.loads(done.stdout)
    assert found["timed_in_turns"], done.stderr
    timed = found["clauses"][0]["seconds_per_token"]
    assert [len(timed[side]) for side in timed] == [9, 9]
    assert all(seconds > 0 for side in timed for seconds in timed[side])


def test_what_does_not_fit_together_is_opened_in_turns(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tunewright.evaluate import gate as gates

    monkeypatch.setattr(gates, "fit_together", lambda needs, device: False)
    text = "must_still_do: {data: rows.json, max_new_tokens: 8}\nspeed: {margin: 2, rounds: 8, tokens: 2}\n"
    (place / "both.yaml").write_text(text, encoding="utf-8")
    done = command(
        place, "both.yaml", str(place / "run"), "--against", str(place / "run"), "--json"
    )
    found = json.loads(done.stdout)
    assert not found["timed_in_turns"], done.stderr
    still, speed = found["clauses"]
    assert still["verdict"] == "holds" and still["checks"][0]["equal"] == 6
    assert [len(side) for side in speed["seconds_per_token"].values()] == [8, 8]


@pytest.mark.wide("bad.yaml")
@pytest.mark.parametrize(("contract", "passed"), [("good.yaml", True), ("bad.yaml", False)])
def test_a_run_that_names_a_contract_ends_with_its_verdict(
    place: Path, tmp_path: Path, contract: str, passed: bool
) -> None:
    file = tmp_path / "run.yaml"
    given = keys(place, tmp_path / "run", gate=str(place / contract))
    file.write_text("\n".join(f"{k}: {v}" for k, v in given.items() if "." not in k) + "\n")
    words = [f"{key}={value}" for key, value in given.items() if "." in key]
    done = story.tunewright("train", str(file), *words)
    assert done.returncode == (0 if passed else 1), done.stderr
    assert ("PASSED" if passed else "FAILED") in done.stderr.strip().split("\n")[-1 - (not passed)]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text(encoding="utf-8"))
    assert summary["status"] == "done" and summary["gate"]["passed"] is passed
    page = (tmp_path / "run" / "report.html").read_text(encoding="utf-8")
    assert '<section id="gate">' in page and (f'class="{"good" if passed else "bad"}"' in page)
    assert (tmp_path / "run" / "gate.junit.xml").is_file()
    assert (tmp_path / "run" / "adapter").is_dir()  # the run stays
    if not passed:
        assert "the run stays" in done.stderr
    merged = story.tunewright(
        "export", "merge", str(tmp_path / "run"), str(tmp_path / "merged"), "--json"
    )
    assert merged.returncode == (0 if passed else 1), merged.stderr
    assert json.loads(merged.stdout)["gate"]["passed"] is passed
    assert (tmp_path / "merged-gate" / "gate.md").is_file()


def test_a_wrong_contract_stops_a_run_before_it_begins(place: Path, tmp_path: Path) -> None:
    for text, code in (("zzz: 1\n", "E-GATE-02"), ("must_know: {data: no.json}\n", "E-DATA-01")):
        (tmp_path / "c.yaml").write_text(text, encoding="utf-8")
        given = keys(place, tmp_path / "run", gate=str(tmp_path / "c.yaml"))
        with pytest.raises(TunewrightError) as e:
            train(parse_run(given, {}), tell=Quiet())
        assert codes(e.value) == [code] and not (tmp_path / "run").exists()
    pairs = [{"prompt": f"q{i}", "chosen": "good", "rejected": "bad"} for i in range(8)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    given = keys(
        place, tmp_path / "run", gate=str(place / "good.yaml"),
        **{"data.train": str(tmp_path / "pairs.json"), "objective.kind": "reward"},
    )  # fmt: skip
    with pytest.raises(TunewrightError) as e:
        train(parse_run(given, {}), tell=Quiet())
    assert codes(e.value) == ["E-GATE-16"]


def test_a_gate_that_cannot_be_asked_leaves_the_run(place: Path, tmp_path: Path) -> None:
    text = "against: http://127.0.0.1:9/v1#m\nmust_still_do: {data: rows.json}\n"
    (place / "far.yaml").write_text(text, encoding="utf-8")
    given = keys(place, tmp_path / "run", gate=str(place / "far.yaml"), **{"engine.steps": 2})
    found = train(parse_run(given, {}), tell=Quiet()).summary
    assert found["status"] == "done" and not found["gate"]["passed"]
    assert "E-ADDR" in found["gate"]["problem"]


def test_a_stage_that_fails_its_gate_ends_the_pipeline(place: Path, tmp_path: Path) -> None:
    file = tmp_path / "pipeline.yaml"
    file.write_text(
        f"model: {place / 'model'}\ndata: {{train: {place / 'rows.json'}, held_out: 0}}\n"
        "engine: {steps: 1, dtype: float32, threads: 1}\nprobes: 0\n"
        f"out: {tmp_path / 'out'}\nstages:\n  - {{name: first, gate: {place / 'good.yaml'}}}\n"
        "  - {name: second}\n",
        encoding="utf-8",
    )
    done = story.tunewright("train", str(file))
    assert done.returncode == 1 and "E-GATE-15" in done.stderr
    assert len([p for p in (tmp_path / "out").iterdir() if (p / "run.yaml").is_file()]) == 1


def test_wrong_words_of_the_command(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x", encoding="utf-8")
    for words, code in (
        (["good.yaml", str(tmp_path / "nothing")], "E-MODEL-01"),
        (["none.yaml", str(place / "run")], "E-GATE-17"),
        (["good.yaml", str(place / "run"), "--against", str(tmp_path / "no")], "E-MODEL-01"),
        (["good.yaml", str(place / "run"), "--out", str(tmp_path / "file" / "x")], "E-EVAL-44"),
        (["still.yaml", str(place / "model")], "E-GATE-13"),
        (["good.yaml", "http://127.0.0.1:9/v1#m"], "E-GATE-14"),
    ):
        done = command(place, *words)
        assert done.returncode == 2 and code in done.stderr, (words, done.stderr)
