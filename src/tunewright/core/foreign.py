"""Keys of other systems, answered with ours and the converted value.

Source of the names: LLaMA-Factory 0.9.5, Axolotl 0.18, TRL 1.16 and PEFT 0.21 documentation.
"""

from __future__ import annotations

from typing import Any

from tunewright.core.errors import Problem, problem

RENAMED = {
    "r": "method.rank",
    "lora_r": "method.rank",
    "lora_rank": "method.rank",
    "lora_alpha": "method.alpha",
    "lora_dropout": "method.dropout",
    "lora_target": "method.targets",
    "target_modules": "method.targets",
    "lora_target_modules": "method.targets",
    "finetuning_type": "method.kind",
    "num_train_epochs": "engine.epochs",
    "num_epochs": "engine.epochs",
    "max_steps": "engine.steps",
    "per_device_train_batch_size": "engine.batch_size",
    "micro_batch_size": "engine.batch_size",
    "lr": "engine.learning_rate",
    "lr_scheduler_type": "engine.schedule",
    "lr_scheduler": "engine.schedule",
    "warmup_ratio": "engine.warmup",
    "warmup_steps": "engine.warmup",
    "max_grad_norm": "engine.clip",
    "optim": "engine.optimizer",
    "save_steps": "engine.save_every",
    "eval_steps": "engine.evaluate_every",
    "cutoff_len": "data.max_tokens",
    "max_length": "data.max_tokens",
    "max_seq_length": "data.max_tokens",
    "sequence_len": "data.max_tokens",
    "max_samples": "data.limit",
    "val_size": "data.held_out",
    "val_set_size": "data.held_out",
    "dataset": "data.train",
    "datasets": "data.train",
    "dataset_dir": "data.dir",
    "model_name_or_path": "model",
    "base_model": "model",
    "output_dir": "out",
    "adapter_name_or_path": "adapter",
    "pref_beta": "objective.beta",
    "rl_beta": "objective.beta",
    "quantization_bit": "base.bits",
    "quantization_type": "base.type",
    "adapter_path": "adapter",
    "lora_model_dir": "adapter",
    "eval_dataset": "data.held_out",
    "test_datasets": "data.held_out",
    "default_system": "data.system",
    "early_stopping_steps": "engine.early_stop",
    "early_stopping_patience": "engine.early_stop",
    "load_best_model_at_end": "engine.keep_best",
    "neftune_noise_alpha": "engine.neftune",
    "stage": "objective.kind",
    "rl": "objective.kind",
    "additional_target": "method.modules_to_save",
    "lora_modules_to_save": "method.modules_to_save",
    "use_dora": "method.dora",
    "use_rslora": "method.rslora",
    "report_to": "track",
}
STAGES = {"pt": "pretrain", "rm": "reward"}
"""LLaMA-Factory's words for what is optimised, where ours differ; `tunewright import` turns a whole
file of theirs into one of ours."""
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}
WITHOUT_KEY = {
    "template": "E-CONFIG-10",
    "gradient_checkpointing": "E-CONFIG-11",
    "packing": "E-CONFIG-12",
    "neat_packing": "E-CONFIG-12",
    "sample_packing": "E-CONFIG-12",
    "train_on_inputs": "E-CONFIG-13",
    "train_on_prompt": "E-CONFIG-13",
    "trust_remote_code": "E-CONFIG-14",
}
"""Keys that we do not have on purpose; each has a message of its own."""
NOT_NEEDED = frozenset(
    {
        "do_train",
        "do_eval",
        "overwrite_cache",
        "overwrite_output_dir",
        "preprocessing_num_workers",
        "dataloader_num_workers",
        "dataset_num_proc",
        "logging_steps",
        "logging_strategy",
        "logging_dir",
        "plot_loss",
        "save_strategy",
        "save_total_limit",
        "save_only_model",
        "save_safetensors",
        "ddp_timeout",
        "remove_unused_columns",
    }
)
"""Keys that say what happens here anyway, or how another system works."""
SURELY_THEIRS = 3
"""Keys of other systems in one file from which on the whole file is taken for theirs."""


def whole_file(unknown: list[Problem]) -> list[Problem]:
    """The problems of unknown keys, after the advice to convert the file where most of it is
    another system's."""
    theirs = [p for p in unknown if p.code in ("E-CONFIG-04", "E-CONFIG-49")]
    files = [p.where.rpartition(", line ")[0] for p in theirs]
    file = max(set(files) - {""}, key=files.count, default="")
    if not file or files.count(file) < SURELY_THEIRS:
        return unknown
    return [problem("E-CONFIG-50", file, file=file, count=files.count(file)), *unknown]


def translate(key: str, value: Any, siblings: dict[str, Any]) -> tuple[str, Any] | None:
    """Our key and value for a key of another system, or None. `siblings` are all keys given,
    because some convert only together."""
    name = key.rsplit(".", 1)[-1]
    if name in DTYPES:
        return "engine.dtype", DTYPES[name] if value in (True, "true", "auto") else "float32"
    if name in ("load_in_4bit", "load_in_8bit"):
        return "base.bits", int(name[8])
    if name in ("gradient_accumulation_steps", "per_device_train_batch_size", "micro_batch_size"):
        given = {k.rsplit(".", 1)[-1]: v for k, v in siblings.items()}
        each = given.get("per_device_train_batch_size", given.get("micro_batch_size"))
        rounds = given.get("gradient_accumulation_steps", 1)
        if not isinstance(each, int):
            each = given.get("batch_size", 1)
        if isinstance(each, int) and isinstance(rounds, int):
            return "engine.batch_size", each * rounds
        return "engine.batch_size", value
    if name == "max_steps" and value == -1:  # their word for "not set"
        return "engine.steps", "null"
    if name in RENAMED:
        return RENAMED[name], _converted(RENAMED[name], value)
    return None


def _converted(ours: str, value: Any) -> Any:
    """A value in our words: names of optimisers and schedules, lists written with commas."""
    text = str(value).lower()
    if ours == "objective.kind":
        return STAGES.get(text, value)
    if ours == "engine.optimizer" and text.startswith("adamw"):
        return "adamw"
    if ours == "engine.schedule":
        return next(
            (shape for shape in ("cosine", "linear", "constant") if text.startswith(shape)), value
        )
    if ours in ("method.modules_to_save", "method.targets"):
        if text in ("all", "all-linear"):
            return ["linear"]
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value
    return value
