"""Keys of ms-swift that have no field here: what nothing is lost with, what is not here, and what
belongs to some objectives only. Source: as of `swift.py`."""

from __future__ import annotations

from tunewright.importing import trainer
from tunewright.importing.sheet import LOST, NOT_NEEDED

DRAWN = ("grpo", "ppo")
NOT_NEEDED_KEYS = {
    **trainer.NOT_NEEDED_KEYS,
    **dict.fromkeys(
        (
            "tuner_backend",
            "add_version",
            "create_checkpoint_symlink",
            "load_args",
            "load_data_args",
            "check_model",
            "ignore_args_error",
            "enable_npu_model_patch",
            "use_swift_lora",
            "acc_strategy",
            "lora_dtype",
            "bnb_4bit_compute_dtype",
            "bnb_4bit_quant_storage",
            "device_map",
            "max_memory",
            "local_repo_path",
            "use_flash_ckpt",
            "download_mode",
            "strict",
            "max_pixels",
            "norm_bbox",
            "template_backend",
            "agent_template",
            "lazy_tokenize",
        ),
        "own_way",
    ),
    **dict.fromkeys(
        (
            "load_from_cache_file",
            "cached_dataset",
            "cached_val_dataset",
            "dataset_shuffle",
            "train_dataloader_shuffle",
            "val_dataset_shuffle",
            "shuffle_buffer_size",
            "packing_length",
            "packing_num_proc",
            "disable_auto_column_mapping",
        ),
        "reads_itself",
    ),
    **dict.fromkeys(("freeze_vit", "freeze_aligner", "vit_gradient_checkpointing"), "text_only"),
    "model_type": "told_by_config",
    "template": "template",
    "use_chat_template": "template",
    "experts_impl": "own_kernels",
    "add_non_thinking_prefix": "own_way",
}
LOST_KEYS = {
    **trainer.LOST_KEYS,
    **dict.fromkeys(
        ("sequence_parallel_size", "zero_hpz_partition_size", "deepspeed_autotp_size"), "one_device"
    ),
    **dict.fromkeys(("external_plugins", "custom_register_path", "callbacks"), "plugins"),
    "custom_dataset_info": "registry_form",
    **dict.fromkeys(("vit_lr", "aligner_lr", "freeze_llm"), "media"),
    **dict.fromkeys(("swanlab_project", "swanlab_exp_name", "swanlab_token"), "tracking"),
    **dict.fromkeys(("model_name", "model_author"), "identity_rows"),
    "target_parameters": "experts_by_role",
    "target_regex": "regex_targets",
    **dict.fromkeys(
        ("freeze_parameters", "freeze_parameters_regex", "freeze_parameters_ratio"), "unfrozen"
    ),
    "model_revision": "revision",
    "resume_only_model": "resume",
    **dict.fromkeys(
        (
            "eval_use_evalscope",
            "eval_dataset",
            "eval_dataset_args",
            "eval_limit",
            "eval_generation_config",
            "extra_eval_args",
            "eval_metric",
        ),
        "after",
    ),
    **dict.fromkeys(
        (
            "task_type",
            "num_labels",
            "problem_type",
            "init_strategy",
            "is_binary_loss_scale",
            "response_prefix",
            "enable_channel_loss",
            "mrl_dims",
            "lora_bias",
            "discopop_tau",
            "seq_kd",
            "galore_quantization",
            "galore_with_embedding",
            "reward_weights",
            "use_liger_loss",
        ),
        "not_here",
    ),
}
BEGINNINGS: dict[str, tuple[str, str]] = {
    "lora_ga_": (NOT_NEEDED, "off"),
    "fourier_": (NOT_NEEDED, "off"),
    "reft_": (NOT_NEEDED, "off"),
    "boft_": (NOT_NEEDED, "off"),
    "vera_": (NOT_NEEDED, "off"),
    "adalora_": (NOT_NEEDED, "own_way"),
    "galore_": (NOT_NEEDED, "own_way"),
    "llamapro_num_groups": (LOST, "not_here"),
    "trainable_parameters": (LOST, "unfrozen"),
    "reward_": (LOST, "reference"),
    "teacher_": (NOT_NEEDED, "told_by_config"),
    "ref_": (LOST, "reference"),
    "offload_teacher_model": (NOT_NEEDED, "memory"),
    "local_rollout_forward_batch_size": (NOT_NEEDED, "memory"),
    "num_sample_generations": (NOT_NEEDED, "every_step_logged"),
    "model_kwargs": (LOST, "not_here"),
    "disable_ignore_empty_think": (NOT_NEEDED, "own_way"),
    "preserve_thinking": (NOT_NEEDED, "own_way"),
    "stopping_strategy": (NOT_NEEDED, "own_way"),
    "interleave_prob": (LOST, "no_shares"),
    "sft_alpha": (LOST, "not_here"),
    "max_epochs": (NOT_NEEDED, "off"),
    "loss_weights": (NOT_NEEDED, "off"),
}
PAIRS = ("dpo", "ipo", "orpo", "simpo", "cpo", "kto", "bco")
ROLLS = (*DRAWN, "gkd")
OF_GOALS = {
    **dict.fromkeys(
        (
            "num_ppo_epochs",
            "whiten_rewards",
            "kl_coef",
            "cliprange",
            "vf_coef",
            "cliprange_value",
            "gamma",
            "lam",
            "num_mini_batches",
            "response_length",
            "missing_eos_penalty",
            "reward_model",
            "reward_adapters",
            "reward_model_type",
            "reward_model_revision",
            "reward_template",
        ),
        ("ppo",),
    ),
    **dict.fromkeys(
        ("num_generations", "reward_funcs", "num_iterations", "reward_weights"), ("grpo",)
    ),
    **dict.fromkeys(("max_completion_length",), ROLLS),
    **dict.fromkeys(("teacher_model", "lmbda", "gkd_logits_topk", "seq_kd", "sft_alpha"), ("gkd",)),
    "beta": (*PAIRS, *ROLLS),
    "rpo_alpha": ("dpo", "ipo"),
    "ld_alpha": ("dpo", "ipo"),
    "discopop_tau": ("dpo",),
    "cpo_alpha": ("cpo", "simpo"),
    "simpo_gamma": ("simpo",),
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), ("kto",)),
    "center_rewards_coefficient": ("reward",),
    **dict.fromkeys(
        ("ref_model", "ref_adapters", "ref_model_type", "ref_model_revision"), (*PAIRS, *DRAWN)
    ),
}
"""Settings of some objectives only."""
