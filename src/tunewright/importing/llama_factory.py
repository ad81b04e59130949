"""LLaMA-Factory's keys. Source: LLaMA-Factory 0.9.5, hparams/*.py, and the training arguments of
Transformers that it passes on."""

from __future__ import annotations

from typing import Any

from tunewright.core.registry import methods, objectives
from tunewright.importing import llama_factory_tables as tables
from tunewright.importing import shared, trainer
from tunewright.importing.sheet import CHANGED, DEFAULT, LOST, NOT_NEEDED, SAME, Sheet, words_of

NAME = "LLaMA-Factory"
OWN = {
    "model_name_or_path",
    "finetuning_type",
    "stage",
    "dataset",
    "dataset_dir",
    "template",
    "cutoff_len",
    "do_train",
    "lora_target",
    "lora_rank",
    "eval_dataset",
    "per_device_train_batch_size",
    "num_train_epochs",
    "lr_scheduler_type",
    "max_samples",
    "val_size",
    "pref_beta",
    "export_dir",
    "overwrite_cache",
    "plot_loss",
}
"""Keys by which its files are told."""
STAGES = {"sft": "sft", "pt": "pretrain", "rm": "reward", "dpo": "dpo", "kto": "kto", "ppo": "ppo"}
LOSSES = {"sigmoid": "dpo", "ipo": "ipo", "orpo": "orpo", "simpo": "simpo"}
RANKED = ("dpo", "ipo", "orpo", "simpo", "kto")
RULES = {"use_galore": "galore", "use_apollo": "apollo"}
VARIANTS = {"use_dora": "dora", "pissa_init": "pissa", "use_rslora": "rslora"}
PREFIXES = {
    "loraplus_": "lora_plus",
    "lora_": "lora",
    "freeze_": "freeze",
    "oft_": "oft",
    "module_dropout": "oft",
    "pissa_": "pissa",
    "galore_": "galore",
    "apollo_": "apollo",
}
"""Beginnings of keys -> the method that they are for."""
WORD_KEYS = ("add_tokens", "add_special_tokens", "new_special_tokens")
"""Words, with commas, that become tokens; the last is the older name of the second."""


def translate(sheet: Sheet, devices: int) -> None:
    """Answer the keys of a LLaMA-Factory training file."""
    sheet.take("model_name_or_path", "model")
    trainer.revision(sheet, "model_revision")
    _method(sheet)
    _objective(sheet)
    _data(sheet)
    sheet.take("output_dir", "out")
    shared.batch(sheet, "per_device_train_batch_size", 8, devices)
    shared.length(sheet, "num_train_epochs")
    shared.rate(sheet, "lr_scheduler_type")
    sheet.fill("learning_rate", {"engine.learning_rate": 5e-5}, 5e-5)
    sheet.fill("lr_scheduler_type", {"engine.schedule": "linear"}, "linear")
    if not sheet.has("warmup_steps") and not sheet.has("warmup_ratio"):
        sheet.fill("warmup_steps", {"engine.warmup": 0}, 0)
    shared.optimizer(sheet, "optim")
    if sheet.is_on("use_muon"):
        sheet.take("use_muon", "engine.optimizer", "muon")
    elif sheet.is_on("use_adam_mini"):
        sheet.take("use_adam_mini", "engine.optimizer", "adam_mini", "schedule")
    for key in ("use_muon", "use_adam_mini"):
        if sheet.has(key) and key not in sheet.lines:
            sheet.answer(key, NOT_NEEDED, why="off")
    sheet.take_number("neftune_noise_alpha", "engine.neftune")
    shared.number_type(sheet)
    shared.intervals(sheet)
    _stop(sheet)
    if not shared.no_rows_held_out(sheet):
        sheet.fill("load_best_model_at_end", {"engine.keep_best": False}, False)
    sheet.pass_over(
        {**trainer.NOT_NEEDED_KEYS, **trainer.MORE_NOT_NEEDED, **tables.NOT_NEEDED_KEYS},
        {**trainer.LOST_KEYS, **tables.LOST_KEYS},
    )
    trainer.by_beginning(sheet, {**tables.BEGINNINGS, **trainer.BEGINNINGS})


def _stop(sheet: Sheet) -> None:
    sheet.take_number("early_stopping_steps", "engine.early_stop")


