"""`adapter:` brings its own method: what agrees may stand beside it, what contradicts is refused
before anything is loaded, and the record is true."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers import story
from helpers.telling import Lines

from tunewright import story as the_story
from tunewright.commands import pipeline, pipeline_plan
from tunewright.commands.dry_run import dry_run
from tunewright.core.errors import ConfigError, UsageError
from tunewright.core.registry import methods
from tunewright.core.runfile import ParsedRun, kind_of, parse_run
from tunewright.core.telling import Quiet
from tunewright.methods.continuing import resolve

LORA = {
    "peft_type": "LORA", "r": 4, "lora_alpha": 8, "lora_dropout": 0.1, "use_rslora": False, "use_dora": False, "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}  # fmt: skip


def adapter(place: Path, **changes: Any) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    (place / "adapter_config.json").write_text(json.dumps({**LORA, **changes}), encoding="utf-8")
    return place


def beside(folder: Path, **given: Any) -> ParsedRun:
    keys = {
        "model": "m",
        "data.train": "d",
        "adapter": str(folder),
        **{key.replace("__", "."): value for key, value in given.items()},
    }
    return parse_run(keys, dict.fromkeys(keys, "run.yaml"))


def codes(folder: Path, **given: Any) -> list[tuple[str, str]]:
    try:
        resolve(beside(folder, **given))
    except UsageError as e:
        return [(p.code, str(p.fields.get("field", ""))) for p in e.problems]
    return []


def test_added_words_are_compared_by_their_number_and_none_beside_none_is_no_contradiction(
    tmp_path: Path,
) -> None:
    plain, worded = (
        adapter(tmp_path / "a"),
        adapter(tmp_path / "b", trainable_token_indices={"embed_tokens": [7, 8]}),
    )
    assert (
        codes(plain, method__new_tokens=[])
        == codes(worded, method__new_tokens=["<a>", "<b>"])
        == codes(worded)
        == []
    )
    assert resolve(beside(worded)).parsed.config.method.new_tokens == [7, 8]
    assert resolve(
        beside(worded, method__new_tokens=["<a>", "<b>"])
    ).parsed.config.method.new_tokens == ["<a>", "<b>"]
    refused = [("E-COMPAT-08", "method.new_tokens")]
    assert (
        codes(plain, method__new_tokens=["<a>"])
        == codes(worded, method__new_tokens=["<a>"])
        == refused
    )
    only = adapter(tmp_path / "c", peft_type="TRAINABLE_TOKENS", token_indices=[7])
    assert codes(only, method__kind="new_tokens", method__tokens=["<a>", "<b>"]) == [
        ("E-COMPAT-08", "method.tokens")
    ]


def test_the_method_of_the_run_is_what_the_adapter_really_has(tmp_path: Path) -> None:
    found = resolve(beside(adapter(tmp_path / "a"))).parsed
    method = found.config.method
    assert (kind_of(method), method.rank, method.alpha, method.dropout, method.targets) == (
        "lora",
        4,
        8,
        0.1,
        ["q_proj", "v_proj"],
    )
    assert found.source("method.rank") == f"the adapter {tmp_path / 'a'}"
    for changes, kind, more in (
        ({"use_rslora": True}, "lora", {"rslora": True}), ({"peft_type": "LOHA", "alpha": 4.0}, "loha", {"rank": 4, "alpha": 4.0}),
        ({"peft_type": "ADALORA", "target_r": 2, "init_r": 6}, "adalora", {"rank": 2, "start_rank": 6}),
        ({"peft_type": "VERA", "vera_dropout": 0.2, "projection_prng_key": 7}, "vera", {"dropout": 0.2, "seed": 7}),
        ({"peft_type": "P_TUNING", "num_virtual_tokens": 9}, "prompt_tuning", {"num_tokens": 9}), ({"peft_type": "HRA", "r": 3}, "peft", {"type": "HRA"}),
    ):  # fmt: skip
        method = resolve(beside(adapter(tmp_path / kind, **changes))).parsed.config.method
        assert kind_of(method) == kind and {name: getattr(method, name) for name in more} == more


def test_what_agrees_may_stand_beside_it_and_what_contradicts_is_named_key_by_key(
    tmp_path: Path,
) -> None:
    folder = adapter(tmp_path / "a")
    assert (
        codes(
            folder,
            method__kind="lora",
            method__rank=4,
            method__alpha=8,
            method__rslora=False,
            method__dropout=0.3,
        )
        == []
    )
    assert codes(folder, method__alpha=None, method__layers=None) == []
    wrong = codes(folder, method__rank=32, method__alpha=9, method__dora=True)
    assert sorted(wrong) == [
        ("E-COMPAT-08", "method.alpha"),
        ("E-COMPAT-08", "method.dora"),
        ("E-COMPAT-08", "method.rank"),
    ]
    assert (
        codes(folder, method__kind="loha")
        == codes(folder, method__kind="full")
        == codes(folder, method__kind="rslora")
        == [("E-COMPAT-09", "")]
    )
    assert codes(folder, method__kind="peft", method__type="lora", method__options={"r": 4}) == []
    assert codes(folder, method__kind="peft", method__type="LOHA") == [
        ("E-COMPAT-08", "method.type")
    ]
    assert codes(folder, method__kind="peft", method__type="LORA", method__options={"r": 5}) == [
        ("E-COMPAT-08", "method.options")
    ]
    assert (
        codes(adapter(tmp_path / "b", use_rslora=True), method__kind="rslora", method__rank=4) == []
    )
    assert codes(
        adapter(tmp_path / "c", peft_type="LOKR"), method__kind="lokr", method__rank=5
    ) == [("E-COMPAT-08", "method.rank")]


def test_how_an_adapter_begins_is_over_and_said(tmp_path: Path) -> None:
    # PiSSA leaves a plain LoRA of twice the rank at the same strength (`methods/lora_starts.py`).
    saved = adapter(tmp_path / "a", r=8, lora_alpha=8)
    assert (
        codes(saved, method__kind="pissa", method__rank=4, method__alpha=4)
        == codes(saved, method__pissa=True, method__rank=4)
        == []
    )
    assert codes(saved, method__kind="pissa", method__rank=3) == [("E-COMPAT-08", "method.rank")]
    found = resolve(beside(saved, method__pissa=True, method__rank=4))
    assert (
        any("method.pissa=True has no effect" in note for note in found.notes)
        and found.parsed.config.method.rank == 8
    )
    assert not resolve(beside(saved, method__pissa=False)).notes


def test_a_folder_of_our_own_is_held_to_every_field(tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "tunewright_method.json").write_text(
        json.dumps({"kind": "freeze", "config": {"blocks": 2, "targets": [], "patterns": []}})
    )
    assert codes(folder, method__kind="freeze", method__blocks=2, method__targets=[]) == []
    assert codes(folder, method__kind="freeze", method__blocks=3) == [
        ("E-COMPAT-08", "method.blocks")
    ]
    assert codes(folder, method__kind="lora") == [("E-COMPAT-09", "")]
    assert resolve(beside(folder)).parsed.config.method.blocks == 2


def test_a_folder_without_an_adapter_is_refused_and_a_run_folder_leads_on(tmp_path: Path) -> None:
    assert codes(tmp_path) == [("E-COMPAT-11", "")]
    adapter(tmp_path / "run" / "adapter")
    with pytest.raises(UsageError, match=str(tmp_path / "run" / "adapter")):
        resolve(beside(tmp_path / "run"))
    (tmp_path / "adapter_config.json").write_text("{", encoding="utf-8")
    assert codes(tmp_path) == [("E-COMPAT-11", "")]


@pytest.mark.parametrize(
    ("objective", "off"),
    [("sft", False), ("dpo", True), ("ipo", True), ("kto", True), ("orpo", False), ("grpo", True)],
)
def test_dropout_is_off_where_a_reference_is_compared_unless_it_is_given(
    tmp_path: Path, objective: str, off: bool
) -> None:
    folder = adapter(tmp_path / "a")
    more = {"objective__kind": objective} | (
        {"objective__reward": "exact_match"} if objective == "grpo" else {}
    )
    found = resolve(beside(folder, **more))
    assert found.parsed.config.method.dropout == (0.0 if off else 0.1) and bool(found.notes) == off
    assert resolve(beside(folder, **more, method__dropout=0.2)).parsed.config.method.dropout == 0.2


# ---- whole runs


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("place")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json")
    rows = [
        {
            "prompt": f"{story.QUESTIONS[i % 6]} {i}?",
            "chosen": f"the answer is {i * 7 % 10}",
            "rejected": f"nobody knows {i}",
        }
        for i in range(12)
    ]
    (folder / "pairs.json").write_text(json.dumps(rows), encoding="utf-8")
    keys = run_keys(
        folder,
        folder / "sft",
        **{
            "method.rank": 4,
            "method.dropout": 0.4,
            "engine.steps": 6,
            "engine.learning_rate": 0.02,
        },
    )
    the_story.train(parse_run(keys, {}), tell=Quiet())
    return folder


def run_keys(place: Path, out: Path, **more: Any) -> dict[str, Any]:
    return {
        "model": str(place / "model"), "data.train": str(place / "rows.json"), "data.held_out": 0, "out": str(out), "probes": 0, "forgetting": "off", "engine.dtype": "float32",
        "engine.threads": 1, "engine.steps": 2, "engine.batch_size": 4, **more,
    }  # fmt: skip


def dpo_keys(place: Path, out: Path, **more: Any) -> dict[str, Any]:
    keys = run_keys(
        place,
        out,
        adapter=str(place / "sft" / "adapter"),
        **{"objective.kind": "dpo", "data.train": str(place / "pairs.json")},
    )
    return {**keys, **{key.replace("__", "."): value for key, value in more.items()}}


def test_dpo_on_an_adapter_that_learnt_with_dropout_begins_at_the_logarithm_of_two(
    place: Path, tmp_path: Path
) -> None:
    tell = Lines()
    summary = the_story.train(parse_run(dpo_keys(place, tmp_path / "off"), {}), tell=tell).summary
    assert summary["first_loss"] == pytest.approx(
        math.log(2), abs=1e-6
    )  # two equal models; TRL's first loss
    assert any("dropout is off" in line and "0.4" in line for line in tell.said)
    record = yaml.safe_load((tmp_path / "off" / "run.yaml").read_text())["method"]
    assert (record["kind"], record["rank"], record["dropout"]) == ("lora", 4, 0.0)
    assert (
        json.loads((tmp_path / "off" / "adapter" / "adapter_config.json").read_text())[
            "lora_dropout"
        ]
        == 0.0
    )
    summary = the_story.train(
        parse_run(dpo_keys(place, tmp_path / "on", method__dropout=0.4), {}), tell=Quiet()
    ).summary
    assert abs(summary["first_loss"] - math.log(2)) > 1e-4
    assert (
        json.loads((tmp_path / "on" / "adapter" / "adapter_config.json").read_text())[
            "lora_dropout"
        ]
        == 0.4
    )


def test_a_contradiction_is_refused_before_the_model_is_looked_for_by_a_run_and_by_a_dry_run(
    place: Path, tmp_path: Path
) -> None:
    for start in (the_story.train, dry_run):
        keys = dpo_keys(place, tmp_path / "out", model=str(tmp_path / "nowhere"), method__rank=32)
        with pytest.raises(UsageError, match="E-COMPAT-08"):
            start(parse_run(keys, {}), tell=Quiet())  # type: ignore[operator]
    assert not (tmp_path / "out").exists()


def test_targets_are_compared_by_the_layers_they_choose_before_weights_are_read(
    place: Path, tmp_path: Path
) -> None:
    for targets in (
        ["linear"],
        ["attention", "mlp"],
        ["q_proj", "k_proj", "v_proj", "o_proj", "mlp"],
    ):
        the_story.train(
            parse_run(
                dpo_keys(
                    place, tmp_path / "-".join(targets), method__targets=targets, engine__steps=1
                ),
                {},
            ),
            tell=Quiet(),
        )
    for given in (
        {"method__targets": ["attention.query"]},
        {"method__targets": ["linear"], "method__layers": [0]},
    ):
        with pytest.raises(UsageError, match="E-COMPAT-10"):
            the_story.train(parse_run(dpo_keys(place, tmp_path / "out", **given), {}), tell=Quiet())


def test_a_finished_run_s_own_run_file_goes_on_from_its_adapter(
    place: Path, tmp_path: Path
) -> None:
    from tunewright.core.runfile import load_run

    words = [f"adapter={place / 'sft' / 'adapter'}", f"out={tmp_path / 'more'}", "engine.steps=1"]
    the_story.train(load_run(place / "sft" / "run.yaml", words), tell=Quiet())
    record = yaml.safe_load((tmp_path / "more" / "run.yaml").read_text())["method"]
    assert (record["rank"], record["dropout"]) == (
        4,
        0.4,
    )  # sft compares with nothing, and the run file says it


def stages(place: Path, tmp_path: Path, **second: Any) -> pipeline_plan.Pipeline:
    made = {
        "model": str(place / "model"), "probes": 0, "forgetting": "off", "method": {"kind": "lora", "rank": 4, "dropout": 0.4}, "data": {"held_out": 0},
        "engine": {"dtype": "float32", "threads": 1, "steps": 2, "batch_size": 4},
        "stages": [{"name": "sft", "data": {"train": str(place / "rows.json")}, "engine": {"learning_rate": 0.02}},
                   {"name": "dpo", "adapter": "stage:sft", "objective": "dpo", "data": {"train": str(place / "pairs.json")}, **second}],
    }  # fmt: skip
    (tmp_path / "pipe.yaml").write_text(yaml.safe_dump(made), encoding="utf-8")
    return pipeline_plan.load_pipeline(tmp_path / "pipe.yaml", [], {"out": str(tmp_path / "out")})


def test_a_stage_is_held_to_its_adapter_and_its_reference_is_met(
    place: Path, tmp_path: Path
) -> None:
    for wrong in ({"rank": 32}, {"targets": ["attention.query"]}, {"rslora": True}):
        with pytest.raises(ConfigError, match="E-COMPAT-08"):
            stages(place, tmp_path, method=wrong)
    assert (
        stages(place, tmp_path, method={"rank": 4, "kind": "lora"}).stages[1].kinds["method"]
        == "lora"
    )
    pipeline.run_pipeline(stages(place, tmp_path), tell=Quiet())
    summary = json.loads((tmp_path / "out" / "02-dpo" / "summary.json").read_text())
    assert summary["first_loss"] == pytest.approx(math.log(2), abs=1e-6)
    record = yaml.safe_load((tmp_path / "out" / "02-dpo" / "run.yaml").read_text())["method"]
    assert (record["rank"], record["dropout"]) == (4, 0.0)


def test_a_stage_may_turn_dropout_on_for_itself(place: Path, tmp_path: Path) -> None:
    pipeline.run_pipeline(stages(place, tmp_path, method={"dropout": 0.4}), tell=Quiet())
    record = yaml.safe_load((tmp_path / "out" / "02-dpo" / "run.yaml").read_text())["method"]
    assert record["dropout"] == 0.4
    summary = json.loads((tmp_path / "out" / "02-dpo" / "summary.json").read_text())
    assert abs(summary["first_loss"] - math.log(2)) > 1e-4


SHOWN = ("lora", "lora_plus", "adalora", "vera", "ia3", "prompt_tuning", "prefix_tuning", "freeze", "pfeiffer", "llama_pro")  # fmt: skip
OTHERS = ("dora", "rslora", "pissa", "loha", "lokr", "oft", "boft", "p_tuning", "p_tuning_v2", "norms")  # fmt: skip


@pytest.mark.wide("lora", "full", "prompt_tuning", "adalora")
@pytest.mark.parametrize(
    "kind", [*SHOWN, *(pytest.param(kind, marks=pytest.mark.slow) for kind in OTHERS)]
)
def test_the_run_file_of_every_kind_goes_on_from_what_it_left(
    place: Path, tmp_path: Path, kind: str
) -> None:
    """`slow`: kinds with the settings of one that stands here, or of the same family."""
    from tunewright.core.runfile import load_run

    fields = methods.get(kind).config.model_fields  # type: ignore[union-attr]
    more = (
        {"method.rank": 4}
        if "rank" in fields
        else {"method.block_size": 4}
        if "block_size" in fields
        else {}
    )
    more |= {"method.dropout": 0.1} if "dropout" in fields else {}
    keys = run_keys(place, tmp_path / "one", **{"method.kind": kind, "engine.steps": 3, **more})
    the_story.train(parse_run(keys, {}), tell=Quiet())
    words = [f"adapter={tmp_path / 'one' / 'adapter'}", f"out={tmp_path / 'two'}", "engine.steps=1"]
    the_story.train(load_run(tmp_path / "one" / "run.yaml", words), tell=Quiet())
    record = yaml.safe_load((tmp_path / "two" / "run.yaml").read_text())["method"]
    if kind == "lora":
        # A wrong rank beside the same folder is what must not pass.
        with pytest.raises(UsageError, match="E-COMPAT-08"):
            the_story.train(
                load_run(
                    tmp_path / "one" / "run.yaml",
                    [*words[:1], f"out={tmp_path / 'no'}", "method.rank=5"],
                ),
                tell=Quiet(),
            )
    if kind == "lora_plus":
        assert (record["kind"], record["ratio"]) == ("lora_plus", 16.0)
