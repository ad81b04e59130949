"""A file of LLaMA-Factory or Axolotl becomes a run that loads; every key is answered, and what the
batch, rate and rows were is what they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers.story import model_folder, rows_file
from typer.testing import CliRunner

from tunewright.cli import app
from tunewright.core.errors import ConfigError
from tunewright.core.registry import methods, objectives
from tunewright.core.runfile import load_run
from tunewright.core.words import set_language
from tunewright.importing import Imported, translate, write

LF_COMMON = """
model_name_or_path: org/model
trust_remote_code: true
do_train: true
template: qwen3_nothink
cutoff_len: 2048
max_samples: 1000
preprocessing_num_workers: 16
dataloader_num_workers: 4
logging_steps: 10
save_steps: 500
plot_loss: true
overwrite_output_dir: true
save_only_model: false
report_to: none
per_device_train_batch_size: 1
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
ddp_timeout: 180000000
resume_from_checkpoint: null
"""
LF_LORA = "finetuning_type: lora\nlora_rank: 8\nlora_target: all\ngradient_accumulation_steps: 8\n"
LF_SFT = (
    LF_COMMON
    + LF_LORA
    + "stage: sft\ndataset: identity,alpaca_en_demo\noutput_dir: saves/sft\nlearning_rate: 1.0e-4\n"
)
LF_DPO = (
    LF_COMMON
    + LF_LORA
    + "stage: dpo\npref_beta: 0.1\npref_loss: sigmoid\ndataset: dpo_en_demo\noutput_dir: saves/dpo\nlearning_rate: 5.0e-6\n"
)
LF_FULL = (
    LF_COMMON + "stage: sft\nfinetuning_type: full\ndeepspeed: ds_z3_config.json\ndataset: identity\noutput_dir: saves/full\n"
    "gradient_accumulation_steps: 2\nlearning_rate: 1.0e-5\n"
)  # fmt: skip
AX_COMMON = """
base_model: org/model
load_in_8bit: false
datasets:
  - path: owner/set
    type: alpaca
dataset_prepared_path: last_run_prepared
val_set_size: 0.1
lora_model_dir:
sequence_len: 2048
sample_packing: true
eval_sample_packing: true
lora_alpha: 16
lora_dropout: 0.05
lora_target_modules:
  - gate_proj
  - q_proj