def _method(sheet: Sheet) -> None:
    kind = str(sheet.get("finetuning_type", "lora"))
    rule = next((key for key in RULES if sheet.is_on(key)), None) if kind == "full" else None
    if rule is not None:
        _through(sheet, rule)
        return
    if _grown(sheet, kind):
        return
    variants = [name for key, name in VARIANTS.items() if sheet.is_on(key)]
    if sheet.has("loraplus_lr_ratio"):
        variants.append("lora_plus")
    ours = variants[0] if kind == "lora" and variants else kind
    sheet.run["method.kind"] = ours
    sheet.take("finetuning_type", "method.kind", ours, "variant" if ours != kind else "", kind=ours)
    for key, name in VARIANTS.items():
        if sheet.is_on(key):
            sheet.answer(
                key,
                *(
                    (CHANGED, {"method.kind": name}, "variant")
                    if name == ours
                    else (LOST, {}, "one_variant")
                ),
                kind=ours,
            )
        elif sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="off")
    if kind == "lora":
        _lora(sheet)
    elif kind == "freeze":
        _freeze(sheet)
    elif kind == "oft":
        sheet.take_if_known(
            "oft_block_size", "method", "block_size", sheet.number("oft_block_size")
        )
    for key in sheet.given:
        owner = next(
            (method for prefix, method in PREFIXES.items() if key.startswith(prefix)), None
        )
        if owner and owner not in (kind, ours) and key not in sheet.lines and sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="other_method", kind=ours)
    trainer.whole_modules(sheet, "additional_target")
    trainer.rotary(sheet, "rope_scaling")
    _embedding_rate(sheet, ours)
    _resized(sheet, ours, shared.new_words(sheet, *WORD_KEYS))
    sheet.take("adapter_name_or_path", "adapter")
    bits = sheet.number("quantization_bit")
    if bits in (4, 8):
        sheet.take("quantization_bit", "base.bits", int(bits))
        sheet.take("quantization_type", "base.type")
    elif bits is not None:
        sheet.answer("quantization_bit", LOST, why="bits")
    how = str(sheet.get("quantization_method", "bnb")).lower()
    sheet.answer(
        "quantization_method",
        NOT_NEEDED if how in ("bnb", "bitsandbytes") else LOST,
        why="own_way" if how.startswith("b") else "bits",
    )


def _resized(sheet: Sheet, kind: str, with_words: bool) -> None:
    """`resize_vocab` without `additional_target` lets embedding and head train whole beside a new
    adapter there, also where no word is added. Words that are added here bring their own rows."""
    key, entry = "resize_vocab", methods.get(kind)
    if not sheet.is_on(key):
        sheet.answer(key, NOT_NEEDED, why="off")
    elif (
        with_words
        or kind in ("full", "freeze")
        or sheet.has("additional_target")
        or sheet.has("adapter_name_or_path")
    ):
        sheet.answer(key, NOT_NEEDED, why="own_way")
    elif entry is not None and "modules_to_save" in getattr(entry.config, "model_fields", {}):
        sheet.answer(key, CHANGED, {"method.modules_to_save": ["embedding", "head"]}, "resized")
    else:
        sheet.answer(key, LOST, why="no_field", kind=kind, axis="method")


def _embedding_rate(sheet: Sheet, kind: str) -> None:
    """LoRA+ there gives low-rank updates of embeddings a rate of their own."""
    key = "loraplus_lr_embedding"
    targets = words_of(sheet.run.get("method.targets", ""))
    if kind == "lora_plus" and {"embedding", "embed_tokens", "wte"} & set(targets):
        trainer.embedding_rate(sheet, key)
    elif sheet.has(key):
        sheet.answer(key, NOT_NEEDED, why="no_embedding")


