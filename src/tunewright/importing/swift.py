"""ms-swift's keys. Source: ms-swift 4.6, arguments/*.py and trainers/arguments.py, whose commands
are `swift sft`, `swift pt` and `swift rlhf`; run files hold the same keys."""

from __future__ import annotations

import math
from typing import Any

from tunewright.importing import shared, trainer
from tunewright.importing import swift_tables as tables
from tunewright.importing.sheet import CHANGED, LOST, NOT_NEEDED, Sheet, words_of

NAME = "ms-swift"
OWN = {
    "tuner_type",
    "train_type",
    "sft_type",
    "tuner_backend",
    "torch_dtype",
    "rlhf_type",
    "split_dataset_ratio",
    "max_length",
    "truncation_strategy",
    "target_modules",
    "lora_rank",
    "dataset_num_proc",
    "loss_scale",
    "enable_dft_loss",
    "new_special_tokens",
    "quant_bits",
    "attn_impl",
    "use_hf",
    "template_backend",
    "val_dataset",
    "lorap_lr_ratio",
}
"""Keys by which its files are told."""
TUNERS = {
    "lora": "lora",
    "full": "full",
    "longlora": "lora",
    "adalora": "adalora",
    "llamapro": "llama_pro",
    "adapter": "adapter",
    "vera": "vera",
    "boft": "boft",
    "dora": "dora",
}
GOALS = {
    "dpo": "dpo",
    "orpo": "orpo",
    "simpo": "simpo",
    "kto": "kto",
    "cpo": "cpo",
    "rm": "reward",
    "ppo": "ppo",
    "grpo": "grpo",
    "gkd": "gkd",
}
VARIANTS = {"use_dora": "dora", "use_rslora": "rslora"}
STARTS = {"pissa": "pissa", "olora": "olora", "eva": "eva", "loftq": "loftq"}
BETAS = {"simpo": 2.0, "grpo": 0.04}
SETTINGS = (
    ("beta", "beta"),
    ("rpo_alpha", "sft_weight"),
    ("cpo_alpha", "sft_weight"),
    ("label_smoothing", "label_smoothing"),
    ("simpo_gamma", "gamma"),
    ("desirable_weight", "good_weight"),
    ("undesirable_weight", "bad_weight"),
    ("center_rewards_coefficient", "center"),
    ("num_generations", "generations"),
    ("max_completion_length", "max_new_tokens"),
    ("response_length", "max_new_tokens"),
    ("num_iterations", "epochs"),
    ("num_ppo_epochs", "epochs"),
    ("num_mini_batches", "minibatches"),
    ("epsilon", "clip"),
    ("epsilon_high", "clip_high"),
    ("cliprange", "clip"),
    ("cliprange_value", "value_clip"),
    ("kl_coef", "beta"),
    ("vf_coef", "value_weight"),
    ("lam", "lam"),
    ("whiten_rewards", "whiten_rewards"),
    ("reward_model", "reward"),
    ("teacher_model", "teacher"),
    ("lmbda", "on_policy"),
    ("gkd_logits_topk", "top_k"),
    ("missing_eos_penalty", "unfinished_penalty"),
)
"""Settings of objectives: their name and ours."""


