"""What both systems hand to the same trainer of Transformers: batch, rate, schedule, dtype,
saving, measuring."""

from __future__ import annotations

from typing import Any, get_args

from tunewright.core.config import EngineConfig
from tunewright.core.registry import methods
from tunewright.importing.sheet import CHANGED, LOST, NOT_NEEDED, Sheet, words_of

SCHEDULES = {
    "cosine": "cosine",
    "linear": "linear",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "polynomial": "linear",
    "cosine_with_restarts": "cosine",
    "cosine_with_min_lr": "cosine",
    "inverse_sqrt": "inverse_sqrt",
    "warmup_stable_decay": "wsd",
}
SCHEDULER_ARGUMENTS = {
    "min_lr_rate": "least_rate",
    "min_lr_ratio": "least_rate",
    "min_lr": "least_rate",
    "lr_end": "least_rate",
    "num_cycles": "cycles",
    "num_decay_steps": "decay",
    "power": "power",
}
"""Arguments of Transformers' schedules. `min_lr` and `lr_end` are rates, ours a share of the
peak."""
OPTIMIZERS = {
    "lion_32bit": "lion",
    "lion": "lion",
    "paged_lion": "lion",
    "paged_lion_32bit": "lion",
    "lion_pytorch": "lion",
    "schedule_free_adamw": "adamw_schedule_free",
    "adam_mini": "adam_mini",
    "adafactor": "adafactor",
    "muon": "muon",
}
"""Update rules under other names. Lion's 8-bit form rounds its momentum and is not here."""
ADAM = {"adam_beta1": 0.9, "adam_beta2": 0.999, "adam_epsilon": 1e-8}
"""The moments' factors; 0.9, 0.999 and 1e-8 are AdamW's usual ones, here too."""


def choices(name: str) -> tuple[Any, ...]:
    """The words that an engine setting takes."""
    return get_args(EngineConfig.model_fields[name].annotation)


def batch(sheet: Sheet, each_key: str, each: int, devices: int) -> None:
    """Samples of one optimiser step: rows on a device x accumulated passes x devices."""
    rows, rounds = sheet.number(each_key, each), sheet.number("gradient_accumulation_steps", 1)
    if not isinstance(rows, int) or not isinstance(rounds, int) or rows < 1 or rounds < 1:
        for key in (each_key, "gradient_accumulation_steps"):
            sheet.answer(key, LOST, why="no_number")
        return
    ours = {"engine.batch_size": rows * rounds * devices}
    sheet.fill(each_key, ours, each)
    for key in (each_key, "gradient_accumulation_steps"):
        if sheet.has(key):
            sheet.answer(key, CHANGED, ours, "batch", each=rows, rounds=rounds, devices=devices)


def length(sheet: Sheet, epochs_key: str) -> None:
    """Epochs and steps. -1 steps is their word for none."""
    sheet.take_number(epochs_key, "engine.epochs")
    steps = sheet.number("max_steps")
    if isinstance(steps, int) and steps > 0:
        sheet.take("max_steps", "engine.steps", steps)
    elif sheet.has("max_steps"):
        sheet.answer("max_steps", NOT_NEEDED, why="off")