def _grown(sheet: Sheet, kind: str) -> bool:
    """Methods here that are switches there: new blocks between the old ones, and blocks that some
    tokens pass by. Returns whether the run is one."""
    depths = str(sheet.get("mixture_of_depths", "")).lower()
    if sheet.is_on("use_llama_pro") and kind == "freeze":
        values: dict[str, Any]
        ours, values, key = (
            "llama_pro",
            {"method.blocks": sheet.number("freeze_trainable_layers", 2)},
            "use_llama_pro",
        )
    elif depths == "convert" and kind == "full":
        ours, values, key = "mixture_of_depths", {"method.train": "model"}, "mixture_of_depths"
    else:
        if sheet.is_on("use_llama_pro"):
            sheet.answer("use_llama_pro", LOST, why="llama_pro_alone")
        elif sheet.has("use_llama_pro"):
            sheet.answer("use_llama_pro", NOT_NEEDED, why="off")
        if depths:
            sheet.answer("mixture_of_depths", LOST, why="depths_alone")
        return False
    sheet.run["method.kind"] = ours
    sheet.take("finetuning_type", "method.kind", ours, "variant", kind=ours)
    sheet.answer(
        key,
        CHANGED,
        {"method.kind": ours, **values},
        "llama_pro" if ours == "llama_pro" else "depths",
    )
    if ours == "llama_pro":
        sheet.take("freeze_trainable_layers", "method.blocks", values["method.blocks"], "llama_pro")
    others = {"use_llama_pro", "mixture_of_depths"} - {key}
    for name in sheet.given:
        if (
            name not in sheet.lines
            and (name in others or name.startswith((*PREFIXES, "quantization_")))
            and sheet.has(name)
        ):
            sheet.answer(name, NOT_NEEDED, why="other_method", kind=ours)
    shared.new_words(sheet, *WORD_KEYS)
    return True


def _through(sheet: Sheet, rule: str) -> None:
    """Every weight trains and the optimiser sees little of the gradients: a method here."""
    kind = RULES[rule]
    name = rule.removeprefix("use_")
    sheet.run["method.kind"] = kind
    sheet.take("finetuning_type", "method.kind", kind, "variant", kind=kind)
    sheet.answer(rule, CHANGED, {"method.kind": kind}, "variant", kind=kind)
    for theirs, ours, default in (("rank", "rank", 16), ("update_interval", "refresh", 200)):
        sheet.take_number(f"{name}_{theirs}", f"method.{ours}")
        sheet.fill(f"{name}_{theirs}", {f"method.{ours}": default}, default)
    # APOLLO's authors multiply by the root of what they call the scale.
    usual = 2.0 if kind == "galore" else 32.0
    scale = sheet.number(f"{name}_scale", usual)
    factor = {
        "method.scale": scale
        if kind == "galore" or scale is None
        else round(float(scale) ** 0.5, 6)
    }
    if sheet.has(f"{name}_scale"):
        sheet.answer(
            f"{name}_scale",
            SAME if kind == "galore" else CHANGED,
            factor,
            "" if kind == "galore" else "root",
        )
    else:
        sheet.fill(f"{name}_scale", factor, usual)
    targets = words_of(sheet.get(f"{name}_target", "all"))
    sheet.take(
        f"{name}_target",
        "method.targets",
        ["linear"] if targets == ["all"] else targets,
        "linear" if targets == ["all"] else "list",
    )
    if kind == "apollo":
        sheet.take("apollo_scale_type", "method.scaling")
        sheet.answer(
            "apollo_proj",
            NOT_NEEDED if str(sheet.get("apollo_proj", "random")) == "random" else LOST,
            why="off",
        )
    for key in VARIANTS:
        if sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="off")


def _lora(sheet: Sheet) -> None:
    sheet.take_number("lora_rank", "method.rank")
    sheet.fill("lora_rank", {"method.rank": 8}, 8)
    sheet.take_number("lora_alpha", "method.alpha")  # both double the rank by default
    sheet.take_number("lora_dropout", "method.dropout")
    targets = words_of(sheet.get("lora_target", "all"))
    if targets == ["all"]:
        sheet.take("lora_target", "method.targets", ["linear"], "linear")
    else:
        sheet.take(
            "lora_target",
            "method.targets",
            targets,
            "" if isinstance(sheet.get("lora_target"), list) else "list",
        )
    sheet.take_if_known("loraplus_lr_ratio", "method", "ratio", sheet.number("loraplus_lr_ratio"))
    if sheet.is_on("pissa_init"):
        sheet.take_if_known("pissa_iter", "method", "pissa_niter", sheet.number("pissa_iter"))


def _freeze(sheet: Sheet) -> None:
    blocks = sheet.number("freeze_trainable_layers", 2)
    if isinstance(blocks, int) and blocks > 0:
        sheet.take("freeze_trainable_layers", "method.blocks", blocks)
        sheet.run.setdefault("method.blocks", blocks)
    else:
        sheet.answer("freeze_trainable_layers", LOST, why="first_blocks")
    modules = words_of(sheet.get("freeze_trainable_modules", "all"))
    if modules != ["all"]:
        sheet.take("freeze_trainable_modules", "method.targets", modules, "list")
    else:
        sheet.answer("freeze_trainable_modules", NOT_NEEDED, why="whole_blocks")
    if sheet.has("freeze_extra_modules"):
        patterns = [f"*{name}*" for name in words_of(sheet.get("freeze_extra_modules"))]
        sheet.take("freeze_extra_modules", "method.patterns", patterns, "patterns")


