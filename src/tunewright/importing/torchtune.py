"""torchtune's keys. Source: torchtune 0.6, recipes/configs (every key of its 196 files) and the
builders that their `_component_` names.

A configuration says what is trained by the names of functions: `torchtune.models.llama3_2.
lora_llama3_2_1b` is LoRA on the model whose files `checkpointer.checkpoint_dir` holds.
"""

from __future__ import annotations

from typing import Any

from tunewright.importing import shared, trainer
from tunewright.importing.sheet import CHANGED, LOST, NOT_NEEDED, Sheet, words_of

NAME = "torchtune"
OWN = {
    "checkpointer",
    "tokenizer",
    "metric_logger",
    "batch_size",
    "log_peak_memory_stats",
    "max_steps_per_epoch",
    "enable_activation_checkpointing",
    "enable_activation_offloading",
    "profiler",
    "log_every_n_steps",
    "optimizer_in_bwd",
    "clip_grad_norm",
    "save_adapter_weights_only",
    "compile",
}
"""Keys by which its files are told."""
MODULES = {"output_proj": "o_proj"}
"""Its names of a block's layers -> those of the checkpoints it reads."""
MLP = ["gate_proj", "up_proj", "down_proj"]
SETS = {
    "alpaca_dataset": ("tatsu-lab/alpaca", "alpaca"),
    "alpaca_cleaned_dataset": ("yahma/alpaca-cleaned", "alpaca"),
    "grammar_dataset": ("liweili/c4_200m", "auto"),
    "samsum_dataset": ("Samsung/samsum", "auto"),
    "slimorca_dataset": ("Open-Orca/SlimOrca-Dedup", "sharegpt"),
    "stack_exchange_paired_dataset": ("lvwerra/stack-exchange-paired", "preference"),
    "hh_rlhf_helpful_dataset": ("RLHFlow/HH-RLHF-Helpful-standard", "preference"),
    "wikitext_dataset": ("EleutherAI/wikitext_document_level", "text"),
    "cnn_dailymail_articles_dataset": ("ccdv/cnn_dailymail", "text"),
}
"""Builders of a fixed data set -> where it lies, and its format here."""
FORMS = {
    "instruct_dataset": "alpaca",
    "chat_dataset": "auto",
    "preference_dataset": "preference",
    "text_completion_dataset": "text",
}
PREFERENCE = {"DPOLoss": "sigmoid", "RSOLoss": "hinge", "IPOLoss": "ipo"}
LIKELIHOOD = ("CrossEntropyLoss", "CEWithChunkedOutputLoss", "LinearCrossEntropyLoss")
SCHEDULES = {
    "get_cosine_schedule_with_warmup": "cosine",
    "get_linear_schedule_with_warmup": "linear",
    "get_constant_schedule_with_warmup": "constant",
}
RULES = {
    "AdamW": "adamw",
    "AdamW8bit": "adamw_8bit",
    "PagedAdamW": "adamw",
    "PagedAdamW8bit": "adamw_8bit",
    "Adafactor": "adafactor",
    "Lion": "lion",
    "AdamWScheduleFree": "adamw_schedule_free",
    "Muon": "muon",
}
NOT_NEEDED_KEYS = {
    **dict.fromkeys(
        ("log_every_n_steps", "log_peak_memory_stats", "log_level", "metric_logger", "profiler"),
        "every_step_logged",
    ),
    **dict.fromkeys(
        (
            "enable_activation_checkpointing",
            "enable_activation_offloading",
            "optimizer_in_bwd",
            "fsdp_cpu_offload",
            "low_cpu_ram",
            "ac_mode",
            "ac_option",
            "forward_batch_size",
        ),
        "memory",
    ),
    **dict.fromkeys(("compile", "enable_kv_cache", "use_flex"), "own_kernels"),
    **dict.fromkeys(("shuffle", "collate_fn"), "reads_itself"),
    **dict.fromkeys(
        ("save_adapter_weights_only", "name", "stop_token_ids", "enable_async_checkpointing"),
        "own_way",
    ),
    "tokenizer": "told_by_config",
}
SECTIONS = ("checkpointer", "dataset", "model", "optimizer", "loss", "teacher_model")
PARTS = (
    "_component_",
    "checkpoint_files",
    "model_type",
    "output_dir",
    "recipe_checkpoint",
    "adapter_checkpoint",
    "keep_last_n_checkpoints",
    "safe_serialization",
    "packed",
    "fused",
    "num_output_chunks",
    "max_seq_len",
    "filename_format",
    "max_filename",
    "decoder_trainable",
    "encoder_trainable",
    "fusion_trainable",
    "image_size",
)
"""Parts of sections that need no setting here."""
LOST_KEYS = {
    **dict.fromkeys(
        (
            "tensor_parallel_plan",
            "tensor_parallel_dim",
            "custom_sharded_layers",
            "data_parallel_shard_dim",
            "data_parallel_replicate_dim",
            "fsdp",
        ),
        "one_device",
    ),
    "resume_from_checkpoint": "resume",
    "quantizer": "not_here",
    "reward_functions": "reward_funcs_tune",
    **dict.fromkeys(
        ("min_response_length", "reward_penalty", "penalise_no_eos", "grpo_samples"), "not_here"
    ),
    **dict.fromkeys(("datasets", "dataloader"), "mixture"),
}


