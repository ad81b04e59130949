"""Keys that several tools hand on to Transformers' trainer and that ours does without, or cannot
do; and keys that they share by name: positions, whole modules, parts at other rates, losses.

Source: Transformers 5.23, `TrainingArguments`.
"""

from __future__ import annotations

from typing import Any, get_args

from tunewright.core.registry import methods
from tunewright.importing.sheet import CHANGED, LOST, NOT_NEEDED, Sheet, words_of
from tunewright.objectives.preference import DpoLoss

NOT_NEEDED_KEYS = {
    **dict.fromkeys(("do_train", "overwrite_output_dir"), "is_training"),
    **dict.fromkeys(
        (
            "overwrite_cache",
            "preprocessing_num_workers",
            "preprocessing_batch_size",
            "dataset_num_proc",
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_persistent_workers",
            "dataloader_prefetch_factor",
            "dataloader_drop_last",
            "data_shared_file_system",
            "tokenized_path",
            "group_by_length",
            "train_sampling_strategy",
            "length_column_name",
            "data_seed",
        ),
        "reads_itself",
    ),
    **dict.fromkeys(
        (
            "logging_steps",
            "logging_strategy",
            "logging_first_step",
            "logging_dir",
            "logging_nan_inf_filter",
            "log_level",
            "log_level_replica",
            "log_on_each_node",
            "plot_loss",
            "include_num_input_tokens_seen",
            "include_effective_tokens_per_second",
            "disable_tqdm",
            "skip_memory_metrics",
            "log_completions",
            "num_completions_to_print",
            "log_unique_prompts",
        ),
        "every_step_logged",
    ),
    **dict.fromkeys(
        (
            "save_only_model",
            "save_total_limit",
            "save_safetensors",
            "safe_serialization",
            "max_shard_size",
            "per_device_eval_batch_size",
            "eval_accumulation_steps",
            "eval_on_each_dataset",
            "eval_on_start",
            "eval_delay",
            "prediction_loss_only",
            "bf16_full_eval",
            "fp16_full_eval",
            "cache_dir",
            "remove_unused_columns",
            "label_names",
            "run_name",
            "project",
            "metric_for_best_model",
            "greater_is_better",
            "average_tokens_across_devices",
            "ignore_data_skip",
            "full_determinism",
            "jit_mode_eval",
            "use_cpu",
            "debug",
            "do_eval",
            "precompute_ref_log_probs",
            "precompute_ref_batch_size",
            "reference_free",
        ),
        "own_way",
    ),
    **dict.fromkeys(
        (
            "ddp_timeout",
            "ddp_find_unused_parameters",
            "ddp_backend",
            "ddp_bucket_cap_mb",
            "ddp_broadcast_buffers",
            "local_rank",
            "ds3_gather_for_generation",
        ),
        "no_processes",
    ),
    **dict.fromkeys(
        (
            "gradient_checkpointing",
            "gradient_checkpointing_kwargs",
            "activation_checkpointing",
            "activation_offloading",
            "disable_gradient_checkpointing",
            "use_reentrant_gc",
            "use_unsloth_gc",
            "low_cpu_mem_usage",
            "auto_find_batch_size",
            "torch_empty_cache_steps",
            "use_logits_to_keep",
        ),
        "memory",
    ),
    **dict.fromkeys(
        (
            "flash_attn",
            "attn",
            "attn_impl",
            "attn_implementation",
            "enable_liger_kernel",
            "use_liger_kernel",
            "liger_kernel_config",
            "use_unsloth",
            "use_cache",
            "upcast_layernorm",
            "tf32",
            "torch_compile",
            "torch_compile_backend",
            "torch_compile_mode",
            "infer_backend",
            "use_vllm",
            "vllm_mode",
            "vllm_gpu_memory_utilization",
            "cast_lm_head_to_fp32",
        ),
        "own_kernels",
    ),
    **dict.fromkeys(
        (
            "packing",
            "neat_packing",
            "padding_free",
            "packing_strategy",
            "eval_packing",
            "pad_to_multiple_of",
            "padding_side",
            "pad_token",
        ),
        "packing",
    ),
}
LOST_KEYS = {
    "trust_remote_code": "remote_code",
    "streaming": "streaming",
    "dataset_streaming": "streaming",
    **dict.fromkeys(
        ("deepspeed", "fsdp", "fsdp_config", "accelerator_config", "parallelism_config"),
        "one_device",
    ),
    "report_to": "tracking",
    "resume_from_checkpoint": "resume",
    **dict.fromkeys(
        ("push_to_hub", "hub_model_id", "hub_strategy", "hub_private_repo", "hub_token"), "hub"
    ),
    "torch_dtype_eval": "own_way",
    **dict.fromkeys(
        ("ref_model", "sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"),
        "reference",
    ),
    "do_predict": "after",
    **dict.fromkeys(
        ("ld_alpha", "f_divergence_type", "f_alpha_divergence_coef", "router_aux_loss_coef"),
        "not_here",
    ),
}
KINDS = ("linear", "dynamic", "yarn", "llama3")
LOSSES_HERE = set(get_args(DpoLoss))
"""Losses on pairs; those that TRL has, too, have the same names there."""


