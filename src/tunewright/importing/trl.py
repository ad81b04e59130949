"""TRL's keys. Source: TRL 1.16, `trl sft|dpo|kto|reward|grpo|rloo` and the trainers' configurations
that the commands read."""

from __future__ import annotations

from typing import Any

from tunewright.importing import shared, trainer
from tunewright.importing.sheet import CHANGED, DEFAULT, LOST, NOT_NEEDED, Sheet, words_of

NAME = "TRL"
OWN = {
    "model_name_or_path",
    "dataset_name",
    "dataset_config",
    "dataset_train_split",
    "dataset_test_split",
    "use_peft",
    "lora_r",
    "lora_target_modules",
    "max_length",
    "loss_type",
    "completion_only_loss",
    "assistant_only_loss",
    "per_device_train_batch_size",
    "num_train_epochs",
    "chat_template_path",
    "max_completion_length",
    "num_generations",
    "reward_funcs",
}
"""Keys by which its files are told."""
GOALS = {
    "sft": "sft",
    "dpo": "dpo",
    "kto": "kto",
    "orpo": "orpo",
    "cpo": "cpo",
    "reward": "reward",
    "grpo": "grpo",
    "rloo": "rloo",
    "online_dpo": "online_dpo",
}
"""Commands, and the objective here."""
LENGTHS = {"sft": 1024, "dpo": 1024, "kto": 1024, "reward": 1024}
RATES = {"sft": 2e-5, "reward": 1e-4, "cpo": 1e-6, "orpo": 1e-6}
DRAWN = ("grpo", "rloo", "online_dpo")
NOT_NEEDED_KEYS = {
    **trainer.NOT_NEEDED_KEYS,
    **dict.fromkeys(
        ("disable_dropout", "dataset_kwargs", "shuffle_dataset", "eos_token"), "own_way"
    ),
    **dict.fromkeys(
        ("dataset_text_field", "completion_only_loss", "assistant_only_loss"), "told_by_rows"
    ),
    **dict.fromkeys(("bnb_4bit_quant_storage", "lora_task_type", "ignore_bias_buffers"), "own_way"),
    "dataset_test_split": "test_split",
}
LOST_KEYS = {
    **trainer.LOST_KEYS,
    "lora_target_parameters": "experts_by_role",
    **dict.fromkeys(
        (
            "min_p",
            "repetition_penalty",
            "generation_kwargs",
            "mask_truncated_completions",
            "top_entropy_quantile",
            "entropy_coef",
            "delta",
            "vllm_importance_sampling_correction",
            "multi_objective_aggregation",
            "reward_clip_range",
            "model_init_kwargs",
            "discopop_tau",
        ),
        "not_here",
    ),
}


SETTINGS = (
    ("beta", "beta"),
    ("label_smoothing", "label_smoothing"),
    ("label_smoothing_factor", "label_smoothing"),
    ("use_weighting", "wpo"),
    ("desirable_weight", "good_weight"),
    ("undesirable_weight", "bad_weight"),
    ("cpo_alpha", "sft_weight"),
    ("simpo_gamma", "gamma"),
    ("center_rewards_coefficient", "center"),
    ("num_generations", "generations"),
    ("max_completion_length", "max_new_tokens"),
    ("max_new_tokens", "max_new_tokens"),
    ("num_iterations", "epochs"),
    ("epsilon", "clip"),
    ("epsilon_high", "clip_high"),
    ("temperature", "temperature"),
    ("top_p", "top_p"),
    ("top_k", "top_k"),
    ("missing_eos_penalty", "unfinished_penalty"),
    ("normalize_advantages", "normalise"),
)
"""Settings of objectives: their name and ours."""