def translate(sheet: Sheet, devices: int, verb: str = "") -> None:
    """Answer the keys of an ms-swift command or run file. `verb` is the command."""
    _model(sheet)
    _method(sheet)
    kind = _objective(sheet, verb)
    _data(sheet, kind)
    sheet.take("output_dir", "out")
    _batch(sheet, devices)
    shared.length(sheet, "num_train_epochs")
    shared.rate(sheet, "lr_scheduler_type")
    full = sheet.run["method.kind"] in ("full", "lisa", "galore", "llama_pro")
    usual = 1e-5 if full else 1e-4
    sheet.fill("learning_rate", {"engine.learning_rate": usual}, usual)
    sheet.fill("weight_decay", {"engine.weight_decay": 0.1}, 0.1)
    if not sheet.has("adam_beta2"):
        sheet.fill("adam_beta2", {"engine.betas": [sheet.number("adam_beta1", 0.9), 0.95]}, 0.95)
    if not sheet.has("warmup_steps") and not sheet.has("warmup_ratio"):
        sheet.fill("warmup_ratio", {"engine.warmup": 0}, 0)
    _optimizer(sheet)
    sheet.take_number("neftune_noise_alpha", "engine.neftune")
    dtype = str(sheet.get("torch_dtype", "")).removeprefix("torch.")
    names = {"bfloat16": "bfloat16", "float16": "float16", "float32": "float32"}
    if dtype in names:
        sheet.take("torch_dtype", "engine.dtype", names[dtype])
    shared.number_type(sheet)
    shared.intervals(sheet)
    sheet.take_number("early_stop_interval", "engine.early_stop")
    if not shared.no_rows_held_out(sheet):
        sheet.fill("load_best_model_at_end", {"engine.keep_best": False}, False)
    sheet.pass_over({**tables.NOT_NEEDED_KEYS, **trainer.MORE_NOT_NEEDED}, tables.LOST_KEYS)
    trainer.by_beginning(sheet, {**tables.BEGINNINGS, **trainer.BEGINNINGS})


def _model(sheet: Sheet) -> None:
    """ModelScope is its hub unless `use_hf` says otherwise; a folder is a folder."""
    name, hf = str(sheet.get("model", "")), sheet.is_on("use_hf")
    hub = "/" in name and not name.startswith((".", "/", "~")) and name.count("/") == 1
    if hub and not hf:
        sheet.take("model", "model", f"modelscope:{name}", "modelscope")
    else:
        sheet.take("model", "model")
    if sheet.has("use_hf"):
        sheet.answer("use_hf", CHANGED if hf else NOT_NEEDED, {}, "hub_name" if hf else "off")
    adapters = words_of(sheet.get("adapters", ""))
    if len(adapters) == 1:
        sheet.take("adapters", "adapter", adapters[0], "list")
    elif adapters:
        sheet.answer("adapters", LOST, why="one_adapter")


def _tuner(sheet: Sheet) -> tuple[str, str]:
    """(key, value) of what trains, under the name of its version."""
    for key in ("tuner_type", "train_type", "sft_type"):
        if sheet.has(key):
            return key, str(sheet.get(key)).lower()
    return "tuner_type", "lora"


def _method(sheet: Sheet) -> None:
    key, tuner = _tuner(sheet)
    kind = TUNERS.get(tuner, tuner)
    begun = str(sheet.get("init_weights", sheet.get("init_lora_weights", "true"))).lower()
    start = next((ours for begin, ours in STARTS.items() if begun.startswith(begin)), "")
    if kind == "lora":
        switched = next((name for k, name in VARIANTS.items() if sheet.is_on(k)), "")
        kind = start or switched or ("lora_plus" if sheet.has("lorap_lr_ratio") else "lora")
    if kind == "full" and sheet.is_on("use_galore"):
        kind = "galore"
    if kind == "full" and (sheet.number("lisa_activated_layers") or 0) > 0:
        kind = "lisa"
    sheet.run["method.kind"] = kind
    sheet.take(key, "method.kind", kind, "variant" if kind != tuner else "", kind=kind)
    if not sheet.has(key):
        sheet.fill(key, {"method.kind": kind}, "lora")
    for switch, name in VARIANTS.items():
        if sheet.is_on(switch):
            fate = (CHANGED, {"method.kind": name}, "variant") if name == kind else (
                LOST, {}, "one_variant")  # fmt: skip
            sheet.answer(switch, *fate, kind=kind)
        elif sheet.has(switch):
            sheet.answer(switch, NOT_NEEDED, why="off")
    for word in ("init_weights", "init_lora_weights"):
        if start and start == kind:
            sheet.answer(word, CHANGED, {"method.kind": kind}, "variant", kind=kind)
        elif begun in ("true", "false"):
            sheet.answer(word, NOT_NEEDED, why="off")
        else:
            sheet.answer(word, LOST, why="no_start", kind=kind)
    _low_rank(sheet, kind)
    _grown(sheet, kind)
    trainer.whole_modules(sheet, "modules_to_save")
    trainer.patterns(sheet)
    words = words_of(sheet.get("new_special_tokens", ""))
    if words:
        shared.new_words(sheet, "new_special_tokens")
    bits, how = sheet.number("quant_bits"), str(sheet.get("quant_method", "bnb"))
    if bits in (4, 8):
        sheet.take("quant_bits", "base.bits", int(bits))
        if bits == 4:
            sheet.take("bnb_4bit_quant_type", "base.type")
            sheet.take("bnb_4bit_use_double_quant", "base.double")
    elif bits is not None:
        sheet.answer("quant_bits", LOST, why="bits")
    sheet.answer("quant_method", NOT_NEEDED if how == "bnb" else LOST,
                 why="own_way" if how == "bnb" else "bits")  # fmt: skip
    for name in ("bnb_4bit_quant_type", "bnb_4bit_use_double_quant", "hqq_axis"):
        if sheet.has(name) and name not in sheet.lines:
            sheet.answer(name, NOT_NEEDED, why="off")
    trainer.rotary(sheet, "rope_scaling")


