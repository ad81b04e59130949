"""Plans of a form: the figures of the command, every problem at once, and a command and a file that
say the same as the form, whatever stands in it."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from helpers import story
from hypothesis import given, settings
from hypothesis import strategies as st

from tunewright.commands import planning
from tunewright.core.errors import TunewrightError
from tunewright.core.run_text import command_of, ordered, text_of, yaml_of
from tunewright.core.runfile import load_run, parse_run, parse_value, read_yaml
from tunewright.core.telling import Quiet
from tunewright.studio import planned
from tunewright.studio.lines import Request
from tunewright.studio.schema import comments


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("plans")
    story.model_folder(folder / "model")
    story.rows_file(folder / "rows.json")
    return folder


def asked(call: Any, **args: Any) -> dict[str, Any]:
    found: dict[str, Any] = call(Request(1, "plan", None, args, lambda said: None))
    json.dumps(found, allow_nan=False)
    return found


def form(place: Path, **more: Any) -> dict[str, Any]:
    return {"model": str(place / "model"), "data.train": str(place / "rows.json"), **more}


def test_the_figures_are_those_of_the_command(place: Path) -> None:
    config = form(place, **{"method.kind": "lora", "method.rank": 4, "engine.threads": 1})
    found = asked(planned.plan, config=config)
    theirs = planning.plan(
        parse_run(dict(config), {}), planning.Wish(try_blocks=False), tell=Quiet()
    )
    for ours, name in (
        ("memory_bytes", "needed_memory_bytes"), ("peak_bytes", "peak_memory_bytes"), ("steps", "steps"),
        ("rows", "samples"), ("available_bytes", "available_memory_bytes"), ("fits", "fits"), ("seconds_by_part", "seconds"),
    ):  # fmt: skip
        assert found[ours] == theirs.figures[name], ours
    assert found["seconds_low"] <= found["seconds"] <= found["seconds_high"]
    assert found["fits"] is True and found["problems"] == [] and found["lines"]
    assert found["measured"] in ("rate", "trial", "runs")
    assert sum(found["by_part"].values()) > 0 and set(found["part_titles"]) == set(found["by_part"])
    twice = asked(planned.plan, config={**config, "method.rank": 8})
    assert twice["trainable_parameters"] == 2 * found["trainable_parameters"]


def test_a_run_that_cannot_fit_says_what_would(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a model of which only the configuration is here: every one of seven billion weights in 40 GiB."""
    sizes = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
             "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32000,
             "max_position_embeddings": 4096}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    monkeypatch.setattr(planning, "available_bytes", lambda device: 40 * 2**30)
    config = form(
        place, **{"model": str(tmp_path), "engine.rows_per_pass": 1024, "method.kind": "full"}
    )
    found = asked(planned.plan, config=config)
    assert found["fits"] is False and found["problems"][0]["code"] == "E-FIT-01"
    assert found["missing"] and found["changes"]
    for change in found["changes"]:
        assert change["settings"][change["key"]] == change["value"] and change["text"]
        assert change["memory_bytes"] <= 40 * 2**30 < found["memory_bytes"]
        # What a button fills in is a run that fits.
        assert asked(planned.plan, config={**config, **change["settings"]})["fits"]


def test_wrong_settings_give_every_problem_and_still_command_and_file(place: Path) -> None:
    config = form(place, **{"method.rank": 0, "engine.epocs": 3, "engine.learning_rate": "high"})
    result = asked(planned.plan, config=config)
    codes = [one["code"] for one in result["problems"]]
    assert sorted(codes) == ["E-CONFIG-03", "E-CONFIG-08", "E-CONFIG-08"]
    where = {one["where"] for one in result["problems"]}
    assert where == {"method.rank", "engine.epocs", "engine.learning_rate"}
    assert "fits" not in result
    assert "rank: 0" in result["yaml"] and "method.rank=0" in result["command"]
    for config in ({}, {"model": "", "data.train": None}, {"model": str(place / "nothing"), "data": str(place / "rows.json")}):  # fmt: skip
        found = asked(planned.plan, config=config)
        assert found["problems"] and found["command"].startswith("tunewright train")


def test_gaps_of_a_form_are_left_out(place: Path) -> None:
    config = form(place, **{"method.alpha": None, "data.system": "", "engine": {"epochs": 2}})
    found = asked(planned.plan, config=config)
    assert "alpha" not in found["yaml"] and "system" not in found["yaml"]
    assert "epochs: 2" in found["yaml"] and "engine.epochs=2" in found["command"]


# ---- as text


KEYS = ("model", "out", "data.system", "data.wording", "engine.seed", "probes", "method.kind",
        "data.columns", "objective.reward", "data.held_out", "strange.key", "engine.dtype")  # fmt: skip
TEXTS = st.text(max_size=20) | st.sampled_from(
    ["off", "no", "null", "1", "2e-4", "1e5", "0x1", ": ", "#", "a # b", "- x", "'", '"', "\\", "a\nb", "{text}",
     "!!python/object", "&a", "*a", "%", "@", "`", "~", "=", "<<", "你好：世界", "\u2028", "\x85", "𝄞", " x ", "$(rm -rf)"]
)  # fmt: skip
PLAIN = (
    TEXTS
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats(allow_nan=False, allow_infinity=False)
)
VALUES = (
    PLAIN
    | st.lists(PLAIN, max_size=3)
    | st.dictionaries(st.sampled_from(["kind", "a b", "x"]), PLAIN, min_size=1, max_size=2)
)