def rotary(sheet: Sheet, key: str) -> None:
    """`rope_scaling`: a word, whose factor follows from the longest row, or a mapping."""
    parts = {
        name.rpartition(".")[2]: sheet.given[name]
        for name in sheet.given
        if name.startswith(f"{key}.") and sheet.has(name)
    }
    if not parts and not sheet.has(key):
        return
    kind = str(parts.get("rope_type", parts.get("type", sheet.get(key, "")))).lower()
    if kind not in KINDS:
        for name in (key, *(f"{key}.{part}" for part in parts)):
            sheet.answer(name, LOST, why="rope_kind", known=", ".join(KINDS))
        return
    made: dict[str, Any] = {"kind": kind}
    names = {
        "factor": "factor",
        "original_max_position_embeddings": "original",
        "attention_factor": "attention_factor",
        "beta_fast": "beta_fast",
        "beta_slow": "beta_slow",
    }
    made |= {names[part]: value for part, value in parts.items() if part in names}
    why = "rotary" if "factor" in made else "rotary_auto"
    sheet.answer(key, CHANGED, {"base.rotary": made}, why)
    for part in parts:
        known = part in names or part in ("type", "rope_type")
        if known:
            sheet.answer(f"{key}.{part}", CHANGED, {"base.rotary": made}, why)
        else:
            sheet.answer(f"{key}.{part}", LOST, why="rope_kind", known=", ".join(KINDS))


def whole_modules(sheet: Sheet, *keys: str) -> None:
    """Modules that train whole beside an adapter, where the method has room for them."""
    for key in keys:
        names = words_of(sheet.get(key, ""))
        if not names:
            continue
        kind = str(sheet.run.get("method.kind", ""))
        entry = methods.get(kind)
        if entry is not None and "modules_to_save" in getattr(entry.config, "model_fields", {}):
            sheet.take(key, "method.modules_to_save", names, "" if len(keys) == 1 else "whole")
        elif kind in ("full", "lisa", "galore", "apollo"):
            sheet.answer(key, NOT_NEEDED, why="all_train")
        else:
            sheet.answer(key, LOST, why="no_field", kind=kind, axis="method")


def patterns(sheet: Sheet, prefix: str = "") -> None:
    """`rank_pattern` and `alpha_pattern` of PEFT, whose keys were made dotted."""
    for name in ("rank_pattern", "alpha_pattern"):
        key = f"{prefix}{name}"
        inner = {k: v for k, v in sheet.given.items() if k.startswith(f"{key}.") and sheet.has(k)}
        if sheet.has(key) and isinstance(sheet.get(key), dict):
            sheet.take_if_known(key, "method", name, sheet.get(key))
        if inner:
            whole = {k.removeprefix(f"{key}."): v for k, v in inner.items()}
            for k in inner:
                sheet.take_if_known(k, "method", name, whole, why="pattern")


def role_rate(sheet: Sheet, key: str, role: str, factor: float | None) -> None:
    """A rate of its own for a part, as a factor on the learning rate."""
    if not sheet.has(key):
        return
    if factor is None or factor <= 0:
        sheet.answer(key, LOST, why="no_number")
        return
    rates = {**sheet.run.get("engine.rates", {}), role: round(factor, 8)}
    sheet.answer(key, CHANGED, {"engine.rates": rates}, "role_rate")


def embedding_rate(sheet: Sheet, key: str) -> None:
    """The rate of the embedding as a number, by which the learning rate is divided."""
    rate, peak = sheet.number(key), sheet.number("learning_rate")
    role_rate(sheet, key, "embedding", rate / peak if rate is not None and peak else None)


def preference_losses(sheet: Sheet, key: str, weights_key: str) -> None:
    """One loss on pairs or several with weights; an SFT loss among them is the weight of our SFT
    term."""
    given = words_of(sheet.get(key, ""))
    if not given:
        return
    listed = sheet.get(weights_key)
    weights = [float(w) for w in words_of(listed)] if listed is not None else [1.0] * len(given)
    unknown = [loss for loss in given if loss not in LOSSES_HERE | {"sft"}]
    if unknown or len(weights) != len(given):
        sheet.answer(key, LOST, why="no_loss", known=", ".join(sorted(LOSSES_HERE)))
        sheet.answer(weights_key, LOST, why="no_loss", known=", ".join(sorted(LOSSES_HERE)))
        return
    pairs = [(loss, w) for loss, w in zip(given, weights, strict=True) if loss != "sft"]
    ours: dict[str, Any] = {}
    if len(pairs) == 1 and pairs[0][1] == 1.0:
        ours["objective.loss"] = pairs[0][0]
    elif pairs:
        ours["objective.loss"] = [loss for loss, _ in pairs]
        if any(w != 1.0 for _, w in pairs):
            ours["objective.loss_weights"] = [w for _, w in pairs]
    sft = sum(w for loss, w in zip(given, weights, strict=True) if loss == "sft")
    if sft:
        ours["objective.sft_weight"] = sft
    sheet.answer(key, CHANGED, ours, "losses")
    sheet.answer(weights_key, CHANGED, ours, "losses")