def _low_rank(sheet: Sheet, kind: str) -> None:
    usual = (
        ("lora_rank", "rank", 8),
        ("lora_alpha", "alpha", 32),
        ("lora_dropout", "dropout", 0.05),
    )
    low_rank = kind in ("lora", "dora", "rslora", "lora_plus", *STARTS.values())
    for key, ours, default in usual:
        if low_rank:
            sheet.take_number(key, f"method.{ours}")
            sheet.fill(key, {f"method.{ours}": default}, default)
        elif sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="other_method", kind=kind)
    sheet.take_if_known("lorap_lr_ratio", "method", "ratio", sheet.number("lorap_lr_ratio"))
    names = words_of(sheet.get("target_modules", ""))
    if not names:
        return
    targets = ["linear"] if names in (["all-linear"], ["all"]) else names
    if kind in ("full", "lisa", "galore", "llama_pro"):
        sheet.answer("target_modules", NOT_NEEDED, why="other_method", kind=kind)
    else:
        why = "linear" if targets == ["linear"] else ""
        sheet.take_if_known("target_modules", "method", "targets", targets, why=why)


def _grown(sheet: Sheet, kind: str) -> None:
    """Settings of methods that are not LoRA."""
    for key, owner, ours in (
        ("lisa_activated_layers", "lisa", "blocks"),
        ("lisa_step_interval", "lisa", "every"),
        ("llamapro_num_new_blocks", "llama_pro", "blocks"),
        ("adapter_length", "adapter", "bottleneck"),
        ("adapter_act", "adapter", "activation"),
        ("adalora_target_r", "adalora", "rank"),
        ("adalora_init_r", "adalora", "start_rank"),
        ("adalora_orth_reg_weight", "adalora", "orthogonality"),
        ("vera_rank", "vera", "rank"),
        ("vera_d_initial", "vera", "start"),
        ("boft_block_size", "boft", "block_size"),
        ("galore_rank", "galore", "rank"),
        ("galore_update_proj_gap", "galore", "refresh"),
        ("galore_scale", "galore", "scale"),
        ("galore_proj_type", "galore", "side"),
        ("galore_target_modules", "galore", "targets"),
    ):
        if not sheet.has(key):
            continue
        if owner == kind:
            value = sheet.number(key) if sheet.number(key) is not None else sheet.get(key)
            sheet.take_if_known(key, "method", ours, value)
        else:
            sheet.answer(key, NOT_NEEDED, why="other_method", kind=kind)
    if kind == "galore":
        sheet.answer("use_galore", CHANGED, {"method.kind": kind}, "variant", kind=kind)
    elif sheet.has("use_galore"):
        sheet.answer("use_galore", NOT_NEEDED, why="off")


