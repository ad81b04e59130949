"""Axolotl's keys. Source: Axolotl 0.18, utils/schemas (defaults), core/builders (warm-up) and docs
of its dataset formats."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tunewright.data.files.turns import ROLES
from tunewright.importing import axolotl_tables, shared, trainer
from tunewright.importing.sheet import CHANGED, DEFAULT, LOST, NOT_NEEDED, SAME, Sheet, words_of

NAME = "Axolotl"
OWN = {
    "base_model",
    "adapter",
    "datasets",
    "micro_batch_size",
    "num_epochs",
    "sequence_len",
    "lora_r",
    "lora_target_modules",
    "lora_target_linear",
    "val_set_size",
    "sample_packing",
    "load_in_4bit",
    "load_in_8bit",
    "lr_scheduler",
    "optimizer",
    "chat_template",
    "rl",
    "dataset_prepared_path",
    "evals_per_epoch",
    "saves_per_epoch",
    "train_on_inputs",
    "lora_model_dir",
    "pad_to_sequence_len",
}
"""Keys by which its files are told."""
GOALS = {"dpo": "dpo", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo", "kto": "kto", "grpo": "grpo"}
JUDGES = {"process_reward_model": "process_reward", "reward_model": "reward"}
"""Switches that say what is trained, and the objective here."""
TYPES = {
    "alpaca": "alpaca",
    "chat_template": "auto",
    "sharegpt": "sharegpt",
    "completion": "text",
    "gpteacher": "alpaca",
    "alpaca_chat": "alpaca",
    "chat_template.default": "preference",
    "chat_template.argilla": "preference",
    "passthrough": "auto",
    "stepwise_supervised": "stepwise",
}
ENDINGS = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".txt", ".gz")
UNDERSTOOD = {
    "path",
    "data_files",
    "field",
    "field_messages",
    "field_chosen",
    "field_rejected",
    "field_system",
    "field_tools",
}
"""Keys of a set that `_place` and `_form` take over."""
ENTRY_NOT_NEEDED = {
    "ds_type": "told_by_ending",
    "chat_template": "template",
    "chat_template_jinja": "template",
    "preprocess_shards": "off",
    "name": "off",
}
ENTRY_LOST = {
    "message_field_training_detail": "mark_detail",
    "shards": "shards",
    "shards_idx": "shards",
    "drop_system_message": "system_kept",
    "revision": "entry_revision",
    "trust_remote_code": "remote_code",
    "skip": "entry_skip",
    **dict.fromkeys(("field_thinking", "template_thinking_key", "split_thinking"), "thinking"),
    **dict.fromkeys(
        ("field_human", "field_model", "input_format", "input_transform", "format", "conversation"),
        "entry_form",
    ),
}
MARKS = ("loss", "train", "training", "trainable", "loss_mask", "weight")
"""Names on a turn that say whether it is learnt, as rows here may carry them."""
SWITCHES = {"peft_use_dora": "dora", "peft_use_rslora": "rslora"}
VARIANTS = {"pissa": "pissa", "olora": "olora", "eva": "eva", "loftq": "loftq"}
"""Beginnings of `peft_init_lora_weights`, and the method here."""
NOT_NEEDED_KEYS = {
    **dict.fromkeys(
        (
            "dataset_prepared_path",
            "dataset_processes",
            "dataset_num_proc",
            "dataloader_num_workers",
            "dataloader_pin_memory",
            "dataloader_prefetch_factor",
            "group_by_length",
            "dataset_exact_deduplication",
            "shuffle_merged_datasets",
        ),
        "reads_itself",
    ),
    **dict.fromkeys(
        (
            "sample_packing",
            "eval_sample_packing",
            "pad_to_sequence_len",
            "multipack_real_batches",
            "sample_packing_sequentially",
            "curriculum_sampling",
        ),
        "packing",
    ),
    **dict.fromkeys(
        (
            "model_type",
            "tokenizer_type",
            "is_llama_derived_model",
            "is_mistral_derived_model",
            "is_falcon_derived_model",
        ),
        "told_by_config",
    ),
    **dict.fromkeys(("logging_steps", "debug", "include_tokens_per_second"), "every_step_logged"),
    **dict.fromkeys(
        (
            "gradient_checkpointing",
            "gradient_checkpointing_kwargs",
            "activation_offloading",
            "low_cpu_mem_usage",
        ),
        "memory",
    ),
    **dict.fromkeys(
        (
            "flash_attention",
            "attn_implementation",
            "xformers_attention",
            "sdp_attention",
            "flex_attention",
            "flash_attn_rms_norm",
            "flash_attn_cross_entropy",
            "tf32",
            "torch_compile",
            "lora_mlp_kernel",
            "lora_qkv_kernel",
            "lora_o_kernel",
            "liger_rms_norm",
            "liger_rope",
            "liger_glu_activation",
            "liger_fused_linear_cross_entropy",
            "liger_layer_norm",
            "lora_fan_in_fan_out",
        ),
        "own_kernels",
    ),
    **dict.fromkeys(
        (
            "save_total_limit",
            "save_safetensors",
            "save_only_model",
            "save_first_step",
            "eval_batch_size",
            "bnb_config_kwargs",
            "strict",
            "local_rank",
            "ddp_timeout",
            "use_tensorboard",
            "auto_resume_from_checkpoints",
            "eval_table_size",
            "eval_max_new_tokens",
            "remove_unused_columns",
        ),
        "own_way",
    ),
    "special_tokens.pad_token": "padding",
}
LOST_KEYS = {
    "trust_remote_code": "remote_code",
    "train_on_inputs": "questions_unlearnt",
    "streaming": "streaming",
    "deepspeed": "one_device",
    "fsdp": "one_device",
    "fsdp_config": "one_device",
    "fsdp_version": "one_device",
    "tensor_parallel_size": "one_device",
    "context_parallel_size": "one_device",
    "resume_from_checkpoint": "resume",
    "unfrozen_parameters": "unfrozen",
    "added_tokens_overrides": "vocabulary",
    "special_tokens": "special_tokens",
    "loss_watchdog_threshold": "watchdog",
    "loss_watchdog_patience": "watchdog",
    "plugins": "plugins",
    "hub_model_id": "hub",
    "hub_strategy": "hub",
    "peft": "not_here",
    "qat": "not_here",
    "relora": "not_here",
    "lora_on_cpu": "not_here",
    "rope_theta": "rope",
    "overrides_of_model_config": "rope",
    "use_asft": "asft",
    "revision_of_model": "revision",
    "tokenizer_config": "own_tokenizer",
    "base_model_config": "own_tokenizer",
    **dict.fromkeys(
        ("kd_trainer", "kd_alpha", "kd_ce_alpha", "kd_temperature", "kd_top_k_before_softmax"),
        "distill",
    ),
    **dict.fromkeys(
        (
            "wandb_project",
            "wandb_entity",
            "wandb_watch",
            "wandb_name",
            "wandb_log_model",
            "wandb_run_id",
            "wandb_mode",
            "use_mlflow",
            "mlflow_experiment_name",
            "mlflow_tracking_uri",
            "use_comet",
            "comet_project_name",
            "use_swanlab",
            "use_trackio",
        ),
        "tracking",
    ),
}


def translate(sheet: Sheet, devices: int) -> None:
    """Answer the keys of an Axolotl training file."""
    sheet.take("base_model", "model")
    _method(sheet)
    _objective(sheet)
    _data(sheet)
    sheet.take("output_dir", "out")
    shared.batch(sheet, "micro_batch_size", 1, devices)
    shared.length(sheet, "num_epochs")
    sheet.fill("num_epochs", {"engine.epochs": 1.0}, 1.0)
    shared.rate(sheet, "lr_scheduler")
    if sheet.get("lr_scheduler", "cosine") == "cosine":
        sheet.take_number("cosine_min_lr_ratio", "engine.least_rate")
    else:
        sheet.answer("cosine_min_lr_ratio", NOT_NEEDED, why="off")
    if not sheet.has("warmup_steps") and not sheet.has("warmup_ratio"):
        sheet.fill("warmup_ratio", {"engine.warmup": 0.03}, 0.03)
    shared.optimizer(sheet, "optimizer")
    trainer.embedding_rate(sheet, "embedding_lr")
    scale = sheet.number("embedding_lr_scale")
    trainer.role_rate(sheet, "embedding_lr_scale", "embedding", scale)
    _rate_groups(sheet)
    trainer.rotary(sheet, "overrides_of_model_config.rope_scaling")
    trainer.rotary(sheet, "rope_scaling")
    trainer.template_arguments(sheet, "chat_template_kwargs")
    for key in ("chat_template", "chat_template_jinja"):
        trainer.own_template(sheet, key)
    for key in ("neftune_noise_alpha", "noisy_embedding_alpha"):
        sheet.take_number(key, "engine.neftune")
    shared.number_type(sheet)
    shared.intervals(sheet)
    for key, ours in (
        ("saves_per_epoch", "engine.save_every"),
        ("evals_per_epoch", "engine.evaluate_every"),
    ):
        count = sheet.number(key)
        if count is not None:
            sheet.take(
                key,
                ours,
                "epoch" if count == 1 else "auto",
                "once_an_epoch" if count == 1 else "per_epoch",
            )
    sheet.take_number("early_stopping_patience", "engine.early_stop")
    if not shared.no_rows_held_out(sheet):
        sheet.fill("load_best_model_at_end", {"engine.keep_best": False}, False)
    sheet.pass_over(
        {**trainer.NOT_NEEDED_KEYS, **NOT_NEEDED_KEYS, **axolotl_tables.NOT_NEEDED_KEYS},
        {**trainer.LOST_KEYS, **LOST_KEYS},
    )
    trainer.by_beginning(sheet, {**axolotl_tables.BEGINNINGS, **trainer.BEGINNINGS})


def _kind(sheet: Sheet, adapter: str, start: str) -> str:
    """The method here. `start` is the method of a start of LoRA's matrices."""
    if not adapter:
        return "lisa" if sheet.has("lisa_n_layers") else "full"
    if adapter not in ("lora", "qlora"):
        return adapter
    if start:
        return start
    for key, name in SWITCHES.items():
        if sheet.is_on(key):
            return name
    return "lora_plus" if sheet.has("loraplus_lr_ratio") else "lora"


