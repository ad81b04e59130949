"""What people bring from five tools, key by key: each of these means something here, and none of
them is called lost. Run files, commands and scripts."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from tunewright.cli import app
from tunewright.core.errors import ConfigError
from tunewright.importing import Imported, translate

LF = "model_name_or_path: m\ndataset: d\nlearning_rate: 1.0e-4\n"
AX = (
    "base_model: m\nadapter: lora\nmicro_batch_size: 1\nlearning_rate: 1.0e-4\n"
    "datasets: [{path: a.json, type: alpaca}]\n"
)
SW = "swift sft --model ./m --dataset a.jsonl --learning_rate 1e-4"
RLHF = "swift rlhf --rlhf_type dpo --model ./m --dataset a.jsonl"
TUNE = """
output_dir: out
model: {_component_: torchtune.models.llama3_2.lora_llama3_2_1b, lora_rank: 64, lora_alpha: 128,
  lora_attn_modules: [q_proj, output_proj], apply_lora_to_mlp: true}
tokenizer: {_component_: torchtune.models.llama3.llama3_tokenizer, path: t, max_seq_len: 512}
checkpointer: {_component_: torchtune.training.FullModelHFCheckpointer, checkpoint_dir: /m,
  checkpoint_files: [model.safetensors], model_type: LLAMA3_2, output_dir: '${output_dir}'}
dataset: {_component_: torchtune.datasets.alpaca_cleaned_dataset, packed: false}
optimizer: {_component_: torch.optim.AdamW, lr: 3.0e-4, weight_decay: 0.01, fused: true}
lr_scheduler: {_component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup,
  num_warmup_steps: 100}