def _objective(sheet: Sheet) -> None:
    stage = str(sheet.get("stage", "sft"))
    kind = STAGES.get(stage, stage)
    loss = str(sheet.get("pref_loss", "sigmoid"))
    if kind == "dpo":
        kind = LOSSES.get(loss, loss if objectives.get(loss) else "dpo")
    sheet.run["objective.kind"] = kind
    sheet.take("stage", "objective.kind", kind, "stage" if kind != stage else "")
    if stage == "dpo" and sheet.has("pref_loss"):
        if kind != "dpo" or loss == "sigmoid":
            sheet.answer("pref_loss", CHANGED, {"objective.kind": kind}, "pref_loss")
        else:
            sheet.take_if_known("pref_loss", "objective", "loss", loss)
    elif sheet.has("pref_loss"):
        sheet.answer("pref_loss", NOT_NEEDED, why="other_stage", stage=stage)
    trainer.of_other_goals(sheet, kind, tables.OF_GOALS)
    if kind == "sft":
        _token_loss(sheet)
    _bco(sheet, kind, loss)
    if kind in RANKED:
        sheet.take_if_known("pref_beta", "objective", "beta", sheet.number("pref_beta"))
        if not sheet.has("pref_beta"):
            _fill_if_known(sheet, "pref_beta", "beta", 0.1)
    elif sheet.has("pref_beta"):
        sheet.answer("pref_beta", NOT_NEEDED, why="other_stage", stage=stage)
    for key, name, default in (
        ("pref_ftx", "sft_weight", 0.0),
        ("simpo_gamma", "gamma", None),
        ("kto_chosen_weight", "good_weight", 1.0),
        ("kto_rejected_weight", "bad_weight", 1.0),
        ("reward_model", "reward", None),
        ("ppo_epochs", "epochs", None),
        ("ppo_target", "kl_target", None),
        ("dpo_label_smoothing", "label_smoothing", 0.0),
    ):
        if key not in sheet.lines:
            sheet.take_if_known(
                key,
                "objective",
                name,
                sheet.number(key) if sheet.number(key) is not None else sheet.get(key),
                default=default,
            )

    if sheet.is_on("ppo_whiten_rewards") and "ppo_whiten_rewards" not in sheet.lines:
        sheet.take_if_known("ppo_whiten_rewards", "objective", "whiten_rewards", True)
    if kind == "ppo":
        for key in (
            "max_new_tokens",
            "temperature",
            "top_p",
            "top_k",
        ):  # of its roll-outs; elsewhere they are about answers after training
            sheet.take_if_known(key, "objective", key, sheet.number(key))


def _token_loss(sheet: Sheet) -> None:
    """What weighs tokens: one of three switches, in their order."""
    for key, loss in (("use_dft_loss", "dft"), ("use_eaft_loss", "eaft")):
        if sheet.is_on(key):
            sheet.answer(key, CHANGED, {"objective.loss": loss}, "losses")
    if sheet.is_on("use_asft_loss"):
        sheet.answer("use_asft_loss", LOST, why="asft")
    on = sheet.run.get("objective.loss") == "eaft"
    if on and sheet.has("eaft_alpha"):
        sheet.take("eaft_alpha", "objective.eaft_alpha", sheet.number("eaft_alpha"))
    for key in ("use_dft_loss", "use_eaft_loss", "use_asft_loss", "eaft_alpha", "asft_alpha"):
        if sheet.has(key) and key not in sheet.lines:
            sheet.answer(key, NOT_NEEDED, why="off")