def _variants(sheet: Sheet, kind: str, start: str) -> None:
    """Answer the switches of LoRA's variants: of several, one is the method."""
    for key, name in SWITCHES.items():
        if not sheet.is_on(key):
            if sheet.has(key):
                sheet.answer(key, NOT_NEEDED, why="off")
        elif kind == name:
            sheet.answer(key, CHANGED, {"method.kind": name}, "variant", kind=kind)
        else:
            sheet.answer(key, LOST, why="one_variant", kind=kind)
    key = "peft_init_lora_weights"
    if start and kind == start:
        sheet.answer(key, CHANGED, {"method.kind": kind}, "variant", kind=kind)
    elif str(sheet.get(key)).lower() == "true":
        sheet.answer(key, NOT_NEEDED, why="off", kind=kind)
    elif sheet.has(key):
        sheet.answer(key, LOST, why="no_start", kind=kind)


def _method(sheet: Sheet) -> None:
    adapter = str(sheet.get("adapter", ""))
    begun = str(sheet.get("peft_init_lora_weights", "")).lower()
    start = next((ours for begin, ours in VARIANTS.items() if begun.startswith(begin)), "")
    kind = _kind(sheet, adapter, start)
    sheet.run["method.kind"] = kind
    sheet.take("adapter", "method.kind", kind, "qlora" if adapter == "qlora" else "")
    if not adapter and kind == "full":
        sheet.answer("adapter", DEFAULT, {"method.kind": "full"}, "no_adapter")
    for key, ours in (("lisa_n_layers", "method.blocks"), ("lisa_step_interval", "method.every")):
        if kind == "lisa":
            sheet.take_number(key, ours)
        elif sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="other_method", kind=kind)
    if sheet.has("lisa_layers_attribute"):
        sheet.answer("lisa_layers_attribute", NOT_NEEDED, why="own_way")
    _variants(sheet, kind, start)
    sheet.take_if_known("loraplus_lr_ratio", "method", "ratio", sheet.number("loraplus_lr_ratio"))
    trainer.whole_modules(sheet, "lora_modules_to_save")
    trainer.patterns(sheet, "peft.")
    trainer.patterns(sheet, "lora_")
    layers = sheet.get("peft_layers_to_transform")
    if layers is not None:
        sheet.take_if_known("peft_layers_to_transform", "method", "layers", layers)
    ids = sheet.get("peft_trainable_token_indices")
    if isinstance(ids, list):
        sheet.take_if_known("peft_trainable_token_indices", "method", "new_tokens", ids)
    elif ids is not None:
        sheet.answer("peft_trainable_token_indices", LOST, why="no_field", kind=kind, axis="method")
    shared.new_words(sheet, "tokens")
    for key, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if sheet.is_on(key):
            sheet.take(key, "base.bits", bits)
        elif sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="off")
    if adapter in ("lora", "qlora"):
        for key, ours in (("lora_r", "rank"), ("lora_alpha", "alpha"), ("lora_dropout", "dropout")):
            sheet.take_number(key, f"method.{ours}")
        _targets(sheet)
    else:
        for key in (
            "lora_r",
            "lora_alpha",
            "lora_dropout",
            "lora_target_modules",
            "lora_target_linear",
        ):
            if sheet.has(key):
                sheet.answer(key, NOT_NEEDED, why="other_method", kind=kind)
    sheet.take("lora_model_dir", "adapter")