def _objective(sheet: Sheet, verb: str) -> str:
    theirs = str(sheet.get("rlhf_type", "dpo" if verb == "rlhf" else ""))
    kind = GOALS.get(theirs, theirs) or ("pretrain" if verb == "pt" else "sft")
    sheet.run["objective.kind"] = kind
    sheet.take("rlhf_type", "objective.kind", kind, "" if kind == theirs else "stage")
    if sheet.is_on("enable_dft_loss"):
        sheet.take_if_known("enable_dft_loss", "objective", "loss", "dft", why="losses")
    elif sheet.has("enable_dft_loss"):
        sheet.answer("enable_dft_loss", NOT_NEEDED, why="off")
    if kind == "dpo":
        trainer.preference_losses(sheet, "loss_type", "loss_weights")
    elif sheet.has("loss_type") and kind in ("sft", "pretrain"):
        fate = NOT_NEEDED if sheet.get("loss_type") in ("cross_entropy", "sigmoid") else LOST
        sheet.answer("loss_type", fate, why="off" if fate == NOT_NEEDED else "not_here")
    elif sheet.has("loss_type"):
        loss = str(sheet.get("loss_type"))
        if kind == "grpo" and loss in ("grpo", "dr_grpo", "dapo", "cispo"):
            sheet.answer("loss_type", CHANGED, {"objective.loss": loss}, "losses")
        elif kind == "kto" and loss in ("kto", "apo_zero_unpaired"):
            ours = {"objective.loss": loss.removesuffix("_unpaired")}
            sheet.answer("loss_type", CHANGED, ours, "losses")
        else:
            sheet.answer("loss_type", LOST, why="no_field", kind=kind, axis="objective")
    trainer.of_other_goals(sheet, str(sheet.run["objective.kind"]), tables.OF_GOALS)
    for key, name in SETTINGS:
        number = sheet.number(key)
        value = number if number is not None else sheet.get(key)
        if key not in sheet.lines:
            sheet.take_if_known(key, "objective", name, value, default=0 if not value else None)
    trainer.of_groups(sheet)
    if kind == "simpo" and not sheet.has("beta"):
        sheet.fill("beta", {"objective.beta": 2.0}, 2.0)
    for key in ("temperature", "top_p", "top_k"):
        if kind in (*tables.DRAWN, "gkd"):
            sheet.take_if_known(key, "objective", key, sheet.number(key))
        elif sheet.has(key):
            sheet.answer(key, NOT_NEEDED, why="after")
    if sheet.has("max_new_tokens") and kind not in (*tables.DRAWN, "gkd"):
        sheet.answer("max_new_tokens", NOT_NEEDED, why="after")
    funcs = words_of(sheet.get("reward_funcs", ""))
    if funcs and "reward_funcs" not in sheet.lines:
        sheet.answer("reward_funcs", LOST, why="reward_funcs", names=", ".join(funcs))
    return str(sheet.run["objective.kind"])


def _data(sheet: Sheet, kind: str) -> None:
    hf = sheet.is_on("use_hf")
    made = [_entry(name, hf) for name in words_of(sheet.get("dataset", ""))]
    if made:
        plain = made[0] if len(made) == 1 and isinstance(made[0], str) else made
        sheet.take("dataset", "data.train", plain, "swift_sets")
    shares = sheet.get("interleave_prob")
    if shares is not None and len(words_of(shares)) == len(made) > 1:
        weights = [float(w) for w in words_of(shares)]
        entries = [
            {**(one if isinstance(one, dict) else {"file": one}), "share": w / sum(weights)}
            for one, w in zip(made, weights, strict=True)
        ]
        sheet.answer("interleave_prob", CHANGED, {"data.train": entries}, "mixing")
        sheet.answer("stopping_strategy", NOT_NEEDED, why="own_way")
    held = [_entry(name, hf) for name in words_of(sheet.get("val_dataset", ""))]
    if held:
        files = ",".join(one if isinstance(one, str) else str(one["file"]) for one in held)
        sheet.answer("val_dataset", CHANGED, {"data.held_out": files}, "test_datasets")
        sheet.answer("split_dataset_ratio", NOT_NEEDED, why="off")
    else:
        shared.held_out(sheet, "split_dataset_ratio")
    columns = {
        key.removeprefix("columns."): value
        for key, value in sheet.given.items()
        if key.startswith("columns.") and sheet.has(key)
    }
    for key in [key for key in sheet.given if key.startswith("columns.")]:
        ours = {"data.columns": {str(v): k for k, v in columns.items()}}
        sheet.answer(key, CHANGED, ours, "columns_turned")
    limit = sheet.number("max_length")
    longest = sheet.number("max_model_len")
    if limit is not None and limit > 0:
        way = str(sheet.get("truncation_strategy", "delete"))
        cut = "drop" if way in ("delete", "raise") else "truncate"
        sheet.answer(
            "max_length", CHANGED, {"data.max_tokens": limit, "data.oversize": cut}, "cutoff"
        )
        sheet.answer("truncation_strategy", CHANGED, {"data.oversize": cut}, "cutoff")
    elif longest is not None:
        sheet.run["data.max_tokens"] = longest
    if sheet.has("max_model_len"):
        sheet.answer("max_model_len", NOT_NEEDED, why="own_way")
    if sheet.has("truncation_strategy") and "truncation_strategy" not in sheet.lines:
        sheet.answer("truncation_strategy", NOT_NEEDED, why="own_way")
    sheet.take("system", "data.system")
    trainer.own_template(sheet, "template")
    thinking = sheet.get("enable_thinking")
    if thinking is not None:
        on = sheet.is_on("enable_thinking")
        sheet.take("enable_thinking", "data.thinking", "learn" if on else "off", "thinking")
    _loss_scale(sheet, kind)