loss: {_component_: torchtune.modules.loss.LinearCrossEntropyLoss}
batch_size: 4
epochs: 1
gradient_accumulation_steps: 8
max_steps_per_epoch: null
clip_grad_norm: null
compile: false
metric_logger: {_component_: torchtune.training.metric_logging.DiskLogger}
enable_activation_checkpointing: false
seed: null
shuffle: true
device: cpu
dtype: bf16
"""


def lost(made: Imported) -> list[str]:
    return [line.key for line in made.lines if line.fate == "lost"]


def at(made: Imported, key: str) -> Any:
    section, _, name = key.partition(".")
    return made.run[section][name] if name else made.run[section]


def file_of(tmp_path: Path, text: str, name: str = "theirs.yaml") -> Path:
    (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / name


ROTARY = {"kind": "yarn"}


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("additional_target: embed_tokens,lm_head", "method.modules_to_save", ["embed_tokens", "lm_head"]),
        ("add_tokens: <a>,<b>\nresize_vocab: true", "method.new_tokens", ["<a>", "<b>"]),
        ("resize_vocab: true", "method.modules_to_save", ["embedding", "head"]),
        ("resize_vocab: true\nadditional_target: norm", "method.modules_to_save", ["norm"]),
        ("add_tokens: <a>\nadditional_target: embed_tokens", "method.modules_to_save", ["embed_tokens"]),
        ("loraplus_lr_ratio: 16\nlora_target: embed_tokens,q_proj\nloraplus_lr_embedding: 1.0e-6", "engine.rates", {"embedding": 0.01}),
        ("rope_scaling: yarn", "base.rotary", ROTARY),
        ("rope_scaling: linear", "base.rotary", {"kind": "linear"}),
        ("rope_scaling: dynamic", "base.rotary", {"kind": "dynamic"}),
        ("template: my.jinja", "data.template", "my.jinja"),
        ("mask_history: true", "data.turns", "last"),
        ("use_dft_loss: true", "objective.loss", "dft"),
        ("use_eaft_loss: true\neaft_alpha: 0.5", "objective.eaft_alpha", 0.5),
        ("stage: dpo\npref_bco_weight: 1.0", "objective.loss", ["sigmoid", "bco_pair"]),
        ("stage: dpo\npref_bco_weight: 1.0\npref_loss: hinge", "objective.loss_weights", [0.5, 0.5]),
        ("stage: dpo\npref_bco_weight: 0.25", "objective.bco_shift", True),
        ("optim: lion_32bit", "engine.optimizer", "lion"),
        ("optim: schedule_free_adamw", "engine.optimizer", "adamw_schedule_free"),
        ("finetuning_type: full\nuse_adam_mini: true", "engine.optimizer", "adam_mini"),
        ("lr_scheduler_type: cosine_with_min_lr\nlr_scheduler_kwargs: {min_lr_rate: 0.1}", "engine.least_rate", 0.1),
    ],
)  # fmt: skip
def test_llama_factory(tmp_path: Path, text: str, key: str, value: Any) -> None:
    made = translate(file_of(tmp_path, f"{LF}{text}\n"))
    assert at(made, key) == value and lost(made) == [] and made.problems == []


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("lora_modules_to_save: [embed_tokens, lm_head]", "method.modules_to_save", ["embed_tokens", "lm_head"]),
        ("tokens: ['<a>']\nlora_modules_to_save: [embed_tokens]", "method.new_tokens", ["<a>"]),
        ("peft: {rank_pattern: {q_proj: 32}, alpha_pattern: {q_proj: 64}}", "method.rank_pattern", {"q_proj": 32}),
        ("embedding_lr: 1.0e-5", "engine.rates", {"embedding": 0.1}),
        ("embedding_lr_scale: 0.5", "engine.rates", {"embedding": 0.5}),
        ("lr_groups: [{name: o, modules: [o_proj, q_proj], lr: 1.0e-6}]", "engine.rates", {"o_proj": 0.01, "q_proj": 0.01}),
        ("overrides_of_model_config: {rope_scaling: {type: linear, factor: 4.0}}", "base.rotary", {"kind": "linear", "factor": 4.0}),
        ("chat_template_jinja: my.jinja", "data.template", "my.jinja"),
        ("chat_template: chatml", "data.template", "chatml"),
        ("use_eaft: true\neaft_alpha: 2.0", "objective.loss", "eaft"),
        ("rl: dpo\ndpo_loss_type: [sigmoid, sft]\ndpo_loss_weights: [1.0, 0.5]", "objective.sft_weight", 0.5),
        ("rl: dpo\ndpo_use_weighting: true", "objective.wpo", True),
        ("rl: dpo\ndpo_loss_type: bco_pair", "objective.loss", "bco_pair"),
        ("optimizer: lion_pytorch", "engine.optimizer", "lion"),
        ("optimizer: schedule_free_adamw", "engine.schedule", "constant"),
        ("cosine_min_lr_ratio: 0.2", "engine.least_rate", 0.2),
        ("adam_beta2: 0.95", "engine.betas", [0.9, 0.95]),
    ],
)  # fmt: skip
def test_axolotl(tmp_path: Path, text: str, key: str, value: Any) -> None:
    made = translate(file_of(tmp_path, f"{AX}{text}\n"))
    assert at(made, key) == value and lost(made) == [] and made.problems == []


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("--modules_to_save embed_tokens lm_head", "method.modules_to_save", ["embed_tokens", "lm_head"]),
        ("--new_special_tokens '<a>' '<b>'", "method.new_tokens", ["<a>", "<b>"]),
        ("--lorap_lr_ratio 16", "method.ratio", 16),
        ("--rope_scaling yarn --max_length 8192", "base.rotary", ROTARY),
        ('--rope_scaling \'{"type": "linear", "factor": 2.0}\'', "base.rotary", {"kind": "linear", "factor": 2.0}),
        ("--template my.jinja", "data.template", "my.jinja"),
        ("--loss_scale last_round", "data.turns", "last_round"),
        ("--enable_dft_loss true", "objective.loss", "dft"),
        ("--optim lion_32bit", "engine.optimizer", "lion"),
        ("--optim schedule_free_adamw", "engine.optimizer", "adamw_schedule_free"),
        ("--adam_epsilon 1e-6", "engine.epsilon", 1e-6),
        ("--tuner_type full", "engine.batch_size", 16),
        ("--train_type lora --init_weights pissa", "method.kind", "pissa"),
        ("--dataset a.jsonl#9 b.jsonl", "data.train", [{"file": "a.jsonl", "cap": 9}, "b.jsonl"]),
        ("--dataset hf::own/set:en", "data.train", "hf:own/set/en"),
        ("--quant_bits 4 --quant_method bnb", "base.bits", 4),
        ("--columns '{\"q\": \"query\", \"a\": \"response\"}'", "data.columns", {"query": "q", "response": "a"}),
    ],
)  # fmt: skip
def test_ms_swift(words: str, key: str, value: Any) -> None:
    made = translate(f"{SW} {words}")
    assert made.system == "ms-swift"
    assert at(made, key) == value and lost(made) == [] and made.problems == []


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("", "objective.kind", "dpo"),
        ("--loss_type sigmoid bco_pair sft --loss_weights 0.8 0.2 1.0", "objective.loss", ["sigmoid", "bco_pair"]),
        ("--rpo_alpha 0.1", "objective.sft_weight", 0.1),
        ("--beta 0.3", "objective.beta", 0.3),
    ],
)  # fmt: skip
def test_ms_swift_on_pairs(words: str, key: str, value: Any) -> None:
    made = translate(f"{RLHF} {words}")
    assert at(made, key) == value and lost(made) == [] and made.problems == []


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("sft --use_peft --lora_modules_to_save embed_tokens", "method.modules_to_save", ["embed_tokens"]),
        ("sft --chat_template_path my.jinja", "data.template", "my.jinja"),
        ("sft --loss_type dft", "objective.loss", "dft"),
        ("sft --lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs '{\"num_decay_steps\": 20}'", "engine.decay", 20),
        ("sft --optim lion_32bit", "engine.optimizer", "lion"),
        ("sft --optim schedule_free_adamw --lr_scheduler_type constant", "engine.optimizer", "adamw_schedule_free"),
        ("sft", "method.kind", "full"),
        ("sft --use_peft --lora_target_modules all-linear", "method.targets", ["linear"]),
        ("sft --dataset-name own/set --dataset-config en", "data.train", "hf:own/set/en"),
        ("dpo --use_weighting", "objective.wpo", True),
        ("dpo --loss_type bco_pair", "objective.loss", "bco_pair"),
        ("dpo --loss_type sigmoid sft --loss_weights 1.0 0.3", "objective.sft_weight", 0.3),
        ("kto --loss_type apo_zero_unpaired", "objective.loss", "apo_zero"),
        ("grpo --chat_template_kwargs '{\"enable_thinking\": false}'", "data.template_arguments", {"enable_thinking": False}),
        ("grpo --loss_type dr_grpo --importance_sampling_level sequence", "objective.ratio", "answer"),
        ("online_dpo --beta 0.2 --missing_eos_penalty 1.0", "objective.unfinished_penalty", 1.0),
        ("reward --center_rewards_coefficient 0.01", "objective.center", 0.01),
    ],
)  # fmt: skip
def test_trl(words: str, key: str, value: Any) -> None:
    verb, *rest = shlex.split(words)
    given = [] if "--dataset-name" in rest else ["--dataset_name", "a.jsonl"]
    made = translate(shlex.join(["trl", verb, "--model_name_or_path", "m", *given, *rest]))
    assert made.system == "TRL"
    assert at(made, key) == value and lost(made) == []


@pytest.mark.parametrize(
    ("text", "key", "value"),
    [
        ("", "method.targets", ["q_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]),
        ("", "data.train", [{"file": "hf:yahma/alpaca-cleaned", "format": "alpaca"}]),
        ("", "engine.batch_size", 32),
        ("", "model", "/m"),
        ("model._component_=torchtune.models.llama3_2.qlora_llama3_2_1b", "base.bits", 4),
        ("model.use_dora=true", "method.kind", "dora"),
        ("model._component_=torchtune.models.llama3_2.llama3_2_1b model.lora_rank=null", "method.kind", "full"),
        ("optimizer._component_=schedulefree.AdamWScheduleFree", "engine.optimizer", "adamw_schedule_free"),
        ("optimizer.betas=[0.9,0.95]", "engine.betas", [0.9, 0.95]),
        ("optimizer.eps=1e-6", "engine.epsilon", 1e-6),
        ("dataset.masking_strategy=train_on_last", "data.turns", "last"),
        ("max_steps_per_epoch=50 epochs=2", "engine.steps", 100),
        ("loss._component_=torchtune.rlhf.loss.DPOLoss loss.beta=0.2", "objective.beta", 0.2),
    ],
)  # fmt: skip
def test_torchtune(tmp_path: Path, text: str, key: str, value: Any) -> None:
    file = file_of(tmp_path, TUNE)
    made = translate(f"tune run lora_finetune_single_device --config {file} {text}")
    assert made.system == "torchtune"
    assert at(made, key) == value and lost(made) == [] and made.problems == []


def test_a_script_is_read_as_a_shell_reads_it(tmp_path: Path) -> None:
    text = """#!/bin/bash
