"""A pipeline file becomes runs: what stages share, what they take from one another, and every
mistake at once with its stage."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import story

from tunewright.commands import pipeline, pipeline_plan
from tunewright.commands.pipeline_file import is_pipeline, read_pipeline
from tunewright.core.errors import CheckpointError, ConfigError, UsageError
from tunewright.core.telling import Quiet
from tunewright.report.stages import render_stages

TWO = """\
model: base/model
engine: {threads: 1, epochs: 3}
method: {kind: lora, rank: 4}
data: {max_tokens: 64}
stages:
  - name: sft
    data: {train: rows.json}
    engine: {epochs: 2}
  - name: dpo
    adapter: stage:sft
    data: pairs.json
    objective: dpo
"""


def load(text: str, place: Path, *words: str, **flags: Any) -> pipeline_plan.Pipeline:
    path = place / "p.yaml"
    path.write_text(text, encoding="utf-8")
    return pipeline_plan.load_pipeline(path, list(words), {"out": "out", **flags})


def problems(text: str, place: Path, *words: str) -> list[tuple[str, str]]:
    with pytest.raises(ConfigError) as caught:
        load(text, place, *words)
    return [(p.code, p.where) for p in caught.value.problems]


def test_a_file_with_stages_is_a_pipeline_and_no_other_is(tmp_path: Path) -> None:
    for text, is_one in (
        (TWO, True),
        ("model: m\n", False),
        ("- a\n", False),
        ("stages: [", False),
    ):
        (tmp_path / "f.yaml").write_text(text)
        assert is_pipeline(tmp_path / "f.yaml") == is_one
    assert not is_pipeline(tmp_path / "absent.yaml") and not is_pipeline(tmp_path)


def test_stages_share_the_keys_at_the_top_and_override_them(tmp_path: Path) -> None:
    sft, dpo = (stage.run.config for stage in load(TWO, tmp_path).stages)
    assert (
        sft.model,
        sft.data.train,
        sft.data.max_tokens,
        sft.engine.epochs,
        sft.engine.threads,
    ) == ("base/model", "rows.json", 64, 2, 1)
    assert (dpo.data.train, dpo.data.max_tokens, dpo.engine.epochs, dpo.method.rank) == (
        "pairs.json",
        64,
        3,
        4,
    )
    assert (sft.out, dpo.out) == (str(Path("out/01-sft")), str(Path("out/02-dpo")))
    assert (
        dpo.adapter == str(Path("out/01-sft/adapter"))
        and dpo.model == "base/model"
        and sft.adapter is None
    )


def test_the_command_line_wins_for_all_stages_and_for_one(tmp_path: Path) -> None:
    made = load(
        TWO,
        tmp_path,
        "engine.epochs=9",
        "stages.dpo.engine.epochs=5",
        "stages.dpo.objective.beta=0.3",
        "engine.threads=2",
        model="other",
    )
    sft, dpo = (stage.run for stage in made.stages)
    assert (sft.config.engine.epochs, dpo.config.engine.epochs, dpo.config.objective.beta) == (
        9,
        5,
        0.3,
    )
    assert (sft.config.engine.threads, sft.config.model, dpo.config.model) == (2, "other", "other")
    assert (
        sft.source("engine.epochs") == "command line"
        and sft.source("data.train") == "p.yaml, line 7"
    )


def test_another_kind_does_not_inherit_the_keys_of_the_first(tmp_path: Path) -> None:
    text = TWO.replace("    adapter: stage:sft\n", "    model: stage:sft\n").replace(
        "    engine: {epochs: 2}\n", "    method: full\n"
    )
    sft, dpo = load(text, tmp_path).stages
    assert (sft.kinds["method"], sft.leaves, sft.run.config.adapter) == ("full", "model", None)
    assert (dpo.run.config.model, dpo.run.config.method.rank) == (str(Path("out/01-sft/model")), 4)
    assert (
        dpo.root == "base/model"
        and dpo.stand_in is not None
        and dpo.stand_in.config.model == "base/model"
    )


def test_an_adapter_brings_its_base_its_method_and_how_the_base_is_held(tmp_path: Path) -> None:
    text = """
