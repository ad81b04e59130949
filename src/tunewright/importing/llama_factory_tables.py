"""Keys of LLaMA-Factory that have no field here: what nothing is lost with, what is not here, and
what belongs to some stages only. Source: LLaMA-Factory 0.9.5, `hparams/*.py`."""

from __future__ import annotations

from tunewright.importing.sheet import LOST, NOT_NEEDED

NOT_NEEDED_KEYS = {
    **dict.fromkeys(("do_train", "overwrite_output_dir"), "is_training"),
    **dict.fromkeys(
        (
            "overwrite_cache",
            "preprocessing_num_workers",
            "preprocessing_batch_size",
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "data_shared_file_system",
            "tokenized_path",
            "group_by_length",
            "dataloader_drop_last",
        ),
        "reads_itself",
    ),
    **dict.fromkeys(
        (
            "logging_steps",
            "logging_strategy",
            "logging_first_step",
            "plot_loss",
            "log_level",
            "logging_dir",
            "include_num_input_tokens_seen",
            "include_effective_tokens_per_second",
            "disable_tqdm",
        ),
        "every_step_logged",
    ),
    **dict.fromkeys(
        (
            "save_only_model",
            "save_total_limit",
            "save_safetensors",
            "per_device_eval_batch_size",
            "eval_accumulation_steps",
            "bf16_full_eval",
            "eval_on_each_dataset",
        ),
        "own_way",
    ),
    **dict.fromkeys(
        ("ddp_timeout", "ddp_find_unused_parameters", "local_rank", "ddp_backend"), "no_processes"
    ),
    **dict.fromkeys(
        (
            "gradient_checkpointing",
            "disable_gradient_checkpointing",
            "use_reentrant_gc",
            "use_unsloth_gc",
            "low_cpu_mem_usage",
        ),
        "memory",
    ),
    **dict.fromkeys(
        (
            "flash_attn",
            "attn",
            "enable_liger_kernel",
            "use_unsloth",
            "use_cache",
            "upcast_layernorm",
            "tf32",
            "torch_compile",
            "infer_backend",
        ),
        "own_kernels",
    ),
    **dict.fromkeys(("packing", "neat_packing"), "packing"),
    **dict.fromkeys(("double_quantization", "quantization_device_map"), "own_way"),
    **dict.fromkeys(
        (
            "cache_dir",
            "hf_hub_token",
            "ms_hub_token",
            "om_hub_token",
            "use_fast_tokenizer",
            "split_special_tokens",
            "print_param_status",
            "remove_unused_columns",
            "label_names",
            "ignore_pad_token_for_loss",
            "run_name",
            "project",
        ),
        "own_way",
    ),
    **dict.fromkeys(
        (
            "lora_dtype",
            "adapter_folder",
            "infer_dtype",
            "compute_dtype",
            "device_map",
            "model_max_length",
            "preserve_thinking",
            "resize_vocab",
            "quantization_type",
        ),
        "own_way",
    ),
    **dict.fromkeys(("upcast_lmhead_output", "use_kv_cache", "use_v1_kernels"), "own_kernels"),
    "offload_folder": "memory",
    "buffer_size": "reads_itself",
    "block_diag_attn": "packing",
    "eval_num_beams": "after",
}
LOST_KEYS = {
    "trust_remote_code": "remote_code",
    "train_on_prompt": "questions_unlearnt",
    "streaming": "streaming",
    "deepspeed": "one_device",
    "fsdp": "one_device",
    "fsdp_config": "one_device",
    "use_ray": "one_device",
    "report_to": "tracking",
    "use_swanlab": "tracking",
    "resume_from_checkpoint": "resume",
    "shift_attn": "rope",
    "init_special_tokens": "word_starts",
    "new_special_tokens_config": "word_starts",
    "tool_format": "template",
    "ref_model": "reference",
    "ref_model_adapters": "reference",
    "ref_model_quantization_bit": "reference",
    "predict_with_generate": "after",
    "do_predict": "after",
    "do_eval": "after",
    "compute_accuracy": "after",
    "media_dir": "media",
    **dict.fromkeys(("use_galore", "use_apollo", "use_badam"), "no_rule"),
    **dict.fromkeys(
        (
            "use_mca",
            "use_megatron_bridge",
            "use_hyper_parallel",
            "ld_alpha",
            "moe_aux_loss_coef",
            "train_from_scratch",
            "ppo_score_norm",
            "ppo_whiten_rewards",
            "disable_shuffling",
        ),
        "not_here",
    ),
    "create_new_adapter": "new_adapter",
}
BEGINNINGS: dict[str, tuple[str, str]] = {
    "badam_": (NOT_NEEDED, "off"),
    "galore_layerwise": (NOT_NEEDED, "memory"),
    "apollo_layerwise": (NOT_NEEDED, "memory"),
    "galore_proj_type": (NOT_NEEDED, "own_way"),
    "apollo_proj_type": (NOT_NEEDED, "own_way"),
    "apollo_scale_front": (LOST, "not_here"),
    "megatron_bridge_args": (LOST, "not_here"),
    "hyper_parallel_": (LOST, "one_device"),
    "profile_modules": (NOT_NEEDED, "every_step_logged"),
    "enable_torch_profiler": (NOT_NEEDED, "every_step_logged"),
    "ppo_buffer_size": (LOST, "not_here"),
    "reward_model_": (LOST, "reference"),
}
OF_GOALS = {
    **dict.fromkeys(
        ("pref_ftx", "pref_bco_weight", "dpo_label_smoothing", "ld_alpha"), ("dpo", "ipo")
    ),
    "simpo_gamma": ("simpo",),
    **dict.fromkeys(("kto_chosen_weight", "kto_rejected_weight"), ("kto",)),
    **dict.fromkeys(
        (
            "ppo_buffer_size",
            "ppo_epochs",
            "ppo_score_norm",
            "ppo_target",
            "ppo_whiten_rewards",
            "reward_model",
            "reward_model_adapters",
            "reward_model_quantization_bit",
            "reward_model_type",
        ),
        ("ppo",),
    ),
    **dict.fromkeys(
        ("ref_model", "ref_model_adapters", "ref_model_quantization_bit"),
        ("dpo", "ipo", "kto", "ppo"),
    ),
}
"""Settings of some stages only."""