wandb_project:
wandb_entity:
micro_batch_size: 2
num_epochs: 1
lr_scheduler: cosine
learning_rate: 0.0002
bf16: auto
tf32: false
gradient_checkpointing: true
resume_from_checkpoint:
logging_steps: 1
loss_watchdog_threshold: 5.0
loss_watchdog_patience: 3
evals_per_epoch: 4
saves_per_epoch: 1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
"""
AX_QLORA = AX_COMMON + (
    "load_in_4bit: true\nadapter: qlora\nlora_r: 32\ngradient_accumulation_steps: 4\noptimizer: adamw_bnb_8bit\nwarmup_ratio: 0.1\n"
    "attn_implementation: flash_attention_2\noutput_dir: ./outputs/qlora-out\n"
)
AX_LORA = AX_COMMON + (
    "load_in_4bit: false\nstrict: false\nadapter: lora\nlora_r: 16\npad_to_sequence_len: true\nlora_fan_in_fan_out:\ngradient_accumulation_steps: 2\n"
    "optimizer: adamw_8bit\ntrain_on_inputs: false\ngroup_by_length: false\nfp16:\nearly_stopping_patience:\nlocal_rank:\nxformers_attention:\n"
    "flash_attention: true\nwarmup_steps: 10\ndebug:\ndeepspeed:\nfsdp:\nfsdp_config:\noutput_dir: ./outputs/lora-out\n"
)
EXAMPLES = {
    "lf_sft": LF_SFT,
    "lf_dpo": LF_DPO,
    "lf_full": LF_FULL,
    "ax_qlora": AX_QLORA,
    "ax_lora": AX_LORA,
}
WANTED: dict[str, dict[str, Any]] = {
    "lf_sft": {
        "model": "org/model",
        "data": {"dir": "data", "train": [{"file": "identity", "cap": 1000}, {"file": "alpaca_en_demo", "cap": 1000}], "held_out": 0,
                 "max_tokens": 2048, "oversize": "truncate"},
        "method": {"kind": "lora", "rank": 8, "targets": ["linear"]},
        "objective": {"kind": "sft"},
        "engine": {"batch_size": 8, "epochs": 3.0, "learning_rate": 1e-4, "schedule": "cosine", "warmup": 0.1, "dtype": "bfloat16", "save_every": 500},
        "out": "saves/sft",
    },
    "lf_dpo": {
        "model": "org/model",
        "data": {"dir": "data", "train": "dpo_en_demo", "held_out": 0, "limit": 1000, "max_tokens": 2048, "oversize": "truncate"},
        "method": {"kind": "lora", "rank": 8, "targets": ["linear"]},
        "objective": {"kind": "dpo", "beta": 0.1},
        "engine": {"batch_size": 8, "epochs": 3.0, "learning_rate": 5e-6, "schedule": "cosine", "warmup": 0.1, "dtype": "bfloat16", "save_every": 500},
        "out": "saves/dpo",
    },
    "lf_full": {
        "model": "org/model",
        "data": {"dir": "data", "train": "identity", "held_out": 0, "limit": 1000, "max_tokens": 2048, "oversize": "truncate"},
        "method": {"kind": "full"},
        "objective": {"kind": "sft"},
        "engine": {"batch_size": 2, "epochs": 3.0, "learning_rate": 1e-5, "schedule": "cosine", "warmup": 0.1, "dtype": "bfloat16", "save_every": 500},
        "out": "saves/full",
    },
    "ax_qlora": {
        "model": "org/model",
        "data": {"train": [{"file": "hf:owner/set", "format": "alpaca"}], "held_out": 0.1, "max_tokens": 2048},
        "base": {"bits": 4},
        "method": {"kind": "lora", "rank": 32, "alpha": 16, "dropout": 0.05, "targets": ["gate_proj", "q_proj"]},
        "objective": {"kind": "sft"},
        "engine": {"batch_size": 8, "epochs": 1, "learning_rate": 0.0002, "weight_decay": 0.0, "schedule": "cosine", "warmup": 0.1, "optimizer": "adamw",
                   "dtype": "auto", "save_every": "epoch", "evaluate_every": "auto", "keep_best": False},
        "out": "./outputs/qlora-out",
    },
    "ax_lora": {
        "model": "org/model",
        "data": {"train": [{"file": "hf:owner/set", "format": "alpaca"}], "held_out": 0.1, "max_tokens": 2048},
        "method": {"kind": "lora", "rank": 16, "alpha": 16, "dropout": 0.05, "targets": ["gate_proj", "q_proj"]},
        "objective": {"kind": "sft"},
        "engine": {"batch_size": 4, "epochs": 1, "learning_rate": 0.0002, "weight_decay": 0.0, "schedule": "cosine", "warmup": 10, "optimizer": "adamw",
                   "dtype": "auto", "save_every": "epoch", "evaluate_every": "auto", "keep_best": False},
        "out": "./outputs/lora-out",
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def _english():
    set_language("en")
    yield
    set_language(None)


def made_of(tmp_path: Path, text: str, devices: int = 1) -> Imported:
    path = tmp_path / "theirs.yaml"
    path.write_text(text, encoding="utf-8")
    return translate(path, devices)


def lf(tmp_path: Path, more: str, devices: int = 1) -> Imported:
    """The smallest LLaMA-Factory file with more keys."""
    return made_of(tmp_path, "model_name_or_path: m\ndataset: d\ntemplate: t\n" + more, devices)


def ax(tmp_path: Path, more: str) -> Imported:
    """The smallest Axolotl file with more keys."""
    return made_of(tmp_path, "base_model: m\nmicro_batch_size: 1\nlearning_rate: 1e-4\n" + more)


def line(made: Imported, key: str) -> Any:
    (found,) = [one for one in made.lines if one.key == key]
    return found


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_that_people_start_from_become_these_runs(tmp_path, name):
    assert made_of(tmp_path, EXAMPLES[name]).run == WANTED[name]


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_key_of_a_file_is_answered_once_and_with_a_reason_where_it_changes(tmp_path, name):
    made = made_of(tmp_path, EXAMPLES[name])
    given = [key for key in yaml.safe_load(EXAMPLES[name]) if key != "special_tokens"]
    answered = [one.key for one in made.lines if one.fate != "default"]
    assert sorted(answered) == sorted(
        given + (["special_tokens.pad_token"] if "special_tokens" in EXAMPLES[name] else [])
    )
    for one in made.lines:
        assert one.fate in ("same", "changed", "default", "not_needed", "lost", "empty")
        assert one.why or one.fate in ("same", "changed"), one
        assert not one.why.startswith("import.") and "{" not in one.why, one
        assert (one.fate == "changed") <= bool(one.ours), one
        assert one.fate == "default" or one.where.startswith("theirs.yaml, line "), one
    assert not [one for one in made.lines if "known key of" in one.why]


@pytest.mark.parametrize("name", EXAMPLES)
def test_a_run_of_registered_kinds_is_written_and_loads_and_another_is_not_written(tmp_path, name):
    made = made_of(tmp_path, EXAMPLES[name])
    out = tmp_path / "ours.yaml"
    known = methods.get(made.run["method"]["kind"]) and objectives.get(
        made.run["objective"]["kind"]
    )
    if not known:
        assert {p.code for p in made.problems} == {"E-CONFIG-09"}
        with pytest.raises(ConfigError):
            write(made, out)
        assert not out.exists() and yaml.safe_load(made.yaml()) == made.run
        return
    assert made.problems == []
    write(made, out)
    run = load_run(out)
    assert (
        run.config.model == "org/model"
        and run.config.engine.batch_size == made.run["engine"]["batch_size"]
    )
    assert (
        run.config.method.rank == made.run["method"]["rank"]
        if "rank" in made.run["method"]
        else True
    )
    with pytest.raises(ConfigError):
        write(made, out)
    write(made, out, force=True)


@pytest.mark.parametrize("name", ["lf_sft", "ax_lora"])
def test_an_imported_lora_run_passes_a_dry_run(tmp_path, monkeypatch, name):
    model_folder(tmp_path / "model", max_position_embeddings=512)
    text = EXAMPLES[name].replace("org/model", "model")
    if name == "lf_sft":
        (tmp_path / "data").mkdir()
        info = {}
        for part in ("identity", "alpaca_en_demo"):
            rows_file(tmp_path / "data" / f"{part}.json", 24)
            info[part] = {"file_name": f"{part}.json"}
        (tmp_path / "data" / "dataset_info.json").write_text(json.dumps(info), encoding="utf-8")
    else:
        rows_file(tmp_path / "rows.json", 24)
        text = text.replace("owner/set", "./rows.json")
    write(made_of(tmp_path, text), tmp_path / "ours.yaml")
    monkeypatch.chdir(tmp_path)
    dry = CliRunner().invoke(
        app,
        ["train", "ours.yaml", "--dry-run", "--json", "engine.dtype=float32", "engine.threads=1"],
    )
    assert dry.exit_code == 0, dry.stderr
    figures = json.loads(dry.stdout)
    assert figures["samples"] == {"lf_sft": 48, "ax_lora": 22}[name] and figures["kinds"] == {
        "method": "lora",
        "objective": "sft",
    }
    assert not (tmp_path / "saves").exists() and not (tmp_path / "outputs").exists()


@pytest.mark.parametrize(
    ("each", "rounds", "devices", "wanted"), [(1, 8, 1, 8), (2, 4, 3, 24), (4, 1, 2, 8)]
)
def test_a_step_has_as_many_samples_as_there(tmp_path, each, rounds, devices, wanted):
    made = lf(
        tmp_path,
        f"per_device_train_batch_size: {each}\ngradient_accumulation_steps: {rounds}\n",
        devices,
    )
    assert made.run["engine"]["batch_size"] == wanted
    assert (
        f"{each} rows per device x {rounds} accumulation steps x {devices} devices"
        in line(made, "gradient_accumulation_steps").why
    )


def test_defaults_of_llama_factory_that_differ_from_ours_are_written_out(tmp_path):
    made = lf(tmp_path, "")
    assert made.run["method"] == {"kind": "lora", "rank": 8}
    assert made.run["data"] == {
        "dir": "data",
        "train": "d",
        "held_out": 0,
        "max_tokens": 2048,
        "oversize": "truncate",
    }
    assert made.run["engine"] == {
        "batch_size": 8,
        "learning_rate": 5e-5,
        "schedule": "linear",
        "warmup": 0,
    }
    assert all(
        one.fate == "default"
        for one in made.lines
        if one.key in ("lora_rank", "learning_rate", "val_size", "cutoff_len")
    )


@pytest.mark.parametrize(("theirs", "ours"), [("true", "learn"), ("false", "off")])
def test_enable_thinking_is_taken_over(tmp_path, theirs, ours):
    assert lf(tmp_path, f"enable_thinking: {theirs}\n").run["data"]["thinking"] == ours


def test_defaults_of_axolotl_that_differ_from_ours_are_written_out(tmp_path):
    made = ax(tmp_path, "datasets: [{path: a.json, type: alpaca}]\n")
    assert (
        made.run["method"] == {"kind": "full"}
        and made.run["engine"]["epochs"] == 1.0
        and made.run["engine"]["warmup"] == 0.03
    )
    assert (made.run["data"]["max_tokens"], made.run["data"]["held_out"]) == (512, 0)


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ('learning_rate: "1e-4"', "engine.learning_rate", 1e-4), ("learning_rate: 1e-4", "engine.learning_rate", 1e-4), ("val_size: 0.1", "data.held_out", 0.1),
        ("val_size: 50", "data.held_out", 50), ("eval_dataset: a, b", "data.held_out", "a,b"), ("lr_scheduler_type: constant", "engine.schedule", "constant"),
        ("lr_scheduler_type: constant_with_warmup\nwarmup_steps: 5", "engine.warmup", 5), ("lr_scheduler_type: constant\nwarmup_ratio: 0.1", "engine.warmup", 0),
        ("warmup_steps: 7\nwarmup_ratio: 0.1", "engine.warmup", 7), ("warmup_steps: 0\nwarmup_ratio: 0.1", "engine.warmup", 0.1),
        ("bf16: true", "engine.dtype", "bfloat16"), ("fp16: true", "engine.dtype", "float16"), ("pure_bf16: true", "engine.dtype", "bfloat16"),
        ("quantization_bit: 4", "base.bits", 4), ("quantization_bit: 8", "base.bits", 8), ("max_grad_norm: 0", "engine.clip", None),
        ("max_steps: 100", "engine.steps", 100), ("save_strategy: epoch", "engine.save_every", "epoch"), ("eval_strategy: steps\neval_steps: 50", "engine.evaluate_every", 50),
        ("eval_strategy: 'no'", "engine.evaluate_every", None), ("lora_target: q_proj,v_proj", "method.targets", ["q_proj", "v_proj"]),
        ("finetuning_type: full", "method.kind", "full"), ("finetuning_type: freeze\nfreeze_trainable_layers: 3", "method.blocks", 3),
        ("use_dora: true", "method.kind", "dora"), ("pissa_init: true", "method.kind", "pissa"), ("use_rslora: true", "method.kind", "rslora"),
        ("loraplus_lr_ratio: 16.0", "method.ratio", 16.0), ("stage: pt", "objective.kind", "pretrain"), ("stage: rm", "objective.kind", "reward"),
        ("stage: kto\npref_beta: 0.2", "objective.beta", 0.2), ("stage: ppo", "objective.kind", "ppo"), ("stage: dpo\npref_loss: orpo", "objective.kind", "orpo"),
        ("stage: dpo\npref_loss: simpo", "objective.kind", "simpo"), ("stage: dpo\npref_loss: ipo", "objective.kind", "ipo"), ("stage: dpo", "objective.beta", 0.1),
        ("adapter_name_or_path: saves/a", "adapter", "saves/a"), ("default_system: be kind", "data.system", "be kind"), ("optim: adamw_torch", "engine.optimizer", "adamw"),
        ("finetuning_type: full\nuse_galore: true\ngalore_rank: 128", "method.rank", 128), ("finetuning_type: full\nuse_galore: true", "method.scale", 2.0),
        ("finetuning_type: full\nuse_apollo: true\napollo_scale: 100", "method.scale", 10.0), ("finetuning_type: full\nuse_apollo: true", "method.kind", "apollo"),
        ("finetuning_type: full\nuse_apollo: true\napollo_scale_type: tensor", "method.scaling", "tensor"),
        ("stage: dpo\ndpo_label_smoothing: 0.1", "objective.label_smoothing", 0.1), ("stage: ppo\nreward_model: runs/r\nppo_target: 6", "objective.kl_target", 6),
        ("stage: ppo\nreward_model: runs/r\nmax_new_tokens: 64", "objective.max_new_tokens", 64),
        ("lr_scheduler_type: polynomial\nlr_scheduler_kwargs: {power: 2}", "engine.power", 2.0), ("lr_scheduler_type: cosine_with_restarts\nlr_scheduler_kwargs: {num_cycles: 3}", "engine.cycles", 3),
        ("lr_scheduler_type: cosine_with_min_lr\nlearning_rate: 1.0e-4\nlr_scheduler_kwargs: {min_lr: 1e-5}", "engine.least_rate", 0.1),
        ("lr_scheduler_type: warmup_stable_decay\nlr_scheduler_kwargs: {num_decay_steps: 20, min_lr_ratio: 0.1}", "engine.decay", 20), ("lr_scheduler_type: inverse_sqrt", "engine.schedule", "inverse_sqrt"),
        ("adam_beta2: 0.95", "engine.betas", [0.9, 0.95]), ("adam_epsilon: 1.0e-6", "engine.epsilon", 1e-6),
        ("dataset_dir: there", "data.dir", "there"), ("dataset_dir: ONLINE", "data.train", "hf:d"), ("neftune_noise_alpha: 5", "engine.neftune", 5),
    ],
)  # fmt: skip
def test_keys_of_llama_factory_become_these(tmp_path, text, key, value):
    made = lf(tmp_path, text)
    section, _, name = key.partition(".")
    assert (made.run[section][name] if name else made.run[section]) == value
    assert {p.code for p in made.problems} <= {
        "E-CONFIG-09"
    }  # kinds that are not registered, nothing else


@pytest.mark.parametrize(
    ("text", "key", "word"),
    [
        ("quantization_bit: 3", "quantization_bit", "4 or 8"), ("lr_scheduler_type: reduce_lr_on_plateau", "lr_scheduler_type", "cosine"), ("lr_scheduler_type: cosine\nlr_scheduler_kwargs: {num_cycles: 1}", "lr_scheduler_kwargs.num_cycles", "no counterpart"), ("optim: lion_8bit", "optim", "adamw"),
        ("use_galore: true", "use_galore", "not offered"), ("use_badam: true", "use_badam", "not offered"), ("use_ray: true", "use_ray", "--devices"), ("use_asft_loss: true", "use_asft_loss", "distill"),
        ("train_on_prompt: true", "train_on_prompt", "answers are learnt"), ("report_to: wandb", "report_to", "run folder"), ("save_steps: 0.1", "save_steps", "share"),
        ("mix_strategy: interleave_under", "mix_strategy", "share"), ("finetuning_type: freeze\nadditional_target: embed_tokens", "additional_target", "freeze"),
        ("lora_rnak: 8", "lora_rnak", "LLaMA-Factory"), ("wraup_ratio: 0.1", "wraup_ratio", "LLaMA-Factory"),
        ("finetuning_type: freeze\nfreeze_trainable_layers: -2", "freeze_trainable_layers", "first"), ("learning_rate: fast", "learning_rate", "number"),
        ("use_dora: true\npissa_init: true", "pissa_init", "one variant"),
    ],
)  # fmt: skip
def test_what_would_change_the_training_and_cannot_be_had_is_said(tmp_path, text, key, word):
    found = line(lf(tmp_path, text), key)
    assert found.fate == "lost" and word in found.why and found.ours == {}
    assert (
        key in lf(tmp_path, text).yaml().split("\nmodel")[0]
    )  # it stands in the head of the run file as well


@pytest.mark.parametrize(
    "text",
    [
        "use_galore: false",
        "deepspeed: null",
        "report_to: []",
        "mask_history: 'False'",
        "use_muon: false",
        "do_predict: no",
        "lora_rank: 8\nfinetuning_type: full",
        "pissa_iter: 4",
    ],
)
def test_a_switch_that_is_off_loses_nothing(tmp_path, text):
    assert line(lf(tmp_path, text), text.split(":")[0]).fate in ("not_needed", "empty")


def test_sets_that_are_mixed_by_probability_become_shares(tmp_path):
    text = "model_name_or_path: m\ndataset: a,b\nmix_strategy: interleave_over\ninterleave_probs: 0.75,0.25\nmax_samples: 9\n"
    made = made_of(tmp_path, text)
    assert made.run["data"]["train"] == [
        {"file": "a", "cap": 9, "share": 0.75},
        {"file": "b", "cap": 9, "share": 0.25},
    ]


@pytest.mark.parametrize(
    ("text", "section", "wanted"),
    [
        (
            "adapter: lora\nlora_target_linear: true\n",
            "method",
            {"kind": "lora", "targets": ["linear"]},
        ),
        ("adapter: qlora\nload_in_4bit: true\n", "base", {"bits": 4}),
        (
            "lisa_n_layers: 4\nlisa_step_interval: 20\n",
            "method",
            {"kind": "lisa", "blocks": 4, "every": 20},
        ),
        ("adapter: lora\npeft_use_dora: true\n", "method", {"kind": "dora"}),
        ("rl: dpo\nrl_beta: 0.3\n", "objective", {"kind": "dpo", "beta": 0.3}),
        ("rl: kto\n", "objective", {"kind": "kto"}),
        ("reward_model: true\n", "objective", {"kind": "reward"}),
        ("datasets: [{path: a.jsonl, type: completion}]\n", "objective", {"kind": "pretrain"}),
    ],
)
def test_keys_of_axolotl_become_these(tmp_path, text, section, wanted):
    assert ax(tmp_path, text).run[section] == wanted


@pytest.mark.parametrize(
    ("entry", "wanted"),
    [
        ("{path: rows.json, type: alpaca}", {"file": "rows.json", "format": "alpaca"}),
        (
            "{path: owner/set, split: test, name: en, type: alpaca}",
            {"file": "hf:owner/set/en#test", "format": "alpaca"},
        ),
        (
            "{path: json, data_files: a.jsonl, type: completion, field: body}",
            {"file": "a.jsonl", "format": "text", "columns": {"text": "body"}},
        ),
        ("{path: a.jsonl, type: chat_template}", "a.jsonl"),
        (
            "{path: a.jsonl, type: chat_template, field_messages: talk, message_property_mappings: {role: from, content: value}}",
            {"file": "a.jsonl", "format": "sharegpt", "columns": {"conversations": "talk"}},
        ),
        (
            "{path: a.jsonl, type: {field_instruction: q, field_output: a}}",
            {"file": "a.jsonl", "format": "alpaca", "columns": {"instruction": "q", "output": "a"}},
        ),
        (
            "{path: a.jsonl, type: chat_template.default, field_messages: conversation, field_chosen: good}",
            {
                "file": "a.jsonl",
                "format": "preference",
                "columns": {"prompt": "conversation", "chosen": "good"},
            },
        ),
    ],
)
def test_sets_of_axolotl_keep_form_and_columns(tmp_path, entry, wanted):
    made = ax(tmp_path, f"datasets: [{entry}]\n")
    assert made.run["data"]["train"] == (wanted if isinstance(wanted, str) else [wanted])


MARKED = "datasets: [{path: a.jsonl, type: chat_template, %s}]\n"


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("message_field_training", "is_learnt", "rename the field to `train`"),
        ("message_field_training_detail", "parts", "whole or not at all"),
        ("roles_to_train", "[]", "assistant's turns are learnt"),
        ("roles_to_train", "[assistant, user]", "assistant's turns are learnt"),
        ("train_on_eos", "last", "would not stop"),
        ("train_on_eos", "all", "would not stop"),
        ("train_on_eot", "none", "would not stop"),
        ("split", "test", "no splits"),
        ("split", '"train[:10%]"', "data.limit"),
        ("shards", "4", "cap"),
        ("drop_system_message", "true", "system prompt"),
        ("message_property_mappings", "{role: speaker, content: words}", "role and content"),
        ("message_field_role", "speaker", "role and content"),
        ("roles", "{assistant: [narrator]}", "rename them"),
        ("field_thinking", "thought", "thinking"),
        ("revision", "abc", "newest"),
        ("something_new", "1", "look up"),
    ],
)
def test_a_key_of_a_set_that_changes_what_is_learnt_is_not_kept_and_says_so_in_the_head(
    tmp_path, key, value, word
):
    made = ax(tmp_path, MARKED % f"{key}: {value}")
    (lost,) = [one for one in made.lines if one.key == f"datasets[1].{key}"]
    assert lost.fate == "lost" and word in lost.why and lost.where.startswith("theirs.yaml, line ")
    head = [text for text in made.yaml().split("\n") if text.startswith("#")]
    assert any(f"datasets[1].{key}: " in text and word in text for text in head)
    assert any(
        text.startswith("NOT KEPT") and f"datasets[1].{key}" in text for text in made.describe()
    )


@pytest.mark.parametrize("name", ["loss", "train", "training", "trainable", "loss_mask", "weight"])
def test_marks_of_a_name_that_rows_may_carry_here_are_kept(tmp_path, name):
    made = ax(
        tmp_path,
        MARKED
        % f"message_field_training: {name}, roles_to_train: [assistant, gpt], train_on_eos: turn, drop_system_message: false",
    )
    assert not [one for one in made.lines if one.fate == "lost"]
    assert line(made, "datasets[1].message_field_training").fate == "same"


def test_a_form_of_a_set_that_is_not_known_is_not_kept(tmp_path):
    made = ax(
        tmp_path,
        "datasets: [{path: a.json}, {path: b.json, type: context_qa.load_v2, shards: 4}]\n",
    )
    assert (
        "context_qa.load_v2 is unknown" in line(made, "datasets[2].type").why
        and line(made, "datasets[2].shards").fate == "lost"
    )
    assert made.run["data"]["train"] == ["a.json", "b.json"]


@pytest.mark.parametrize(
    ("text", "section", "wanted"),
    [
        (
            "process_reward_model: true\ndatasets: [{path: a.json, type: stepwise_supervised}]\n",
            "objective",
            {"kind": "process_reward"},
        ),
        ("adapter: lora\npeft_init_lora_weights: pissa_niter_4\n", "method", {"kind": "pissa"}),
        ("adapter: lora\nloraplus_lr_ratio: 8\n", "method", {"kind": "lora_plus", "ratio": 8}),
    ],
)
def test_what_axolotl_names_and_exists_here_is_taken_over(tmp_path, text, section, wanted):
    made = ax(tmp_path, text)
    assert made.run[section] == wanted and not [one for one in made.lines if one.fate == "lost"]


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            "finetuning_type: freeze\nuse_llama_pro: true\nfreeze_trainable_layers: 8\nfreeze_trainable_modules: all\n",
            {"kind": "llama_pro", "blocks": 8},
        ),
        ("finetuning_type: freeze\nuse_llama_pro: true\n", {"kind": "llama_pro", "blocks": 2}),
        (
            "finetuning_type: full\nmixture_of_depths: convert\n",
            {"kind": "mixture_of_depths", "train": "model"},
        ),
    ],
)
def test_what_llama_factory_switches_on_and_is_a_method_here_is_taken_over(tmp_path, text, wanted):
    made = lf(tmp_path, text)
    assert (
        made.run["method"] == wanted
        and not [one for one in made.lines if one.fate == "lost"]
        and made.problems == []
    )


@pytest.mark.parametrize(
    ("text", "key", "word"),
    [
        ("finetuning_type: lora\nuse_llama_pro: true\n", "use_llama_pro", "method.kind: llama_pro"),
        (
            "finetuning_type: full\nmixture_of_depths: load\n",
            "mixture_of_depths",
            "method.kind: mixture_of_depths",
        ),
        (
            "adapter_name_or_path: a\ncreate_new_adapter: true\n",
            "create_new_adapter",
            "export merge",
        ),
    ],
)
def test_what_exists_here_in_another_way_is_named_where_it_cannot_be_taken_over(
    tmp_path, text, key, word
):
    lost = line(lf(tmp_path, text), key)
    assert lost.fate == "lost" and word in lost.why


@pytest.mark.parametrize("key", ["add_tokens", "add_special_tokens", "new_special_tokens"])
def test_new_words_are_trained_or_the_way_to_train_them_is_told(tmp_path, key):
    full = line(lf(tmp_path, f"finetuning_type: full\n{key}: <plan>,</plan>\n"), key)
    assert (
        full.fate == "lost"
        and "method.tokens: [<plan>, </plan>]" in full.why
        and "export merge" in full.why
    )
    made = lf(tmp_path, f"finetuning_type: lora\n{key}: <plan>,</plan>\nresize_vocab: true\n")
    if "new_tokens" in methods.get("lora").config.model_fields:
        assert (
            made.run["method"]["new_tokens"] == ["<plan>", "</plan>"]
            and line(made, "resize_vocab").fate == "not_needed"
            and made.problems == []
        )
    else:
        assert line(made, key).fate == "lost" and "method.kind: new_tokens" in line(made, key).why


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("model: m\ndata: {train: a.json}\n", "E-CONFIG-41"),
        ("colour: red\n", "E-CONFIG-40"),
        ("model_name_or_path: m\n", "E-CONFIG-40"),
        (
            "model_name_or_path: m\nadapter_name_or_path: a\ntemplate: t\nexport_dir: o\n",
            "E-CONFIG-42",
        ),
        ("- a\n", "E-CONFIG-02"),
        ("model_name_or_path: m\ndataset: a\ndataset: b\n", "E-CONFIG-06"),
    ],
)
def test_a_file_that_is_no_training_file_of_theirs_is_refused(tmp_path, text, code):
    with pytest.raises(ConfigError) as caught:
        made_of(tmp_path, text)
    assert caught.value.problems[0].code == code and "{" not in caught.value.problems[0].line()


def test_the_run_is_printed_without_out_and_the_list_goes_to_the_side(tmp_path):
    (tmp_path / "theirs.yaml").write_text(LF_SFT, encoding="utf-8")
    done = CliRunner().invoke(app, ["import", str(tmp_path / "theirs.yaml")])
    assert done.exit_code == 0 and yaml.safe_load(done.stdout) == WANTED["lf_sft"]
    assert "lora_target: all -> method.targets: [linear]" in done.stderr
    done = CliRunner().invoke(
        app, ["import", str(tmp_path / "theirs.yaml"), "--json", "--devices", "4"]
    )
    said = json.loads(done.stdout)
    assert (
        said["run"]["engine"]["batch_size"] == 32
        and said["system"] == "LLaMA-Factory"
        and len(said["keys"]) > 25
    )


def test_the_list_is_said_in_chinese_too(tmp_path):
    set_language("zh")
    made = made_of(tmp_path, LF_SFT)
    text = "\n".join([*made.describe(), made.yaml()])
    assert "对话模板" in text and "import." not in text.replace("tunewright import", "")