model: base/model
base: {bits: 8}
data: {train: rows.json}
stages:
  - {name: pre, method: full, base: {bits: null}}
  - {name: sft, model: "stage:pre", method: {kind: dora, rank: 2}, base: {bits: null}}
  - {name: next, adapter: "stage:sft", data: pairs.json, objective: dpo}
  - {name: last, adapter: "stage:next", data: pairs.json, objective: {kind: dpo, beta: 0.5}}
"""
    pre, sft, following, last = load(text, tmp_path).stages
    assert pre.leaves == "model" and sft.leaves == "adapter"
    for stage, before in ((following, sft), (last, following)):
        config = stage.run.config
        assert config.model == str(Path("out/01-pre/model")) and config.base.bits is None
        assert (stage.kinds["method"], config.method.rank, config.adapter) == (
            "dora",
            2,
            str(before.folder / "adapter"),
        )
        assert (
            stage.stand_in is not None
            and stage.stand_in.config.adapter is None
            and stage.stand_in.config.model == "base/model"
        )
    assert last.run.config.objective.beta == 0.5


def test_the_record_reads_back_as_the_same_pipeline(tmp_path: Path) -> None:
    text = (
        TWO.replace(
            "method: {kind: lora, rank: 4}", "method: {kind: lora, rank: 4}\nbase: {bits: 8}"
        )
        + "    probes: [\"who: 'me' # no\"]\n"
    )
    made = load(
        text, tmp_path, "stages.sft.method.kind=dora", 'data.columns={output: "a b", input: x}'
    )
    pipeline._create(pipeline_plan.Pipeline(tmp_path / "out", made.stages))
    record = (tmp_path / "out" / "pipeline.yaml").read_text(encoding="utf-8")
    assert (
        yaml.safe_load(record)["stages"][1]["adapter"] == "stage:sft" and "# command line" in record
    )
    again = pipeline_plan.plan(read_pipeline(tmp_path / "out" / "pipeline.yaml"), Path("out"))
    assert [s.run.config for s in again.stages] == [s.run.config for s in made.stages]
    assert [s.stand_in.config for s in again.stages if s.stand_in] == [
        s.stand_in.config for s in made.stages if s.stand_in
    ]
    assert again.stages[1].kinds["method"] == "dora"


def test_rewards_and_teachers_may_be_stages(tmp_path: Path) -> None:
    text = """
model: m
data: rows.json
stages:
  - {name: sft}
  - {name: rm, adapter: "stage:sft", data: pairs.json, objective: reward}
  - {name: big, method: full}
  - name: ppo
    adapter: stage:sft
    objective: {kind: ppo, reward: [numeric, "stage:rm", {kind: model, run: "stage:rm", weight: 2}]}
  - {name: small, objective: {kind: distill, teacher: "stage:big"}}
"""
    made = {stage.name: stage for stage in load(text, tmp_path).stages}
    rm = str(Path("out/02-rm"))
    assert made["rm"].leaves == "scores"
    assert made["ppo"].run.config.objective.reward == [
        "numeric",
        rm,
        {"kind": "model", "run": rm, "weight": 2},
    ]
    assert made["small"].run.config.objective.teacher == str(Path("out/03-big"))
    assert made["ppo"].layer.given["objective.reward"][1] == "stage:rm"


def test_every_wrong_reference_is_named_with_its_stage(tmp_path: Path) -> None:
    text = """
model: m
data: rows.json
stages:
  - {name: sft, adapter: "stage:sft"}
  - {name: whole, method: full, engine: {epochs: "stage:sft"}}
  - {name: rm, objective: reward}
  - {name: a, adapter: "stage:whole"}
  - {name: b, model: "stage:a"}
  - {name: c, adapter: "stage:rm"}
  - {name: d, adapter: "stage:b", model: other}
  - {name: e, adapter: "stage:b", method: dora}
  - {name: f, model: "stage:holw"}
  - {name: g, objective: {kind: grpo, reward: "stage:b"}}
  - {name: h, adapter: "stage:i"}
  - {name: i, engine: {epoch: 3}}
  - {name: j, objective: {kind: distill, teacher: "stage:rm"}}