def _rate_groups(sheet: Sheet) -> None:
    """`lr_groups`: modules with a rate of their own."""
    groups = sheet.get("lr_groups")
    peak = sheet.number("learning_rate")
    if groups is None:
        return
    rates = dict(sheet.run.get("engine.rates", {}))
    try:
        for group in groups:
            rate = float(group["lr"])
            for module in group["modules"]:
                rates[str(module)] = round(rate / float(peak or 0), 8)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        sheet.answer("lr_groups", LOST, why="no_number")
        return
    sheet.answer("lr_groups", CHANGED, {"engine.rates": rates}, "role_rate")


def _targets(sheet: Sheet) -> None:
    names = words_of(sheet.get("lora_target_modules", ""))
    all_linear = sheet.is_on("lora_target_linear") or names == ["all-linear"]
    if sheet.has("lora_target_linear"):
        sheet.answer(
            "lora_target_linear",
            *(
                (CHANGED, {"method.targets": ["linear"]}, "linear")
                if all_linear
                else (NOT_NEEDED, None, "off")
            ),
        )
    if names:
        # Axolotl adds the linear layers it finds to those that are named, so that `true` always
        # means all of them.
        ours = ["linear"] if all_linear else names
        sheet.take("lora_target_modules", "method.targets", ours, "linear" if all_linear else "")