def _bco(sheet: Sheet, kind: str, loss: str) -> None:
    """BCO beside another loss on pairs: both weighted so that they sum to 1."""
    key, weight = "pref_bco_weight", sheet.number("pref_bco_weight")
    if not weight or key in sheet.lines:
        if sheet.has(key) and key not in sheet.lines:
            sheet.answer(key, NOT_NEEDED, why="off")
        return
    if kind not in ("dpo", "ipo"):
        sheet.answer(key, LOST, why="no_field", kind=kind, axis="objective")
        return
    name = {"sigmoid": "sigmoid", "hinge": "hinge", "ipo": "ipo"}.get(loss, "sigmoid")
    ours = {
        "objective.kind": "dpo",
        "objective.loss": [name, "bco_pair"],
        "objective.loss_weights": [round(1 / (1 + weight), 8), round(weight / (1 + weight), 8)],
        "objective.bco_shift": True,
    }
    sheet.answer(key, CHANGED, ours, "losses")


def _fill_if_known(sheet: Sheet, key: str, name: str, value: Any) -> None:
    entry = objectives.get(str(sheet.run["objective.kind"]))
    if entry is None or name in getattr(entry.config, "model_fields", {}):
        sheet.fill(key, {f"objective.{name}": value}, value)


def _data(sheet: Sheet) -> None:
    names = words_of(sheet.get("dataset", ""))
    folder = sheet.get("dataset_dir")
    online = folder == "ONLINE"
    if online:
        names = [f"hf:{name}" for name in names]
        sheet.answer("dataset_dir", CHANGED, why="online")
    elif str(folder).startswith("REMOTE:"):
        sheet.answer("dataset_dir", LOST, why="remote")
    else:
        sheet.take("dataset_dir", "data.dir")
        if names:
            sheet.fill("dataset_dir", {"data.dir": "data"}, "data")
    if names:
        sheet.take(
            "dataset",
            "data.train",
            names[0] if len(names) == 1 else names,
            "hub_name" if online else "list" if len(names) > 1 else "",
        )
    if sheet.has("eval_dataset"):
        sheet.take("eval_dataset", "data.held_out", ",".join(words_of(sheet.get("eval_dataset"))))
        sheet.answer("val_size", NOT_NEEDED, why="off")
    else:
        shared.held_out(sheet, "val_size")
    _several(sheet, names)
    sheet.take(
        "enable_thinking",
        "data.thinking",
        {True: "learn", False: "off"}.get(sheet.get("enable_thinking"), "auto"),
        "thinking",
    )
    limit = sheet.number("cutoff_len", 2048)
    ours = {"data.max_tokens": limit, "data.oversize": "truncate"}
    if sheet.has("cutoff_len"):
        sheet.answer("cutoff_len", CHANGED, ours, "cutoff")
    else:
        sheet.answer("cutoff_len", DEFAULT, ours, "default", value=2048, system=NAME)
    sheet.take("default_system", "data.system")
    if sheet.is_on("mask_history"):
        sheet.answer("mask_history", CHANGED, {"data.turns": "last"}, "last_turn")
    elif sheet.has("mask_history"):
        sheet.answer("mask_history", NOT_NEEDED, why="off")
    trainer.own_template(sheet, "template")


def _several(sheet: Sheet, names: list[str]) -> None:
    """Rows of each set, and how sets are mixed. Needs `data.train` to stand."""
    entries: list[dict[str, Any]] = [{"file": name} for name in names]
    limit, strategy = sheet.number("max_samples"), str(sheet.get("mix_strategy", "concat"))
    try:
        shares = [float(word) for word in words_of(sheet.get("interleave_probs", ""))]
    except ValueError:
        shares = []
    if limit is None or len(names) < 2:
        sheet.take_number("max_samples", "data.limit")
    else:
        entries = [{**entry, "cap": int(limit)} for entry in entries]
        sheet.answer("max_samples", CHANGED, {"data.train": entries}, "limit_each")
    if strategy != "concat" and len(shares) == len(names) > 1 and min(shares) > 0:
        entries = [
            {**entry, "share": share / sum(shares)}
            for entry, share in zip(entries, shares, strict=True)
        ]
        for key in ("mix_strategy", "interleave_probs", "max_samples"):
            if key != "max_samples" or "cap" in entries[0]:
                sheet.answer(
                    key,
                    CHANGED,
                    {"data.train": entries},
                    "mixing" if key != "max_samples" else "limit_each",
                )
    elif sheet.has("mix_strategy"):
        sheet.answer(
            "mix_strategy",
            NOT_NEEDED if strategy == "concat" else LOST,
            why="concat" if strategy == "concat" else "no_shares",
        )
    if sheet.has("interleave_probs") and "interleave_probs" not in sheet.lines:
        sheet.answer("interleave_probs", LOST, why="no_shares")