"""
    found = problems(text, tmp_path)
    expected = {
        "sft": "E-PIPE-03", "whole": "E-PIPE-04", "a": "E-PIPE-05", "b": "E-PIPE-06", "c": "E-PIPE-07", "d": "E-PIPE-09", "e": "E-PIPE-10",
        "f": "E-PIPE-03", "g": "E-PIPE-08", "h": "E-PIPE-03", "i": "E-CONFIG-03", "j": "E-PIPE-07",
    }  # fmt: skip
    for stage, code in expected.items():
        codes = [c for c, where in found if where.startswith(f"stage {stage}:")]
        assert code in codes, (stage, found)
        assert len(codes) == (2 if stage == "whole" else 1), (
            stage,
            found,
        )  # "stage:sft" is no number either
    assert not any(where.startswith("stage rm") for _, where in found)


@pytest.mark.parametrize(
    ("text", "words", "code"),
    [
        ("stages: []\n", [], "E-PIPE-01"), ("stages: {sft: {}}\n", [], "E-PIPE-01"), ("stages: [sft]\n", [], "E-PIPE-01"),
        ("stages: [{data: r}]\n", [], "E-PIPE-02"), ("stages: [{name: A b}]\n", [], "E-PIPE-02"), ("stages: [{name: a}, {name: a}]\n", [], "E-PIPE-02"),
        ("model: m\nstages: [{name: a, data: r, out: x}]\n", [], "E-PIPE-13"), (TWO, ["stages.sfd.engine.epochs=1"], "E-PIPE-14"),
        (TWO, ["stages.sft=1"], "E-PIPE-14"), (TWO, ["stages.sft.out=x"], "E-PIPE-13"), (TWO, ["epochs"], "E-CONFIG-15"),
        ("stages:\n  - {name: a, model: m, model: n}\n", [], "E-CONFIG-06"),
    ],
)  # fmt: skip
def test_a_wrong_form_is_told(tmp_path: Path, text: str, words: list[str], code: str) -> None:
    assert code in [c for c, _ in problems(text, tmp_path, *words)]


# ---- whole pipelines on a tiny model

ENGINE = {"dtype": "float32", "threads": 1, "epochs": 2, "batch_size": 4, "save_every": 2}


def pairs_file(path: Path, count: int = 12) -> Path:
    """`count` pairs of a chosen and a rejected answer."""
    rows = [
        {
            "prompt": f"{story.QUESTIONS[i % 6]} {i}?",
            "chosen": f"the answer is {i * 7 % 10}",
            "rejected": f"nobody knows {i * 3 % 10}",
        }
        for i in range(count)
    ]
    path.write_text(json.dumps(rows), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model, rows and pairs."""
    folder = tmp_path_factory.mktemp("pipeline")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json")
    pairs_file(folder / "pairs.json")
    return folder


