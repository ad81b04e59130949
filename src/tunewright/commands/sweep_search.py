"""What a sweep tries next, and which trial is stopped early, as Optuna says.

A study is made anew for every question, from the record alone, so that a sweep that was killed goes
on exactly."""

from __future__ import annotations

import json
import math
from typing import Any

from tunewright.commands import sweep_spaces as spaces_
from tunewright.commands.sweep_record import ENDED, Sweep, Trial
from tunewright.commands.sweep_spaces import Space
from tunewright.core.callbacks import Callback, HeldOutMeasured, Running
from tunewright.core.seeds import stream_seed
from tunewright.core.words import say

TRIES = 50
"""Draws for a trial before a sweep says that every combination was tried."""


def propose(sweep: Sweep) -> dict[str, Any] | None:
    """The settings of the next trial, which depend on the finished ones, the seed and the number
    alone; None where every combination was tried."""
    known = [trial.params for trial in sweep.trials]
    whole = spaces_.grid(sweep.spaces)
    if sweep.sampler == "grid" and whole is not None:
        left = [params for params in whole if params not in known]
        return left[0] if left else None
    if whole is not None and all(params in known for params in whole):
        return None
    for attempt in range(TRIES):
        study = _study(sweep, stream_seed(sweep.seed, "sweep", len(known), attempt))
        asked = study.ask(_distributions(sweep))
        params = {s.key: s.rounded(asked.params[s.key]) for s in sweep.spaces}
        params = {s.key: _original(s, params[s.key]) for s in sweep.spaces}
        if params not in known:
            return params
    return next((p for p in whole or [] if p not in known), None)


def _study(sweep: Sweep, seed: int) -> Any:
    """An Optuna study that knows the trials so far."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    startup = min(10, max(3, sweep.trials_wanted // 3))
    seed %= 2**32
    sampler = (
        optuna.samplers.RandomSampler(seed=seed)
        if sweep.sampler == "random"
        else optuna.samplers.TPESampler(seed=seed, n_startup_trials=startup)
    )
    pruner = optuna.pruners.MedianPruner(n_startup_trials=min(4, startup), n_warmup_steps=1)
    study = optuna.create_study(
        sampler=sampler, pruner=pruner, direction="maximize" if sweep.higher else "minimize"
    )
    states = optuna.trial.TrialState
    state = {"done": states.COMPLETE, "pruned": states.PRUNED}
    for trial in sweep.trials:
        if trial.status not in ENDED:
            continue
        params = {s.key: _kept(s, trial.params[s.key]) for s in sweep.spaces}
        known = state.get(trial.status, states.FAIL)
        if known is states.COMPLETE and trial.value is None:
            known = states.FAIL
        study.add_trial(
            optuna.trial.create_trial(
                state=known,
                value=trial.value if known is states.COMPLETE else None,
                params=params,
                distributions=_distributions(sweep),
                intermediate_values={int(k): v for k, v in trial.measured.items()},
            )
        )
    return study


def _distributions(sweep: Sweep) -> dict[str, Any]:
    from optuna import distributions as d

    found: dict[str, Any] = {}
    for space in sweep.spaces:
        if space.choices:
            found[space.key] = d.CategoricalDistribution([_kept(space, c) for c in space.choices])
        elif space.whole:
            ends = int(space.low), int(space.high)
            found[space.key] = d.IntDistribution(*ends, log=space.is_log)
        else:
            found[space.key] = d.FloatDistribution(space.low, space.high, log=space.is_log)
    return found


def _kept(space: Space, value: Any) -> Any:
    """A choice as Optuna takes it: a list or a mapping as its text."""
    plain = value is None or isinstance(value, bool | int | float | str)
    return value if plain or not space.choices else json.dumps(value)


def _original(space: Space, value: Any) -> Any:
    return next((c for c in space.choices if _kept(space, c) == value), value)


class Pruner(Callback):
    """Stops a trial whose held-out loss is worse than the median of earlier ones at that step."""

    def __init__(self, sweep: Sweep, trial: Trial):
        self._sweep, self._trial = sweep, trial
        self._asked = _study(sweep, 0)
        params = {s.key: _kept(s, trial.params[s.key]) for s in sweep.spaces}
        self._asked.enqueue_trial(params)
        self._optuna = self._asked.ask(_distributions(sweep))
        for step, value in trial.measured.items():
            self._optuna.report(value, int(step))

    def measured(self, run: Running, event: HeldOutMeasured) -> None:
        if event.all_rows or not math.isfinite(event.held_out_loss):
            return
        self._trial.measured[str(event.step)] = event.held_out_loss
        last = event.step >= run.total_steps
        if self._sweep.metric or event.step == 0:
            return
        self._optuna.report(event.held_out_loss, event.step)
        if self._sweep.prune and not last and self._optuna.should_prune():
            run.stop(say("sweep.pruned_reason"))