def translate(sheet: Sheet, devices: int, verb: str = "") -> None:
    """Answer the keys of a torchtune configuration. `verb` is the recipe."""
    _spread(sheet)
    folder = str(sheet.get("checkpointer.checkpoint_dir", ""))
    sheet.take("checkpointer.checkpoint_dir", "model", folder.rstrip("/"), "checkpoint_dir")
    _method(sheet)
    _objective(sheet, verb)
    _data(sheet)
    sheet.take("output_dir", "out")
    _steps(sheet, devices)
    _optimizer(sheet)
    dtype = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32"}.get(str(sheet.get("dtype")))
    sheet.take("dtype", "engine.dtype", dtype or str(sheet.get("dtype")), "schedule")
    device = str(sheet.get("device", "auto"))
    sheet.take("device", "engine.device", device)
    sheet.take_number("seed", "engine.seed")
    every = sheet.number("run_val_every_n_steps")
    if every:
        sheet.take("run_val_every_n_steps", "engine.evaluate_every", int(every))
    if sheet.number("save_every_n_epochs"):
        sheet.take("save_every_n_epochs", "engine.save_every", "epoch", "once_an_epoch")
    if sheet.has("batch_size_val"):
        sheet.answer("batch_size_val", NOT_NEEDED, why="own_way")
    _references(sheet, folder)
    for key in list(sheet.given):
        top = key.split(".")[0]
        if key in sheet.lines or not sheet.has(key):
            continue
        if top in NOT_NEEDED_KEYS:
            sheet.answer(key, NOT_NEEDED, why=NOT_NEEDED_KEYS[top])
        elif top in SECTIONS and key.endswith(PARTS):
            sheet.answer(key, NOT_NEEDED, why="own_way")
    sheet.pass_over(NOT_NEEDED_KEYS, LOST_KEYS)


def _references(sheet: Sheet, folder: str) -> None:
    """The model at step 0, which its recipes open a second time, and parts of other models that
    their files say themselves."""
    for section in ("ref_checkpointer", "ref_policy_checkpointer", "value_checkpointer"):
        same = str(sheet.get(f"{section}.checkpoint_dir", "")).rstrip("/") == folder.rstrip("/")
        value = section == "value_checkpointer"  # the value head starts new here
        for key in [key for key in sheet.given if key.startswith(f"{section}.")]:
            if same or not key.endswith("checkpoint_dir"):
                sheet.answer(key, NOT_NEEDED, why="reference" if same else "told_by_config")
            else:
                sheet.answer(key, LOST, why="not_here" if value else "reference")
    for key in [
        key for key in sheet.given if key.startswith(("policy_model.", "reward_and_value"))
    ]:
        sheet.answer(key, NOT_NEEDED, why="told_by_config")