def content(place: Path, first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    stages = [
        {"name": "sft", "data": {"train": str(place / "rows.json")}, **first},
        {"name": "dpo", "data": {"train": str(place / "pairs.json")}, "objective": "dpo", **second},
    ]
    return {
        "model": str(place / "model"),
        "engine": ENGINE,
        "data": {"held_out": 3},
        "probes": 1,
        "forgetting": "off",
        "stages": stages,
    }


def run(place: Path, out: Path, first: dict[str, Any], second: dict[str, Any]) -> Any:
    path = out.with_suffix(".yaml")
    path.write_text(yaml.safe_dump(content(place, first, second)), encoding="utf-8")
    return pipeline.run_pipeline(
        pipeline_plan.load_pipeline(path, [], {"out": str(out)}), tell=Quiet()
    )


def by_hand(place: Path, out: Path, stages: list[dict[str, Any]]) -> None:
    """The same runs one after the other, each started by itself."""
    import tunewright

    for number, keys in enumerate(stages):
        data = {"train": str(place / ("rows.json", "pairs.json")[number]), "held_out": 3}
        objective = ("sft", "dpo")[number]
        tunewright.train(
            data=data,
            engine=ENGINE,
            objective=objective,
            probes=1,
            out=str(out / str(number)),
            tell=Quiet(),
            **keys,
        )


@pytest.mark.wide("lora")
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_stages_are_the_runs_that_one_would_start_by_hand(
    place: Path, tmp_path: Path, kind: str
) -> None:
    model = str(place / "model")
    if kind == "lora":
        method: Any = {"kind": "lora", "rank": 3}
        made = run(place, tmp_path / "p", {"method": method}, {"adapter": "stage:sft"})
        by_hand(
            place,
            tmp_path / "hand",
            [
                {"model": model, "method": method},
                {"model": model, "method": method, "adapter": str(tmp_path / "hand/0/adapter")},
            ],
        )
        files = ["adapter/adapter_model.safetensors"] * 2
    else:
        made = run(place, tmp_path / "p", {"method": "full"}, {"model": "stage:sft"})
        by_hand(
            place,
            tmp_path / "hand",
            [{"model": model, "method": "full"}, {"model": str(tmp_path / "hand/0/model")}],
        )
        files = ["model/model.safetensors", "adapter/adapter_model.safetensors"]
    for number, (folder, file) in enumerate(zip(("01-sft", "02-dpo"), files, strict=True)):
        ours, theirs = tmp_path / "p" / folder / file, tmp_path / "hand" / str(number) / file
        assert story.digest(ours) == story.digest(theirs), folder
        kept = made.summary["stages"][number]["files"][file]
        assert kept["sha256"] == hashlib.sha256(ours.read_bytes()).hexdigest()
        stage = json.loads((tmp_path / "p" / folder / "summary.json").read_text())
        assert sum(stage["seconds"].values()) == pytest.approx(stage["wall_seconds"], abs=0.1)
    assert (
        made.summary["status"] == "done"
        and json.loads((tmp_path / "p" / "summary.json").read_text()) == made.summary
    )
    page = (tmp_path / "p" / "report.html").read_text(encoding="utf-8")
    assert 'href="01-sft/report.html"' in page and 'href="02-dpo/report.html"' in page
    assert f"{made.summary['stages'][0]['held_out_loss']:.4g}" in page and "accuracy" in page
    assert "流水线" in render_stages(tmp_path / "p", "zh")


def test_a_dry_run_checks_every_stage_and_writes_nothing(place: Path, tmp_path: Path) -> None:
    wrong = content(
        place,
        {"data": {"train": str(place / "pairs.json")}},
        {"adapter": "stage:sft", "data": {"train": str(place / "absent.json")}},
    )
    path = tmp_path / "p.yaml"
    path.write_text(yaml.safe_dump(wrong), encoding="utf-8")
    made = pipeline_plan.load_pipeline(path, [], {"out": str(tmp_path / "out")})
    for start in (pipeline.check_pipeline, pipeline.run_pipeline):
        with pytest.raises(UsageError) as caught:
            start(made, tell=Quiet())
        found = {p.where.split(":")[0].split(" · ")[0] for p in caught.value.problems}
        assert found == {"stage sft", "stage dpo"}, str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["p.yaml"]
    path.write_text(yaml.safe_dump(content(place, {}, {"adapter": "stage:sft"})), encoding="utf-8")
    figures = pipeline.check_pipeline(
        pipeline_plan.load_pipeline(path, [], {"out": str(tmp_path / "out")}), tell=Quiet()
    )
    assert list(figures["stages"]) == ["sft", "dpo"] and figures["stages"]["dpo"]["samples"] == 9
    assert not (tmp_path / "out").exists()


def test_a_finished_stage_is_verified_before_anything_goes_on(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "p"
    before = run(place, out, {}, {"adapter": "stage:sft"}).summary
    assert pipeline.resume_pipeline(out, tell=Quiet()).summary == before
    with pytest.raises(
        UsageError, match=r"E-RUN-18.*02-dpo/run\.yaml adapter=.*02-dpo/adapter"
    ):  # finished: the way on starts at the last stage
        run(place, out, {}, {})
    (out / "summary.json").write_text(json.dumps({**before, "status": "stopped"}), encoding="utf-8")
    with pytest.raises(UsageError, match="E-PIPE-12"):
        run(place, out, {}, {})
    weights = out / "01-sft" / "adapter" / "adapter_model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"E-PIPE-11.*adapter_model\.safetensors"):
        pipeline.resume_pipeline(out, tell=Quiet())


def test_a_folder_without_a_pipeline_is_told_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="E-PIPE-15"):
        pipeline.resume_pipeline(tmp_path)


def test_a_method_leaves_what_it_is_registered_to_leave(place: Path) -> None:
    """The plan is made before anything is trained, so the registered fact must be what `attach`
    says."""
    from tunewright.core.registry import methods
    from tunewright.models import anatomy, load

    for name in ("lora", "full", "galore", "freeze", "bitfit", "ia3", "prompt_tuning", "adapter"):
        entry = methods.get(name)
        assert entry is not None
        model = load.load_model(place / "model", dtype="float32", device="cpu")
        config = entry.config(**({"rank": 4} if name == "galore" else {}))
        try:
            attached = entry.function(config, model, anatomy.of(model), "tiny")
        except UsageError:
            assert name == "bitfit"  # this model has no biases
            continue
        assert attached.saves_model == (entry.facts.get("leaves") == "model"), name


@pytest.mark.parametrize(
    "page", ["README.md", "README.zh-CN.md", "docs/pipelines.md", "docs/pipelines.zh-CN.md"]
)
def test_the_pipelines_of_the_docs_can_be_planned(page: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / page).read_text(encoding="utf-8")
    blocks = [
        block for block in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL) if "stages:" in block
    ]
    assert len(blocks) == (1 if page.startswith("README") else 3)
    for block in blocks:
        assert len(load(block, tmp_path).stages) >= 2


