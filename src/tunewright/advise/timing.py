"""Seconds of the parts of a run: from what a few blocks took here (`trial.py`), else from
operations counted and divided by a rate (`speed.py`). Before any correction by finished runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from tunewright.advise import memory, speed
from tunewright.advise.question import Question
from tunewright.advise.room import Room
from tunewright.advise.tried import Trial
from tunewright.models.shape import ModelShape, rank_of, trainable_parameters

CACHED_FROM = 0.25
"""Share of the blocks that must be still for their output to be kept
(`engine.activation_cache`)."""
NARROW = 1.35
"""How much longer a step takes on a CPU with a base in 4 or 8 bits: every matrix is made wide
before it is used."""


def slower(question: Question) -> float:
    """How many times as long the steps take because they make room in memory."""
    room = Room(question.recompute, question.keep_bytes, question.offload)
    return 1 + room.slower(question.device)


def by_part(question: Question) -> dict[str, float]:
    """Seconds of each part that can be told (`core/stopwatch.py` names them)."""
    found = {"load": speed.load_seconds(question.shape), "checkpoint": save_seconds(question)}
    trial, rates = question.trial, question.rates
    if trial is not None:
        found["train"] = _tried_training(question, trial)
        found["evaluate"] = question.measured_rows * _tried_reading(question, trial)
        found["evaluate"] += trial.read_first_seconds if question.measured_rows else 0.0
    elif rates is not None:
        reached = rates.flops * speed.EFFICIENCY
        facts = question.facts
        found["train"] = flops_of(question) / reached + fixed_seconds(question, rates)
        found["train"] *= slower(question)
        epoch = sum(
            _reading(one, facts.rows_per_epoch, facts.label_rows_per_epoch)
            for one in (question.grown, *question.beside)
        )
        found["evaluate"] = question.measured_rows * epoch / max(1, facts.samples) / reached
    tokens = question.answer_tokens if question.probes else 0
    if trial is not None and trial.token_seconds:
        found["ask"] = _tried_asking(question, trial) if tokens else 0.0
    elif rates is not None:
        found["ask"] = speed.ask_seconds(question.grown, question.dtype, tokens, rates)
    if "ask" in found and question.may_leave_out:
        found["ask"] = min(found["ask"], speed.seconds_allowed(found["train"]))
    if "ask" in found and question.general and rates is not None:
        found["ask"] += speed.general_seconds(question.grown, question.dtype, rates)
    return found


def save_seconds(question: Question) -> float:
    """Seconds of writing checkpoints, and what was trained at the end."""
    each = memory.checkpoint_bytes(question.work)
    final = memory.saved_bytes(question.shape, question.work)
    return speed.write_seconds(question.saves * each + final, question.saves + 1)


# ---- from what was tried


def _tried_step(question: Question, trial: Trial, *, cached: bool = False) -> float:
    """Seconds of a step without its update. `cached`: without the blocks below what trains."""
    more = question.grown.layers - trial.blocks
    seconds = trial.seconds
    if cached:
        seconds -= trial.still_blocks * trial.still_seconds
    elif trial.still_blocks:
        seconds += more * trial.still_seconds
    else:
        seconds += more * trial.block_seconds
    if question.draws:
        return max(0.0, seconds) + trial.draw_seconds * _deeper(question, trial)
    return max(0.0, seconds) * question.step_rows / max(1.0, trial.rows)


def _deeper(question: Question, trial: Trial) -> float:
    """How many times as long a token takes to write in the whole model: it reads the weights of all
    blocks, and those of the head."""
    outside = question.shape.head_weights
    each = question.shape.block_weights / max(1, question.shape.layers)
    return (outside + question.grown.layers * each) / (outside + trial.blocks * each)


def _tried_asking(question: Question, trial: Trial) -> float:
    """Seconds of the questions before and after. Answers end before the longest they may be."""
    tokens = speed.ANSWERED * question.answer_tokens
    once = trial.ask_seconds + tokens * trial.token_seconds
    return speed.ASKINGS * once * _deeper(question, trial)


def _tried_training(question: Question, trial: Trial) -> float:
    """Seconds of all steps, and of what the model of step 0 says of the rows."""
    update = trial.update_seconds * question.trainable / max(1, trial.trainable)
    whole = _tried_step(question, trial)
    steps = float(question.steps)
    share = 1 - (trial.blocks - trial.still_blocks) / question.grown.layers
    if trial.still_blocks and question.may_cache and question.epochs > 1 and share >= CACHED_FROM:
        first = steps / question.epochs
        learning = first * whole + (steps - first) * _tried_step(question, trial, cached=True)
    else:
        learning = steps * whole
    before = question.reference_samples * _tried_start(question, trial)
    learning *= slower(question)
    return trial.first_seconds + learning + steps * update + before


def _tried_reading(question: Question, trial: Trial) -> float:
    """Seconds of a sample that is read and not learnt."""
    more = question.grown.layers - trial.blocks
    seconds = trial.read_seconds - trial.read_draw_seconds + more * trial.read_block_seconds
    seconds = max(0.0, seconds) + trial.read_draw_seconds * _deeper(question, trial)
    return seconds / max(1, trial.read_samples)


def _tried_start(question: Question, trial: Trial) -> float:
    """Seconds of a sample of which the model at step 0 is asked, in passes of ever new sizes."""
    more = question.grown.layers - trial.blocks
    seconds = trial.start_seconds + more * trial.start_block_seconds + trial.start_first_seconds
    return max(0.0, seconds) / max(1, trial.read_samples)


# ---- counted


def flops_of(question: Question) -> float:
    """Operations of all steps, and of the passes that learn nothing."""
    shape, facts = question.grown, question.facts
    rows = float(question.step_rows * question.steps)
    labels = rows * question.label_share
    is_tree = question.layout == "tree"
    flops = speed.run_flops(
        shape,
        rows=round(rows),
        label_rows=round(labels),
        trainable=question.trainable,
        frozen=rank_of(question.method) is not None,
        mean_keys=min(question.pass_rows, facts.longest / 2 + 64 if is_tree else facts.longest),
        unread=max(0.0, 1 - question.label_share) if is_tree else 0.0,
    )
    flops += sum(_reading(other, rows, labels) for other in question.beside)
    if question.reference:
        share = question.reference_samples / max(1, facts.samples)
        flops += share * _reading(shape, facts.rows_per_epoch, facts.label_rows_per_epoch)
    return flops


def fixed_seconds(question: Question, rates: speed.Rates) -> float:
    """Seconds that all passes take whatever their rows: short operations of every block, kernels
    that are compiled for a number of rows that was not seen before, and the update."""
    passes = question.passes * question.steps
    blocks = question.grown.layers * speed.BLOCK_OPERATIONS * rates.operation_seconds
    compiled = speed.NEW_SHAPES * rates.compile_seconds
    updated = question.trainable * speed.UPDATE_BYTES / rates.bytes
    return float(passes * (blocks + compiled) + question.steps * updated)


def _reading(shape: ModelShape, rows: float, labels: float) -> float:
    """Operations of a pass that learns nothing."""
    return 2.0 * (rows * shape.active_weights + labels * shape.head_weights)


def relative_seconds(question: Question, changed: Mapping[str, Any]) -> float:
    """How many times as long the steps take with other parts of the question; operations alone, as
    it is told for machines that are not here."""
    asked = replace(question, **changed)
    if asked.method is not question.method:
        asked = replace(asked, trainable=trainable_parameters(asked.shape, asked.method))
    whole = flops_of(replace(question, counted=None))
    other = flops_of(replace(asked, counted=None))
    factor = other / max(1.0, whole)
    if asked.base_bits is not None and question.base_bits is None:
        factor *= NARROW
    if asked.dtype != question.dtype and asked.work.item < question.work.item:
        factor /= speed.HALF_GAIN
    factor *= slower(asked) / slower(question)
    few = max(1.0, question.rows_per_pass / max(1, asked.rows_per_pass))
    return factor * (1 + speed.SMALLER_PASSES * (few - 1))