def _spread(sheet: Sheet) -> None:
    """`${output_dir}` in values, as its configurations refer to each other."""
    for key, value in list(sheet.given.items()):
        if isinstance(value, str) and "${" in value:
            for name in ("output_dir", "base_model_path"):
                value = value.replace("${" + name + "}", str(sheet.given.get(name, "")))
            sheet.given[key] = value


def _component(sheet: Sheet, section: str) -> str:
    """The last part of the function or class that a section names."""
    return str(sheet.get(f"{section}._component_", "")).rpartition(".")[2]


def _method(sheet: Sheet) -> None:
    name = _component(sheet, "model")
    low = name.startswith(("lora_", "qlora_")) or sheet.has("model.lora_rank")
    dora = sheet.is_on("model.use_dora")
    kind = "dora" if low and dora else "lora" if low else "full"
    ours: dict[str, Any] = {"method.kind": kind}
    if name.startswith("qlora_") or sheet.is_on("model.quantize_base"):
        ours["base.bits"] = 4
    sheet.answer("model._component_", CHANGED, ours, "component")
    sheet.run.update(ours)
    for key in ("model.use_dora", "model.quantize_base"):
        if sheet.has(key):
            sheet.answer(key, *((CHANGED, ours, "component") if sheet.is_on(key)
                                else (NOT_NEEDED, {}, "off")))  # fmt: skip
    if not low:
        for key in [k for k in sheet.given if "lora_" in k and k.startswith("model.")]:
            sheet.answer(key, NOT_NEEDED, why="other_method", kind=kind)
        return
    sheet.take_number("model.lora_rank", "method.rank")
    sheet.take_number("model.lora_alpha", "method.alpha")
    sheet.take_number("model.lora_dropout", "method.dropout")
    targets = [MODULES.get(n, n) for n in words_of(sheet.get("model.lora_attn_modules", ""))]
    targets += MLP if sheet.is_on("model.apply_lora_to_mlp") else []
    targets += ["head"] if sheet.is_on("model.apply_lora_to_output") else []
    for key in ("model.lora_attn_modules", "model.apply_lora_to_mlp", "model.apply_lora_to_output"):
        if sheet.has(key):
            sheet.answer(key, CHANGED, {"method.targets": targets}, "tune_targets")


def _objective(sheet: Sheet, verb: str) -> None:
    loss = _component(sheet, "loss")
    kind = "sft"
    if "dpo" in verb or loss in PREFERENCE:
        kind = "ipo" if loss == "IPOLoss" else "dpo"
    elif loss == "SimPOLoss":
        kind = "simpo"
    elif "knowledge_distillation" in verb or sheet.has("teacher_checkpointer.checkpoint_dir"):
        kind = "distill"
    elif "ppo" in verb or loss == "PPOLoss":
        kind = "ppo"
    elif "grpo" in verb or loss.startswith("GRPO"):
        kind = "grpo"
    elif FORMS.get(_component(sheet, "dataset")) == "text":
        kind = "pretrain"
    sheet.run["objective.kind"] = kind
    ours: dict[str, Any] = {"objective.kind": kind}
    if kind == "dpo" and loss in PREFERENCE:
        ours["objective.loss"] = PREFERENCE[loss]
    known = loss in (*PREFERENCE, *LIKELIHOOD, "SimPOLoss", "PPOLoss", "") or loss.startswith(
        "GRPO"
    )
    sheet.answer("loss._component_", CHANGED if known else LOST, ours if known else {},
                 "component" if known else "no_field", kind=kind, axis="objective")  # fmt: skip
    sheet.run.update(ours)
    for key, name in (
        ("loss.beta", "beta"),
        ("loss.tau", "beta"),
        ("loss.gamma", "gamma"),
        ("loss.label_smoothing", "label_smoothing"),
        ("loss.epsilon", "clip"),
        ("loss.value_coeff", "value_weight"),
        ("loss.value_clip_range", "value_clip"),
        ("loss.kl_coeff", "beta"),
        ("kl_coeff", "beta"),
        ("gamma", "gamma"),
        ("lmbda", "lam"),
        ("whiten_rewards", "whiten_rewards"),
        ("ppo_epochs", "epochs"),
        ("max_generated_tokens", "max_new_tokens"),
        ("temperature", "temperature"),
        ("top_k", "top_k"),
        ("kd_ratio", "alpha"),
        ("teacher_checkpointer.checkpoint_dir", "teacher"),
        ("reward_checkpointer.checkpoint_dir", "reward"),
    ):
        number = sheet.number(key)
        value: Any = number if number is not None else sheet.get(key)
        if key == "kd_ratio" and number is not None:
            value = 1 - number  # theirs is the teacher's share
        sheet.take_if_known(key, "objective", name, value, why="share" if key == "kd_ratio" else "")
    for key in [
        key for key in sheet.given if key.startswith(("teacher_", "kd_loss", "reward_check"))
    ]:
        if key not in sheet.lines and sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="told_by_config")