def translate(sheet: Sheet, devices: int, verb: str = "") -> None:
    """Answer the keys of a TRL command or its configuration. `verb` is the command."""
    sheet.take("model_name_or_path", "model")
    trainer.revision(sheet, "model_revision")
    kind = GOALS.get(verb) or _told_by_keys(sheet)
    sheet.run["objective.kind"] = kind
    _method(sheet)
    _objective(sheet, kind)
    _data(sheet, kind)
    sheet.take("output_dir", "out")
    shared.batch(sheet, "per_device_train_batch_size", 8, devices)
    shared.length(sheet, "num_train_epochs")
    shared.rate(sheet, "lr_scheduler_type")
    rate = RATES.get(kind, 1e-6)
    sheet.fill("learning_rate", {"engine.learning_rate": rate}, rate)
    sheet.fill("lr_scheduler_type", {"engine.schedule": "linear"}, "linear")
    if not sheet.has("warmup_steps") and not sheet.has("warmup_ratio"):
        sheet.fill("warmup_steps", {"engine.warmup": 0}, 0)
    shared.optimizer(sheet, "optim")
    sheet.take_number("neftune_noise_alpha", "engine.neftune")
    dtype = str(sheet.get("dtype", "")).removeprefix("torch.")
    sheet.take("dtype", "engine.dtype", dtype, "" if dtype == sheet.get("dtype") else "schedule")
    shared.number_type(sheet)
    shared.intervals(sheet)
    if not shared.no_rows_held_out(sheet):
        sheet.fill("load_best_model_at_end", {"engine.keep_best": False}, False)
    sheet.pass_over({**NOT_NEEDED_KEYS, **trainer.MORE_NOT_NEEDED}, LOST_KEYS)
    trainer.by_beginning(sheet, trainer.BEGINNINGS)


def _told_by_keys(sheet: Sheet) -> str:
    """The objective of a configuration without its command."""
    if sheet.has("reward_funcs") or sheet.has("num_generations"):
        return "grpo"
    if sheet.has("desirable_weight") or sheet.has("undesirable_weight"):
        return "kto"
    if sheet.has("beta") or sheet.has("loss_weights") or sheet.has("use_weighting"):
        return "dpo"
    return "sft"


def _method(sheet: Sheet) -> None:
    on = sheet.is_on("use_peft")
    kind = "full"
    if on:
        dora, rooted = sheet.is_on("use_dora"), sheet.is_on("use_rslora")
        kind = "dora" if dora else "rslora" if rooted else "lora"
        if dora and rooted:
            sheet.answer("use_rslora", LOST, why="one_variant", kind=kind)
    sheet.run["method.kind"] = kind
    sheet.take("use_peft", "method.kind", kind, "variant" if on else "no_adapter", kind=kind)
    for key, name in (("use_dora", "dora"), ("use_rslora", "rslora")):
        if sheet.has(key) and key not in sheet.lines:
            if sheet.is_on(key) and on:
                sheet.answer(key, CHANGED, {"method.kind": name}, "variant", kind=name)
            else:
                sheet.answer(key, NOT_NEEDED, why="off")
    for key, ours, usual in (
        ("lora_r", "rank", 16),
        ("lora_alpha", "alpha", 32),
        ("lora_dropout", "dropout", 0.05),
    ):
        if on:
            sheet.take_number(key, f"method.{ours}")
            sheet.fill(key, {f"method.{ours}": usual}, usual)
        elif sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="other_method", kind=kind)
    names = words_of(sheet.get("lora_target_modules", ""))
    if names and on:
        targets = ["linear"] if names == ["all-linear"] else names
        why = "linear" if targets != names else ""
        sheet.take("lora_target_modules", "method.targets", targets, why)
    elif names:
        sheet.answer("lora_target_modules", NOT_NEEDED, why="other_method", kind=kind)
    elif on:
        usual_targets = ["attention.query", "attention.value"]  # PEFT's own for most families
        sheet.fill("lora_target_modules", {"method.targets": usual_targets}, "q_proj, v_proj")
    trainer.whole_modules(sheet, "lora_modules_to_save")
    for key, bits in (("load_in_4bit", 4), ("load_in_8bit", 8)):
        if sheet.is_on(key):
            sheet.take(key, "base.bits", bits)
        elif sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="off")
    if sheet.is_on("load_in_4bit"):
        sheet.take("bnb_4bit_quant_type", "base.type")
        sheet.take("use_bnb_nested_quant", "base.double", sheet.is_on("use_bnb_nested_quant"))
    else:
        for key in ("bnb_4bit_quant_type", "use_bnb_nested_quant"):
            if sheet.has(key):
                sheet.answer(key, NOT_NEEDED, why="off")


