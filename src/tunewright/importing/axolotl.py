"""Axolotl's keys. Source: Axolotl 0.18, utils/schemas (defaults), core/builders (warm-up) and docs
of its dataset formats."""

from __future__ import annotations

from tunewright.importing import axolotl_sets, shared, trainer
from tunewright.importing import axolotl_tables as tables
from tunewright.importing.sheet import CHANGED, DEFAULT, LOST, NOT_NEEDED, Sheet, words_of

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
SWITCHES = {"peft_use_dora": "dora", "peft_use_rslora": "rslora"}
VARIANTS = {"pissa": "pissa", "olora": "olora", "eva": "eva", "loftq": "loftq"}
"""Beginnings of `peft_init_lora_weights`, and the method here."""


def translate(sheet: Sheet, devices: int) -> None:
    """Answer the keys of an Axolotl training file."""
    sheet.take("base_model", "model")
    _method(sheet)
    _objective(sheet)
    axolotl_sets.data(sheet)
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
        {**trainer.NOT_NEEDED_KEYS, **tables.NOT_NEEDED_KEYS},
        {**trainer.LOST_KEYS, **tables.LOST_KEYS},
    )
    trainer.by_beginning(sheet, {**tables.BEGINNINGS, **trainer.BEGINNINGS})


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
    if not theirs and axolotl_sets.is_text(sheet):
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
    trainer.of_other_goals(sheet, kind, tables.OF_GOALS)
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


def _of_rollouts(sheet: Sheet, kind: str) -> None:
    """`trl.*`: the settings of learning from the model's own answers."""
    drawn = kind == "grpo"
    for key, name in tables.ROLLOUTS.items():
        if drawn:
            sheet.take_if_known(key, "objective", name, sheet.number(key))
        elif sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="other_goal", kind=kind)
    funcs = words_of(sheet.get("trl.reward_funcs", ""))
    if funcs:
        sheet.answer("trl.reward_funcs", LOST, why="reward_funcs", names=", ".join(funcs))
    sheet.take_if_known("center_rewards_coefficient", "objective", "center",
                        sheet.number("center_rewards_coefficient"))  # fmt: skip