# ---- the command line


def command(*words: str) -> Any:
    """The exit code and output of a command in this process."""
    from typer.testing import CliRunner

    from tunewright.cli import app

    return CliRunner().invoke(app, list(words), env={"TUNEWRIGHT_LANG": "en"})


def test_reward_code_runs_only_where_the_command_line_gives_it_and_only_the_same(
    place: Path, tmp_path: Path
) -> None:
    code, out, marker = tmp_path / "mine.py", tmp_path / "out", tmp_path / "ran"
    good = f"open({str(marker)!r}, 'a').close()\ndef brief(answers):\n    return [1.0 / (1 + len(a.text)) for a in answers]\n"
    code.write_text(good)
    keys: dict[str, Any] = {
        "model": str(place / "model"), "data": {"train": str(place / "rows.json"), "held_out": 2, "limit": 6}, "probes": 0, "forgetting": "off",
        "engine": {**ENGINE, "epochs": 1}, "stages": [
            {"name": "grpo", "objective": {"kind": "grpo", "generations": 2, "max_new_tokens": 4, "reward": {"kind": "python", "function": "brief"}}},
        ],
    }  # fmt: skip
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(keys))
    start = ["train", str(tmp_path / "p.yaml"), "--out", str(out)]
    refused = command(*start)
    assert (
        refused.exit_code == 2
        and "E-REWARD-07" in refused.stderr
        and "stage grpo" in refused.stderr
    )
    assert not out.exists() and not marker.exists()
    done = command(*start, "--reward-code", str(code))
    assert done.exit_code == 0, done.stderr
    recorded = yaml.safe_load((out / "01-grpo" / "run.yaml").read_text())["objective"]["reward"]
    assert recorded["sha256"] == hashlib.sha256(good.encode()).hexdigest() and marker.exists()
    for file in (
        out / "summary.json",
        out / "01-grpo" / "summary.json",
    ):  # as if it had been killed before it could say that it is done
        file.unlink()
    assert command("train", str(out), "--resume").exit_code == 2
    code.write_text(good + "\n")
    other = command("train", str(out), "--resume", "--reward-code", str(code))
    assert other.exit_code == 2 and "E-REWARD-08" in other.stderr
    code.write_text(good)
    again = command("train", str(out), "--resume", "--reward-code", str(code), "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["status"] == "done", again.stderr


def test_the_command_line_checks_and_refuses_pipelines_as_it_does_runs(
    place: Path, tmp_path: Path
) -> None:
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(content(place, {}, {"adapter": "stage:sft"})))
    start = [
        "train",
        str(tmp_path / "p.yaml"),
        "--out",
        str(tmp_path / "out"),
        "--dry-run",
        "--json",
    ]
    checked = command(*start, "stages.dpo.engine.epochs=4")
    figures = json.loads(checked.stdout)["stages"]
    assert (figures["sft"]["steps"], figures["dpo"]["steps"]) == (6, 12) and not (
        tmp_path / "out"
    ).exists()
    wrong = command(*start, "stages.dpo.engine.epoch=4")
    assert (
        wrong.exit_code == 2
        and json.loads(wrong.stdout)["problems"][0]["where"] == "stage dpo: command line"
    )
    assert command("train", str(tmp_path), "--resume", "engine.epochs=2").exit_code == 2