def _loss_scale(sheet: Sheet, kind: str) -> None:
    """Which turns are learnt, and at which weight."""
    for word in str(sheet.get("loss_scale", "default")).split("+"):
        name = word.strip()
        if name == "last_round" and kind not in ("pretrain", *tables.DRAWN):
            sheet.answer("loss_scale", CHANGED, {"data.turns": "last_round"}, "last_round")
        elif name in ("default", "last_round", "ignore_empty_think"):
            if "loss_scale" not in sheet.lines:
                sheet.answer("loss_scale", NOT_NEEDED, why="answers_learnt")
        elif name == "all":
            if kind == "pretrain":
                sheet.answer("loss_scale", NOT_NEEDED, why="own_way")
            else:
                sheet.answer("loss_scale", LOST, why="questions_unlearnt")
        else:
            sheet.answer("loss_scale", LOST, why="loss_scale")


def _entry(name: str, hf: bool) -> Any:
    """One of its data sets: `owner/name:subset#500`, `hf::owner/name`, or a file."""
    text, _, count = name.partition("#")
    hub = "hf" if hf else ""
    for mark in ("hf", "ms"):
        if text.lower().startswith(f"{mark}::"):
            hub, text = mark, text[4:]
    is_file = text.startswith((".", "/", "~")) or text.endswith(
        (".json", ".jsonl", ".csv", ".txt", ".parquet")
    )
    if not is_file:
        owner, _, subset = text.partition(":")
        text = f"{'modelscope' if hub != 'hf' else 'hf'}:{owner}" + (f"/{subset}" if subset else "")
    return {"file": text, "cap": int(count)} if count.isdigit() else text


def _batch(sheet: Sheet, devices: int) -> None:
    """Its steps hold 16 samples where nobody says how many passes are gathered."""
    rows = sheet.number("per_device_train_batch_size", 1)
    if not sheet.has("gradient_accumulation_steps") and isinstance(rows, int) and rows > 0:
        rounds = max(1, math.ceil(16 / rows / devices))
        ours = {"engine.batch_size": rows * rounds * devices}
        sheet.fill("gradient_accumulation_steps", ours, rounds)
        if sheet.has("per_device_train_batch_size"):
            sheet.answer("per_device_train_batch_size", CHANGED, ours, "batch", each=rows,
                         rounds=rounds, devices=devices)  # fmt: skip
        return
    shared.batch(sheet, "per_device_train_batch_size", 1, devices)


def _optimizer(sheet: Sheet) -> None:
    """`optimizer` names what it builds itself, `optim` the trainer's."""
    theirs = str(sheet.get("optimizer", "")).lower()
    if theirs in ("lorap", "galore", "default"):
        sheet.answer("optimizer", NOT_NEEDED, why="own_way")
    elif theirs == "muon":
        sheet.take("optimizer", "engine.optimizer", "muon")
    elif theirs:
        sheet.answer("optimizer", LOST, why="no_optimizer",
                     known=", ".join(map(str, shared.choices("optimizer"))))  # fmt: skip
    shared.optimizer(sheet, "optim")