def rate(sheet: Sheet, schedule_key: str) -> None:
    """Rate, its fall, its warm-up, decay, clipping."""
    for key, ours in (
        ("learning_rate", "engine.learning_rate"),
        ("weight_decay", "engine.weight_decay"),
        ("seed", "engine.seed"),
    ):
        sheet.take_number(key, ours)
    theirs = str(sheet.get(schedule_key, "")).lower()
    known = {**{word: word for word in choices("schedule")}, **SCHEDULES}
    if theirs in known:
        sheet.take(
            schedule_key,
            "engine.schedule",
            known[theirs],
            "" if known[theirs] == theirs else "schedule",
        )
    elif theirs:
        sheet.answer(
            schedule_key, LOST, why="no_schedule", known=", ".join(map(str, choices("schedule")))
        )
    steps, share = sheet.number("warmup_steps"), sheet.number("warmup_ratio")
    if theirs == "constant" and (steps or share):
        # Their `constant` starts at the full rate whatever the warm-up says; that is what
        # constant_with_warmup is for.
        for key in ("warmup_steps", "warmup_ratio"):
            sheet.answer(key, CHANGED, {"engine.warmup": 0}, "constant_no_warmup")
    elif steps:
        sheet.take("warmup_steps", "engine.warmup", steps)
        if sheet.has("warmup_ratio"):
            sheet.answer("warmup_ratio", NOT_NEEDED, why="steps_win")
    else:
        sheet.take_number("warmup_ratio", "engine.warmup")
        if sheet.has("warmup_steps"):
            sheet.answer("warmup_steps", NOT_NEEDED, why="off") if share else sheet.take(
                "warmup_steps", "engine.warmup", 0
            )
    _scheduler_arguments(sheet, theirs)
    clip = sheet.number("max_grad_norm")
    if clip is not None:
        sheet.answer(
            "max_grad_norm",
            *(
                (CHANGED, {"engine.clip": None}, "no_clip")
                if clip <= 0
                else ("same", {"engine.clip": clip})
            ),
        )
    _moments(sheet)


def _moments(sheet: Sheet) -> None:
    """AdamW's factors; the usual ones are the same here."""
    values = {key: sheet.number(key, usual) for key, usual in ADAM.items()}
    first, second, epsilon = (values[key] for key in ADAM)
    ours = {"engine.betas": [first, second]}
    for key, usual in ADAM.items():
        if values[key] == usual:
            sheet.answer(key, NOT_NEEDED, why="usual_value")
        elif values[key] is None:
            sheet.answer(key, LOST, why="no_number")
        else:
            changed = {"engine.epsilon": epsilon} if key == "adam_epsilon" else ours
            sheet.answer(key, CHANGED, changed, "moments")


def _scheduler_arguments(sheet: Sheet, theirs: str) -> None:
    """`lr_scheduler_kwargs.*`: the arguments of Transformers' schedules."""
    peak = sheet.number("learning_rate")
    for key in [key for key in sheet.given if key.startswith("lr_scheduler_kwargs.")]:
        name = key.partition(".")[2]
        ours, value = SCHEDULER_ARGUMENTS.get(name), sheet.number(key)
        if name in ("min_lr", "lr_end"):
            value = value / peak if value is not None and peak else None
        elif ours == "cycles" and theirs != "cosine_with_restarts":
            # Elsewhere it counts waves, and half of one is what every schedule here takes.
            ours = None
        if ours is None or value is None:
            sheet.answer(key, LOST, why="no_argument")
            continue
        whole = ours in ("cycles", "decay")
        sheet.answer(
            key, CHANGED, {f"engine.{ours}": int(value) if whole else float(value)}, "schedule"
        )


def optimizer(sheet: Sheet, key: str) -> None:
    """The update rule; every kind of AdamW gives the same steps up to rounding."""
    theirs = str(sheet.get(key, "")).lower()
    small = sheet.run.get("method.kind") not in ("full", "freeze")
    if (
        "adamw" in theirs
        and "8bit" in theirs
        and not small
        and "adamw_8bit" in choices("optimizer")
    ):
        sheet.take(key, "engine.optimizer", "adamw_8bit", "" if theirs == "adamw_8bit" else "adamw")
    elif theirs.startswith(("adamw", "paged_adamw")):
        # Beside an adapter the optimiser's state is small: 8 bits would save little and need
        # another library.
        sheet.take(key, "engine.optimizer", "adamw", "adamw" if theirs != "adamw" else "")
    elif theirs in OPTIMIZERS:
        ours = OPTIMIZERS[theirs]
        sheet.take(key, "engine.optimizer", ours, "" if ours == theirs else "schedule")
        if ours == "adamw_schedule_free" and "engine.schedule" not in sheet.run:
            sheet.run["engine.schedule"] = "constant"
    elif theirs in choices("optimizer"):
        sheet.take(key, "engine.optimizer", theirs)
    elif (
        method := next((name for name in ("galore", "apollo") if name in theirs), None)
    ) is not None:
        sheet.answer(key, LOST, why="rule_is_method", kind=method)
    elif theirs:
        sheet.answer(key, LOST, why="no_optimizer", known=", ".join(map(str, choices("optimizer"))))