def _data(sheet: Sheet) -> None:
    made = [_set(sheet, section) for section in ("dataset", "dataset_val")]
    if made[0] is not None:
        plain = made[0] if isinstance(made[0], str) else [made[0]]
        for key in [k for k in sheet.given if k.startswith("dataset.") and k not in sheet.lines]:
            _part(sheet, key, {"data.train": plain})
    if made[1] is not None:
        held = made[1] if isinstance(made[1], str) else str(made[1]["file"])
        for key in [
            k for k in sheet.given if k.startswith("dataset_val.") and k not in sheet.lines
        ]:
            _part(sheet, key, {"data.held_out": held})
    else:
        sheet.run["data.held_out"] = 0
    length = sheet.number("tokenizer.max_seq_len")
    if length is not None:
        ours = {"data.max_tokens": length, "data.oversize": "truncate"}
        sheet.answer("tokenizer.max_seq_len", CHANGED, ours, "cutoff_end")
    template = sheet.get("tokenizer.prompt_template")
    if template is not None:
        sheet.answer("tokenizer.prompt_template", LOST, why="prompt_template")


def _part(sheet: Sheet, key: str, ours: dict[str, Any]) -> None:
    name = key.rpartition(".")[2]
    if name in ("_component_", "source", "data_files", "split", "name", "conversation_column",
                "conversation_style", "column", "column_map") or "column_map." in key:  # fmt: skip
        sheet.answer(key, CHANGED, ours, "datasets")
    elif name in ("packed", "packing", "add_eos", "new_system_prompt", "max_packs"):
        if name == "new_system_prompt":
            sheet.take(key, "data.system")
        else:
            sheet.answer(key, NOT_NEEDED, why="packing")
    elif name == "train_on_input":
        fate = (LOST, "questions_unlearnt") if sheet.is_on(key) else (NOT_NEEDED, "off")
        sheet.answer(key, fate[0], why=fate[1])
    elif name == "masking_strategy":
        _masking(sheet, key)


def _masking(sheet: Sheet, key: str) -> None:
    way = str(sheet.get(key))
    if way == "train_on_last":
        sheet.answer(key, CHANGED, {"data.turns": "last"}, "last_turn")
    elif way == "train_on_assistant":
        sheet.answer(key, NOT_NEEDED, why="answers_learnt")
    else:
        sheet.answer(key, LOST, why="questions_unlearnt")