def _objective(sheet: Sheet) -> None:
    theirs = str(sheet.get("rl", ""))
    judged = next((ours for key, ours in JUDGES.items() if sheet.is_on(key)), "sft")
    kind = GOALS.get(theirs, theirs) or judged
    if not theirs and _types(sheet) == {"completion"}:
        kind = "pretrain"
    sheet.run["objective.kind"] = kind
    sheet.take("rl", "objective.kind", kind)
    for key, ours in JUDGES.items():
        if sheet.has(key) and not sheet.is_on(key):
            sheet.answer(key, NOT_NEEDED, why="off")
        elif sheet.has(key):
            sheet.answer(
                key,
                *(
                    (CHANGED, {"objective.kind": kind}, "stage")
                    if kind == ours
                    else (LOST, {}, "one_goal")
                ),
                kind=kind,
            )
    if kind == "pretrain":
        sheet.answer("rl", DEFAULT, {"objective.kind": kind}, "completion")
    _of_rollouts(sheet, kind)
    trainer.of_other_goals(sheet, kind, OF_GOALS)
    if kind == "dpo":
        trainer.preference_losses(sheet, "dpo_loss_type", "dpo_loss_weights")
        key = "dpo_use_weighting"
        if sheet.has(key):
            sheet.take(key, "objective.wpo", sheet.is_on(key), "losses")
    if sheet.is_on("use_eaft") and kind == "sft":
        sheet.answer("use_eaft", CHANGED, {"objective.loss": "eaft"}, "losses")
        if sheet.has("eaft_alpha"):
            sheet.take("eaft_alpha", "objective.eaft_alpha", sheet.number("eaft_alpha"))
    for key in ("use_eaft", "eaft_alpha", "eaft_k"):
        if sheet.has(key) and key not in sheet.lines:
            sheet.answer(key, NOT_NEEDED, why="off")
    for key, name in (
        ("rl_beta", "beta"),
        ("dpo_beta", "beta"),
        ("orpo_alpha", "beta"),
        ("simpo_gamma", "gamma"),
        ("rpo_alpha", "sft_weight"),
        ("kto_desirable_weight", "good_weight"),
        ("kto_undesirable_weight", "bad_weight"),
        ("dpo_label_smoothing", "label_smoothing"),
    ):
        number = sheet.number(key)
        sheet.take_if_known(
            key, "objective", name, number if number is not None else sheet.get(key)
        )