# first the environment
export CUDA_VISIBLE_DEVICES=0,1
MODEL=./Qwen
OUT="runs/$MODEL"
pip install ms-swift
NPROC_PER_NODE=2 \\
swift sft \\
    --model $MODEL \\
    --dataset 'a file.jsonl' "b.jsonl#5" \\
    --system 'You are "kind"' \\
    --gradient_accumulation_steps 4 \\
    --output_dir ${OUT} > log.txt 2>&1
swift infer --adapters out
"""
    made = translate(file_of(tmp_path, text, "train.sh"))
    assert made.run["model"] == "./Qwen" and made.run["out"] == "runs/./Qwen"
    assert made.run["data"]["train"] == ["a file.jsonl", {"file": "b.jsonl", "cap": 5}]
    assert made.run["data"]["system"] == 'You are "kind"'
    assert made.run["engine"]["batch_size"] == 8  # two processes, four passes
    assert {line.where for line in made.lines if line.where} == {"train.sh, line 7"}


@pytest.mark.parametrize(
    ("line", "system"),
    [
        ("accelerate launch --num_processes 2 trl/scripts/dpo.py --model_name_or_path m --dataset_name d.json", "TRL"),
        ("torchrun --nproc_per_node 2 -m swift.cli.sft --model ./m --dataset d.json", "ms-swift"),
        ("python -m swift.cli.rlhf --rlhf_type kto --model ./m --dataset d.json", "ms-swift"),
        ("llamafactory-cli train theirs.yaml learning_rate=3e-4", "LLaMA-Factory"),
        ("axolotl train theirs.yaml --learning-rate 3e-4", "Axolotl"),
    ],
)  # fmt: skip
def test_commands_of_every_tool_are_found(tmp_path: Path, line: str, system: str) -> None:
    file_of(tmp_path, LF if system == "LLaMA-Factory" else AX)
    made = translate(file_of(tmp_path, f"set -e\n{line}\n", "go.sh"))
    assert made.system == system and made.problems == []
    if "3e-4" in line:
        assert made.run["engine"]["learning_rate"] == 3e-4  # the command goes before the file


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("trl sft --model_name_or_path 'm", "E-KEY-10"),
        ("tune run lora_finetune_single_device --config llama3_2/1B_lora", "E-KEY-12"),
        ("swift infer --model m --adapters a", "E-CONFIG-01"),
    ],
)
def test_a_command_that_cannot_be_read_is_said(text: str, code: str) -> None:
    with pytest.raises(ConfigError) as caught:
        translate(text)
    assert caught.value.problems[0].code == code and "{" not in caught.value.problems[0].line()


def test_a_command_on_the_command_line_becomes_a_run_file() -> None:
    done = CliRunner().invoke(app, ["import", f"{SW} --lora_rank 4"])
    assert done.exit_code == 0 and yaml.safe_load(done.stdout)["method"]["rank"] == 4
    assert "# Converted from swift sft (ms-swift)" in done.stdout
    assert "lora_rank: 4 -> method.rank: 4" in done.stderr


@pytest.mark.parametrize(
    ("words", "fate"),
    [
        ("sft --assistant_only_loss true", "not_needed"),
        ("sft --assistant_only_loss false", "lost"),
        ("sft", "default"),
        ("dpo", ""),
    ],
)
def test_that_trl_learns_the_questions_of_dialogues_is_said(words: str, fate: str) -> None:
    made = translate(f"trl {words} --model_name_or_path a/b --dataset_name c/d")
    found = [one for one in made.lines if one.key == "assistant_only_loss"]
    assert [one.fate for one in found] == ([fate] if fate else [])
    assert fate in ("", "not_needed") or "questions" in found[0].why


def test_a_vocabulary_that_is_resized_trains_whole_tables_where_the_method_can(
    tmp_path: Path,
) -> None:
    text = f"{LF}finetuning_type: oft\nresize_vocab: true\n"
    assert lost(translate(file_of(tmp_path, text))) == ["resize_vocab"]
    text = f"{LF}resize_vocab: false\n"
    made = translate(file_of(tmp_path, text))
    assert lost(made) == [] and "modules_to_save" not in made.run["method"]


@pytest.mark.parametrize(
    "text",
    ["rope_scaling: longrope", "use_badam: true", "ld_alpha: 0.5\nstage: dpo", "shift_attn: true"],
)
def test_what_is_not_here_is_said(tmp_path: Path, text: str) -> None:
    assert lost(translate(file_of(tmp_path, f"{LF}{text}\n"))) == [text.partition(":")[0]]


def test_a_pretraining_set_of_axolotl_is_running_text(tmp_path: Path) -> None:
    sets = "[{path: t.jsonl, type: pretrain, text_column: body}]"
    text = AX.partition("datasets:")[0] + f"pretraining_dataset: {sets}\n"
    made = translate(file_of(tmp_path, text))
    assert made.run["objective"] == {"kind": "pretrain"} and lost(made) == []
    entry = {"file": "t.jsonl", "format": "text", "columns": {"text": "body"}}
    assert made.run["data"]["train"] == [entry]


LF_KEYS = (
    "model_name_or_path adapter_name_or_path trust_remote_code template quantization_bit "
    "quantization_method flash_attn enable_liger_kernel use_unsloth rope_scaling resize_vocab "
    "stage do_train do_predict finetuning_type lora_rank lora_alpha lora_dropout lora_target "
    "additional_target use_dora use_rslora pissa_init loraplus_lr_ratio pref_beta pref_loss "
    "pref_ftx dataset eval_dataset dataset_dir cutoff_len max_samples val_size packing "
    "neat_packing train_on_prompt mask_history mix_strategy interleave_probs streaming "
    "tokenized_path overwrite_cache preprocessing_num_workers enable_thinking default_system "
    "tool_format output_dir overwrite_output_dir logging_steps save_steps save_only_model "
    "plot_loss report_to resume_from_checkpoint per_device_train_batch_size "
    "gradient_accumulation_steps learning_rate num_train_epochs lr_scheduler_type warmup_ratio "
    "bf16 ddp_timeout deepspeed neftune_noise_alpha optim predict_with_generate "
    "compute_accuracy eval_strategy eval_steps"
).split()
AX_KEYS = (
    "base_model model_type tokenizer_type load_in_4bit load_in_8bit adapter lora_r lora_alpha "
    "lora_dropout lora_target_linear lora_target_modules lora_model_dir lora_modules_to_save "
    "chat_template dataset_prepared_path val_set_size output_dir sequence_len sample_packing "
    "eval_sample_packing pad_to_sequence_len train_on_inputs micro_batch_size "
    "gradient_accumulation_steps num_epochs optimizer lr_scheduler learning_rate bf16 tf32 "
    "gradient_checkpointing attn_implementation flash_attention warmup_ratio evals_per_epoch "
    "saves_per_epoch loss_watchdog_threshold loss_watchdog_patience special_tokens tokens "
    "wandb_project wandb_entity deepspeed fsdp_version fsdp_config plugins strict "
    "save_first_step rl"
).split()


@pytest.mark.parametrize(
    ("base", "keys"), [(LF, LF_KEYS), (AX, AX_KEYS)], ids=["LLaMA-Factory", "Axolotl"]
)
def test_every_key_that_people_meet_first_is_known(
    tmp_path: Path, base: str, keys: list[str]
) -> None:
    for key in keys:
        given = {**yaml.safe_load(base), key: yaml.safe_load(base).get(key, 1)}
        made = translate(file_of(tmp_path, yaml.safe_dump(given)))
        (line,) = [line for line in made.lines if line.key == key]
        assert "not a known key" not in line.why, key