@settings(max_examples=80)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=5))
def test_file_and_command_are_read_back_as_they_were(config: dict[str, Any]) -> None:
    import tempfile

    from tunewright.core.runfile import flatten

    text = yaml_of(config, dict.fromkeys(KEYS, "what: it # is"))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.yaml"
        file.write_text(text, encoding="utf-8")
        found, _ = read_yaml(file)
    wanted: dict[str, Any] = {}
    for key, value in ordered(config).items():
        wanted.update(flatten(value, key))
    assert found == wanted
    assert text.count("\n") <= len(config) * 2 + 1
    words = shlex.split(command_of(config))
    assert words[:2] == ["tunewright", "train"]
    typed: dict[str, Any] = {}
    for word in words[2:]:
        key, _, value = word.partition("=")
        typed.update(flatten(parse_value(value), key))
    assert typed == wanted


def test_a_run_file_of_a_form_is_a_run(tmp_path: Path) -> None:
    config = {
        "objective": "sft", "model": "m", "data": "rows.json", "method": "lora", "method.rank": 8, "data.held_out": 0.1,
        "data.columns": {"instruction": "q: a"}, "engine.learning_rate": 2e-4, "probes": ["Who?", "# what"],
    }  # fmt: skip
    (tmp_path / "run.yaml").write_text(yaml_of(config, comments(config)), encoding="utf-8")
    by_file = load_run(tmp_path / "run.yaml").config
    by_words = load_run(None, shlex.split(command_of(config))[2:]).config
    assert by_file == by_words == parse_run(dict(config), {}).config
    text = yaml_of(config, comments(config))
    assert "rank: 8  # Rank of the update" in text and text.startswith("model: m")
    assert text_of("1") != "1" and text_of("x y") == "x y"
    assert yaml_of({}) == "{}\n"


# ---- run files that are pasted

FACTORY = """
model_name_or_path: org/model
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity
template: qwen
learning_rate: 1.0e-4
num_train_epochs: 2.0
"""
AXOLOTL = """
base_model: org/model
adapter: lora
lora_r: 16
lora_alpha: 32
lora_target_linear: true
datasets:
  - path: rows.jsonl
    type: alpaca
sequence_len: 512
micro_batch_size: 2
gradient_accumulation_steps: 4
num_epochs: 1
learning_rate: 0.0002
"""


def test_our_own_run_file_is_read_with_its_problems_and_places() -> None:
    text = "model: m\ndata:\n  train: rows.json\nmethod:\n  kind: lora\n  rank: 0\n"
    found = asked(planned.plan_yaml, yaml=text)
    assert found["config"] == {"model": "m", "data.train": "rows.json", "method.kind": "lora", "method.rank": 0}  # fmt: skip
    assert [(one["code"], one["where"]) for one in found["problems"]] == [("E-CONFIG-08", "run.yaml, line 6")]  # fmt: skip
    assert asked(planned.plan_yaml, yaml=yaml_of(found["config"]))["config"] == found["config"]


@pytest.mark.parametrize(
    ("text", "system", "rank"), [(FACTORY, "LLaMA-Factory", 8), (AXOLOTL, "Axolotl", 16)]
)
def test_files_of_other_systems_are_translated(text: str, system: str, rank: int) -> None:
    found = asked(planned.plan_yaml, yaml=text)
    assert found["system"] == system and found["config"]["method.rank"] == rank
    assert found["config"]["model"] == "org/model" and found["problems"] == []
    assert found["keys"] and found["lines"]


@pytest.mark.parametrize(
    ("text", "code"),
    [("a: b: c", "E-CONFIG-45"), ("hello", "E-CONFIG-02"), ("x: 1\ny: 2", "E-CONFIG-40"), ("a: 1\na: 2", "E-CONFIG-06"), ("#" * 1_000_001, "E-STUDIO-34")],
)  # fmt: skip
def test_text_that_is_no_run_file_is_refused(text: str, code: str) -> None:
    with pytest.raises(TunewrightError) as caught:
        asked(planned.plan_yaml, yaml=text)
    assert caught.value.problems[0].code == code


# ---- models


def test_a_model_is_known_by_its_small_files(place: Path) -> None:
    from transformers import AutoModelForCausalLM

    found = asked(planned.check_model, model=str(place / "model"))
    real = AutoModelForCausalLM.from_pretrained(place / "model")
    assert found["parameters"] == real.num_parameters()
    assert found["context"] == real.config.max_position_embeddings
    assert found["chat"] is True and found["local"] is True and found["where"] == "folder"
    for wrong, code in ((str(place / "nothing"), "E-MODEL-01"), ("a b", "E-MODEL-18")):
        with pytest.raises(TunewrightError) as caught:
            asked(planned.check_model, model=wrong)
        assert caught.value.problems[0].code == code