OF_GOALS = {
    **dict.fromkeys(
        (
            "dpo_loss_type",
            "dpo_loss_weights",
            "dpo_use_weighting",
            "dpo_beta",
            "dpo_label_smoothing",
        ),
        ("dpo", "ipo"),
    ),
    "rpo_alpha": ("dpo",),
    "orpo_alpha": ("orpo",),
    "simpo_gamma": ("simpo",),
    "cpo_alpha": ("simpo", "cpo"),
    **dict.fromkeys(("kto_desirable_weight", "kto_undesirable_weight"), ("kto",)),
    "center_rewards_coefficient": ("reward",),
}
"""Settings of some objectives only."""


def _of_rollouts(sheet: Sheet, kind: str) -> None:
    """`trl.*`: the settings of learning from the model's own answers."""
    drawn = kind == "grpo"
    for key, name in axolotl_tables.ROLLOUTS.items():
        if drawn:
            sheet.take_if_known(key, "objective", name, sheet.number(key))
        elif sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="other_goal", kind=kind)
    funcs = words_of(sheet.get("trl.reward_funcs", ""))
    if funcs:
        sheet.answer("trl.reward_funcs", LOST, why="reward_funcs", names=", ".join(funcs))
    sheet.take_if_known("center_rewards_coefficient", "objective", "center",
                        sheet.number("center_rewards_coefficient"))  # fmt: skip


def _types(sheet: Sheet) -> set[Any]:
    entries = sheet.get("datasets", [])
    return (
        {str(e.get("type")) for e in entries if isinstance(e, dict)}
        if isinstance(entries, list)
        else set()
    )


def _data(sheet: Sheet) -> None:
    for key, ours in (
        ("datasets", "data.train"),
        ("pretraining_dataset", "data.train"),
        ("test_datasets", "data.held_out"),
    ):
        if not sheet.has(key):
            continue
        entries = sheet.get(key)
        made = _entries(sheet, key, entries if isinstance(entries, list) else [entries])
        if ours == "data.held_out":
            held: str = ",".join(
                entry if isinstance(entry, str) else str(entry["file"]) for entry in made
            )
            sheet.answer(key, CHANGED, {ours: held}, "test_datasets")
        else:
            sheet.answer(
                key,
                CHANGED,
                {ours: made[0] if len(made) == 1 and isinstance(made[0], str) else made},
                "datasets",
            )
    if sheet.has("test_datasets"):
        sheet.answer("val_set_size", NOT_NEEDED, why="off")
    else:
        shared.held_out(sheet, "val_set_size")
    limit = sheet.number("sequence_len", 512)
    sheet.take_number("sequence_len", "data.max_tokens")
    sheet.fill("sequence_len", {"data.max_tokens": limit}, 512)
    strategy = str(sheet.get("excess_length_strategy", "drop"))
    if sheet.has("excess_length_strategy"):
        sheet.take(
            "excess_length_strategy",
            "data.oversize",
            "truncate" if strategy == "truncate" else "drop",
            "" if strategy == "drop" else "cutoff",
        )
    sheet.take("default_system_message", "data.system")


def _entries(sheet: Sheet, key: str, entries: list[Any]) -> list[str | dict[str, Any]]:
    """Their list of sets as ours. A key of a set that is not taken over gets a line of its own."""
    made: list[str | dict[str, Any]] = []
    for number, entry in enumerate(entries, start=1):
        if not isinstance(entry, dict):
            made.append(_place({"path": entry}))
            continue
        out: dict[str, Any] = {}
        for file in words_of(entry["data_files"]) if entry.get("data_files") else [_place(entry)]:
            out = {"file": file, **_form(entry)}
            made.append(out if len(out) > 1 else file)
        for name, value in entry.items():
            if value in (None, "", False) or (value == [] and name != "roles_to_train"):
                continue
            fate, why = _fate_in_entry(name, value, entry)
            if fate:
                sheet.part(
                    key,
                    f"{key}[{number}].{name}",
                    value,
                    fate,
                    why,
                    kind=value,
                    known=", ".join(MARKS),
                )
    return made