def _objective(sheet: Sheet, kind: str) -> None:
    if kind == "dpo":
        trainer.preference_losses(sheet, "loss_type", "loss_weights")
    elif kind == "sft" and sheet.has("loss_type"):
        loss = str(sheet.get("loss_type"))
        known = loss in ("nll", "dft", "chunked_nll")
        ours = {"objective.loss": loss.removeprefix("chunked_")}
        sheet.answer("loss_type", *((CHANGED, ours, "losses") if known else (LOST, {}, "no_field")),
                     kind=kind, axis="objective")  # fmt: skip
    elif sheet.has("loss_type"):
        _other_loss(sheet, kind, str(sheet.get("loss_type")))
    for key, name in SETTINGS:
        value = sheet.get(key)
        if key == "use_weighting" and value is not None:
            value = sheet.is_on(key)
        sheet.take_if_known(key, "objective", name, value, default=False if not value else 0.0)
    trainer.of_groups(sheet)
    if kind in DRAWN:
        funcs = words_of(sheet.get("reward_funcs", ""))
        if funcs:
            sheet.answer("reward_funcs", LOST, why="reward_funcs", names=", ".join(funcs))
        sheet.fill("num_generations", _generations(kind), {"grpo": 8}.get(kind, 2))


def _generations(kind: str) -> dict[str, Any]:
    usual = {"grpo": 8, "rloo": 2}
    return {"objective.generations": usual[kind]} if kind in usual else {}


def _other_loss(sheet: Sheet, kind: str, loss: str) -> None:
    """`loss_type` of KTO, CPO and GRPO."""
    ours: dict[str, Any] | None = None
    if kind == "kto" and loss in ("kto", "apo_zero_unpaired"):
        ours = {"objective.loss": loss.removesuffix("_unpaired")}
    elif kind == "cpo" and loss in ("sigmoid", "simpo"):
        ours = {"objective.kind": "cpo" if loss == "sigmoid" else "simpo"}
    elif (kind == "grpo" and loss in ("grpo", "dr_grpo", "dapo", "cispo")) or (
        kind == "online_dpo" and loss in ("sigmoid", "ipo")
    ):
        ours = {"objective.loss": loss}
    if ours is None:
        sheet.answer("loss_type", LOST, why="no_field", kind=kind, axis="objective")
    else:
        sheet.answer("loss_type", CHANGED, ours, "losses")


def _data(sheet: Sheet, kind: str) -> None:
    names = words_of(sheet.get("dataset_name", ""))
    config = str(sheet.get("dataset_config", ""))
    split = str(sheet.get("dataset_train_split", "train"))
    made = []
    for name in names:
        if name.endswith((".json", ".jsonl", ".csv", ".parquet", ".txt")):
            made.append(name)
            continue
        part = f"/{config}" if config else ""
        made.append(f"hf:{name}{part}" + (f"#{split}" if split != "train" else ""))
    if made:
        sheet.take("dataset_name", "data.train", made[0] if len(made) == 1 else made, "hub_name")
    for key in ("dataset_config", "dataset_train_split"):
        if sheet.has(key):
            sheet.answer(key, CHANGED, {}, "hub_name")
    sheet.answer("datasets", LOST, why="mixture")
    if kind not in DRAWN:
        limit = sheet.number("max_length", LENGTHS.get(kind))
        ours = {"data.max_tokens": limit, "data.oversize": "truncate"}
        if sheet.has("max_length"):
            sheet.answer("max_length", CHANGED, ours, "cutoff_end")
        elif limit:
            sheet.fill("max_length", ours, limit)
        if sheet.has("truncation_mode"):
            sheet.answer("truncation_mode", NOT_NEEDED, why="own_way")
    if kind == "sft":
        _learnt(sheet)
    sheet.run.setdefault("data.held_out", 0)
    trainer.own_template(sheet, "chat_template_path")
    trainer.template_arguments(sheet, "chat_template_kwargs")
    trainer.rotary(sheet, "rope_scaling")


def _learnt(sheet: Sheet) -> None:
    """Which tokens are learnt. There a dialogue is learnt whole, questions too, unless
    `assistant_only_loss` is on; here its answers are."""
    for key in ("completion_only_loss", "assistant_only_loss"):
        if sheet.is_on(key):
            sheet.answer(key, NOT_NEEDED, why="answers_learnt")
        elif sheet.has(key):
            sheet.answer(key, LOST, why="questions_unlearnt")
    if not sheet.has("assistant_only_loss"):
        sheet.answer("assistant_only_loss", DEFAULT, {}, "dialogues_whole", value=False)