def own_template(sheet: Sheet, key: str) -> None:
    """A chat template in a file, taken over; a name of the tool's own is not needed."""
    value = str(sheet.get(key, ""))
    if value.endswith((".jinja", ".jinja2", ".j2")):
        sheet.take(key, "data.template", value)
    elif value == "chatml":
        sheet.take(key, "data.template", "chatml", "template_named")
    elif value:
        sheet.answer(key, NOT_NEEDED, why="template")


def of_groups(sheet: Sheet) -> None:
    """What GRPO's ratio is of, and by what its advantages are divided."""
    levels = {"token": "token", "sequence": "answer"}
    level = levels.get(str(sheet.get("importance_sampling_level", "")))
    if level:
        sheet.take_if_known("importance_sampling_level", "objective", "ratio", level)
    elif sheet.has("importance_sampling_level"):
        sheet.answer("importance_sampling_level", LOST, why="not_here")
    scale = str(sheet.get("scale_rewards", "")).lower()
    named = {"true": "group", "group": "group", "batch": "batch", "none": "none", "false": "none"}
    if scale in named:
        sheet.take_if_known("scale_rewards", "objective", "scale", named[scale])
    elif sheet.has("scale_rewards"):
        sheet.answer("scale_rewards", LOST, why="not_here")


def by_beginning(sheet: Sheet, table: dict[str, tuple[str, str]]) -> None:
    """Answer what is left by the beginnings of its names: (`not_needed` or `lost`, the reason).
    What is off is not needed."""
    for key in sheet.given:
        if key in sheet.lines or not sheet.has(key):
            continue
        fate, why = next((v for begin, v in table.items() if key.startswith(begin)), ("", ""))
        if fate == LOST and not sheet.is_on(key):
            sheet.answer(key, NOT_NEEDED, why="off")
        elif fate:
            sheet.answer(key, fate, why=why)


def of_other_goals(sheet: Sheet, kind: str, table: dict[str, tuple[str, ...]]) -> None:
    """Settings of objectives that this run does not have: they did nothing there."""
    for key, kinds in table.items():
        if kind not in kinds and sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="other_goal", kind=kind)


MORE_NOT_NEEDED = {
    **dict.fromkeys(
        (
            "eval_do_concat_batches",
            "eval_use_gather_object",
            "include_for_metrics",
            "batch_eval_metrics",
            "save_on_each_node",
            "enable_jit_checkpoint",
            "restore_callback_states_from_checkpoint",
            "cache_implementation",
            "generation_batch_size",
            "steps_per_generation",
            "num_generations_eval",
            "use_transformers_continuous_batching",
            "transformers_continuous_batching_config",
            "use_transformers_paged",
            "log_multimodal",
            "use_bias_correction_kl",
        ),
        "own_way",
    ),
    **dict.fromkeys(("dataloader_multiprocessing_context", "dataloader_in_order"), "reads_itself"),
    "activation_checkpointing_kwargs": "memory",
    "ddp_static_graph": "no_processes",
}
BEGINNINGS: dict[str, tuple[str, str]] = {
    "vllm_": (NOT_NEEDED, "own_kernels"),
    "profiler_": (NOT_NEEDED, "every_step_logged"),
    "trackio_": (LOST, "tracking"),
    "wandb_": (LOST, "tracking"),
    "swanlab_": (LOST, "tracking"),
    "comet_": (LOST, "tracking"),
    "mlflow_": (LOST, "tracking"),
    "hf_mlflow_": (LOST, "tracking"),
    "otel_": (LOST, "tracking"),
    "hub_": (LOST, "hub"),
    "gradio_": (NOT_NEEDED, "after"),
    "ray_": (LOST, "one_device"),
    "fsdp_": (LOST, "one_device"),
    "fp8": (LOST, "not_here"),
    "optim_": (LOST, "no_argument"),
    "sapo_": (LOST, "not_here"),
    "vespo_": (LOST, "not_here"),
    "entropy_": (LOST, "not_here"),
    "use_adaptive_entropy": (LOST, "not_here"),
    "off_policy_mask_threshold": (LOST, "not_here"),
    "max_tool_calling_iterations": (LOST, "not_here"),
    "log_completions_hub_repo": (LOST, "hub"),
    "reward_weights": (LOST, "reward_funcs_tune"),
}
"""What is left of keys that several tools share, by the beginnings of their names."""


def revision(sheet: Sheet, key: str) -> None:
    """The version of a model on its hub."""
    if str(sheet.get(key, "main")) != "main":
        sheet.answer(key, LOST, why="revision")
    elif sheet.has(key):
        sheet.answer(key, NOT_NEEDED, why="off")


def template_arguments(sheet: Sheet, key: str) -> None:
    """Arguments that the chat template is given, whose names were made dotted."""
    inner = {k: v for k, v in sheet.given.items() if k.startswith(f"{key}.") and sheet.has(k)}
    whole = {k.removeprefix(f"{key}."): v for k, v in inner.items()}
    for k in inner:
        sheet.answer(k, CHANGED, {"data.template_arguments": whole}, "pattern")