def _set(sheet: Sheet, section: str) -> Any:
    """`data.train` of one of its data sections; None where there is none."""
    builder = _component(sheet, section)
    if not builder:
        return None
    source, form = SETS.get(builder, ("", FORMS.get(builder, "auto")))
    source = str(sheet.get(f"{section}.source", source))
    files = words_of(sheet.get(f"{section}.data_files", ""))
    if source in ("json", "csv", "text", "parquet", "arrow") and files:
        file = files[0]
    else:
        split = str(sheet.get(f"{section}.split", "train"))
        name = str(sheet.get(f"{section}.name", ""))
        file = f"hf:{source}" + (f"/{name}" if name else "")
        file += f"#{split}" if split != "train" else ""
    columns = {
        k.rpartition(".")[2]: v
        for k, v in sheet.given.items()
        if k.startswith(f"{section}.column_map.") and sheet.has(k)
    }
    names = {"input": "instruction", "output": "output"} if form == "alpaca" else {}
    entry: dict[str, Any] = {"file": file}
    if form != "auto":
        entry["format"] = form
    if columns:
        entry["columns"] = {names.get(k, k): v for k, v in columns.items()}
    if form == "text" and sheet.has(f"{section}.column"):
        entry["columns"] = {"text": sheet.get(f"{section}.column")}
    return file if len(entry) == 1 else entry


def _steps(sheet: Sheet, devices: int) -> None:
    shared.batch(sheet, "batch_size", 1, devices)
    sheet.take_number("epochs", "engine.epochs")
    sheet.fill("epochs", {"engine.epochs": 1}, 1)
    most, epochs = sheet.number("max_steps_per_epoch"), sheet.number("epochs", 1)
    if most:
        ours = {"engine.steps": int(most * (epochs or 1))}
        sheet.answer("max_steps_per_epoch", CHANGED, ours, "steps_per_epoch")
    elif sheet.has("num_steps"):
        sheet.take("num_steps", "engine.steps")
    clip = sheet.number("clip_grad_norm")
    if clip:
        sheet.take("clip_grad_norm", "engine.clip", clip)
    else:
        sheet.run["engine.clip"] = None


def _optimizer(sheet: Sheet) -> None:
    rule = _component(sheet, "optimizer")
    if rule in RULES:
        small = sheet.run["method.kind"] not in ("full", "freeze")
        ours = RULES[rule].removesuffix("_8bit") if small else RULES[rule]
        sheet.answer("optimizer._component_", CHANGED, {"engine.optimizer": ours}, "component")
    elif rule:
        known = ", ".join(map(str, shared.choices("optimizer")))
        sheet.answer("optimizer._component_", LOST, why="no_optimizer", known=known)
    sheet.take_number("optimizer.lr", "engine.learning_rate")
    sheet.take_number("optimizer.weight_decay", "engine.weight_decay")
    if not sheet.has("optimizer.weight_decay") and rule == "AdamW":
        sheet.run["engine.weight_decay"] = 0.01  # PyTorch's own
    betas = sheet.get("optimizer.betas")
    if isinstance(betas, list) and len(betas) == 2:
        sheet.take("optimizer.betas", "engine.betas", betas)
    sheet.take_number("optimizer.eps", "engine.epsilon")
    schedule = _component(sheet, "lr_scheduler")
    if schedule in SCHEDULES:
        ours_schedule = {"engine.schedule": SCHEDULES[schedule]}
        sheet.answer("lr_scheduler._component_", CHANGED, ours_schedule, "schedule")
        sheet.take_number("lr_scheduler.num_warmup_steps", "engine.warmup")
        cycles = sheet.number("lr_scheduler.num_cycles")
        if cycles is not None:
            usual = cycles == 0.5
            sheet.answer("lr_scheduler.num_cycles", NOT_NEEDED if usual else LOST,
                         why="usual_value" if usual else "no_argument")  # fmt: skip
    elif schedule:
        known = ", ".join(map(str, shared.choices("schedule")))
        sheet.answer("lr_scheduler._component_", LOST, why="no_schedule", known=known)
    else:
        sheet.run["engine.schedule"], sheet.run["engine.warmup"] = "constant", 0
    trainer.rotary(sheet, "model.rope_scaling")