def new_words(sheet: Sheet, *keys: str) -> bool:
    """Words that become tokens, listed under several keys. A method without room for them cannot
    train them in the same run; returns whether it has."""
    words = [word for key in keys for word in words_of(sheet.get(key, ""))]
    kind = str(sheet.run.get("method.kind", ""))
    entry = methods.get(kind)
    name = next(
        (
            name
            for name in ("new_tokens", "tokens")
            if entry and name in getattr(entry.config, "model_fields", {})
        ),
        None,
    )
    for key in keys:
        if not words or not sheet.has(key):
            continue
        if name is not None:
            sheet.answer(key, CHANGED, {f"method.{name}": words}, "new_words")
        else:
            sheet.answer(key, LOST, why="words_first", kind=kind, words=", ".join(words))
    return bool(words) and name is not None


def number_type(sheet: Sheet) -> None:
    """bf16 and fp16 as one word."""
    for keys, ours in (
        (("bf16", "pure_bf16", "bfloat16"), "bfloat16"),
        (("fp16", "float16"), "float16"),
    ):
        for key in keys:
            if str(sheet.get(key)).lower() == "auto":
                sheet.take(key, "engine.dtype", "auto")
            elif sheet.is_on(key):
                sheet.take(key, "engine.dtype", ours)
            elif sheet.has(key):
                sheet.answer(key, NOT_NEEDED, why="off")


def intervals(sheet: Sheet) -> None:
    """When states are saved and the held-out rows measured."""
    for what, ours, strategies in (
        ("save", "engine.save_every", ("save_strategy",)),
        ("eval", "engine.evaluate_every", ("eval_strategy", "evaluation_strategy")),
    ):
        key = f"{what}_steps"
        strategy = next(
            (str(sheet.get(name)).lower() for name in strategies if sheet.has(name)), ""
        )
        for name in strategies:
            if strategy in ("epoch", "no", "best"):
                sheet.take(
                    name, ours, "epoch", "best_epoch" if strategy == "best" else ""
                ) if strategy != "no" else sheet.answer(
                    name, CHANGED, {ours: None}, "only_at_the_end"
                )
            else:
                sheet.answer(name, NOT_NEEDED, why="by_steps")
        steps = sheet.number(key)
        if steps is None:
            continue
        if strategy in ("epoch", "no", "best"):
            sheet.answer(key, NOT_NEEDED, why="strategy_wins")
        elif steps >= 1:
            sheet.take(key, ours, int(steps))
        else:
            sheet.answer(key, LOST, why="share_of_steps")
    if sheet.has("load_best_model_at_end"):
        sheet.take(
            "load_best_model_at_end", "engine.keep_best", sheet.is_on("load_best_model_at_end")
        )


def held_out(sheet: Sheet, key: str) -> None:
    """A share or a count of rows that are not trained on; 0 is said, because ours would hold out a
    tenth."""
    sheet.fill(key, {"data.held_out": 0}, 0)
    value = sheet.number(key)
    if value is not None:
        sheet.take(key, "data.held_out", int(value) if value > 1 or value == 0 else value)
    elif sheet.has(key):
        sheet.answer(key, LOST, why="no_number")


def no_rows_held_out(sheet: Sheet) -> bool:
    """Whether nothing is measured during the run."""
    return sheet.run.get("data.held_out", 0) == 0