def _fate_in_entry(name: str, value: Any, entry: dict[str, Any]) -> tuple[str, str]:
    """What becomes of a key of a set: (fate, reason); no fate for what our set says as well."""
    is_hub = _place(entry).startswith("hf:")
    if name == "type":
        return (
            (LOST, "entry_type")
            if isinstance(value, str) and value.split(":")[0] not in TYPES
            else ("", "")
        )
    if name == "split":
        is_whole = value == "train" or (is_hub and "[" not in str(value))
        return (
            ("", "") if is_whole else (LOST, "entry_slice" if "[" in str(value) else "entry_split")
        )
    if name == "message_field_training":
        return (SAME, "mark_kept") if value in MARKS else (LOST, "mark_name")
    if name == "roles_to_train":
        learnt = value and {ROLES.get(str(role).lower()) for role in words_of(value)} == {
            "assistant"
        }
        return (NOT_NEEDED, "answers_learnt") if learnt else (LOST, "roles_to_train")
    if name in ("train_on_eos", "train_on_eot"):
        return (NOT_NEEDED, "stops_learnt") if value == "turn" else (LOST, "train_on_eos")
    if name == "message_property_mappings":
        return (
            ("", "")
            if isinstance(value, dict)
            and sorted(value.values()) in (["content", "role"], ["from", "value"])
            else (LOST, "turn_names")
        )
    if name in ("message_field_role", "message_field_content"):
        return (
            (NOT_NEEDED, "turn_names_seen")
            if value in ("role", "from", "content", "value")
            else (LOST, "turn_names")
        )
    if name == "roles":
        known = isinstance(value, dict) and all(
            str(word).lower() in ROLES for words in value.values() for word in words_of(words)
        )
        return (NOT_NEEDED, "roles") if known else (LOST, "role_names")
    if name in UNDERSTOOD or (name == "name" and is_hub):
        return "", ""
    if name in ENTRY_NOT_NEEDED:
        return NOT_NEEDED, ENTRY_NOT_NEEDED[name]
    return LOST, ENTRY_LOST.get(name, "entry_unknown")


def _place(entry: dict[str, Any]) -> str:
    """A path stays a path; anything else is a set of the hub, said so, with its configuration and
    split."""
    path = str(entry.get("path", ""))
    if (
        path.endswith(ENDINGS)
        or path.startswith((".", "/", "~"))
        or "/" not in path
        or Path(path).exists()
    ):
        return path
    return (
        f"hf:{path}"
        + (f"/{entry['name']}" if entry.get("name") else "")
        + (f"#{entry['split']}" if entry.get("split") else "")
    )


def _form(entry: dict[str, Any]) -> dict[str, Any]:
    """Format and columns of one of their sets, where ours does not see them by itself."""
    kind = entry.get("type")
    columns: dict[str, str] = {}
    if isinstance(kind, dict):
        names = (
            ("field_instruction", "instruction"),
            ("field_input", "input"),
            ("field_output", "output"),
            ("field_system", "system"),
        )
        columns = {
            ours: str(kind[theirs])
            for theirs, ours in names
            if kind.get(theirs) and kind[theirs] != ours
        }
        return {"format": "alpaca", **({"columns": columns} if columns else {})}
    form = TYPES.get(str(kind).split(":")[0], "auto")
    if kind == "completion" and entry.get("field", "text") != "text":
        columns["text"] = str(entry["field"])
    mapping = entry.get("message_property_mappings")
    if str(kind).startswith("chat_template") and form != "preference" and isinstance(mapping, dict):
        form = "sharegpt" if sorted(mapping.values()) == ["from", "value"] else "messages"
    if entry.get("field_messages"):
        ours = {"preference": "prompt", "sharegpt": "conversations"}.get(form, "messages")
        if entry["field_messages"] not in (ours, "messages" if form == "auto" else ours):
            columns[ours] = str(entry["field_messages"])
    for theirs, ours in (
        ("field_chosen", "chosen"),
        ("field_rejected", "rejected"),
        ("field_system", "system"),
        ("field_tools", "tools"),
    ):
        if entry.get(theirs) and entry[theirs] != ours:
            columns[ours] = str(entry[theirs])
    return {
        **({"format": form} if form != "auto" else {}),
        **({"columns": columns} if columns else {}),
    }
