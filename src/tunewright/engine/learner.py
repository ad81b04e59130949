"""What learns in a run: the method and the heads on the base, and what takes the steps with it,
recomputed and offloaded as the run has room for."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from tunewright import rewards
from tunewright.core.config import EngineConfig, RunConfig
from tunewright.core.errors import CompatError
from tunewright.core.registry import methods
from tunewright.core.runfile import kind_of
from tunewright.core.seeds import stream_seed
from tunewright.core.telling import Tell
from tunewright.core.types import Attached, Objective, Sample
from tunewright.core.words import say
from tunewright.engine import offload, ranks, recompute, sharding
from tunewright.engine.loaded import Loaded, kept_key, put_fused_forms, put_new, put_saved, read_on
from tunewright.engine.naming import tokenizer_folder
from tunewright.engine.optim import optimizer_for
from tunewright.engine.oracles.named import reward_model_of, teacher_of
from tunewright.engine.oracles.reward_model import sharing_weights
from tunewright.engine.placement import World
from tunewright.engine.policy import Policy
from tunewright.engine.rollouts.on_policy import OnPolicyStepper
from tunewright.engine.rollouts.rounds import RoundStepper
from tunewright.engine.step import Stepper
from tunewright.models import anatomy, load, vocabulary
from tunewright.models.quantised import is_quantised
from tunewright.models.scalar_heads import has_score, put_heads
from tunewright.text.tokenizer import load_tokenizer

LOOKED_AT = 128
"""Samples that a method may see before the first step."""


def learner_of(
    config: RunConfig,
    folder: Path,
    base_path: str,
    world: World,
    objective: Objective,
    samples: Sequence[Sample],
    tell: Tell,
    causal: Any = None,
) -> tuple[Loaded, Attached, Any, dict[str, list[str]]]:
    """The base with the run's method and heads on it, a second tree over the same untouched weights
    where reward models may stand on it, and the modules of the base by role."""
    notes: list[str] = []
    given = causal is not None
    if not given:
        causal = load.load_model(
            folder, dtype=world.torch_dtype(), device=read_on(world), notes=notes, base=config.base
        )
    card = anatomy.of(causal)
    for note in [*notes, *card.notes]:
        tell.line(note)
    known = int(causal.get_input_embeddings().weight.shape[0])
    # Before anything is put on the base: what a reward model of the same base will go on.
    shares = objective.rollouts is not None and not is_quantised(causal)
    spare = sharing_weights(causal) if shares and world.parallel != "fsdp" else None
    put_fused_forms(causal)
    torch.manual_seed(stream_seed(config.engine.seed, "init"))
    if config.adapter:
        attached = put_saved(
            causal,
            Path(config.adapter),
            base_path=base_path,
            trainable=True,
            dropout=getattr(config.method, "dropout", None),
        )
        method = methods.get(kind_of(config.method))
        if method is not None and "continued" in method.facts:
            method.facts["continued"](attached, config.method)
        tell.line(say("train.from_adapter", folder=config.adapter))
    else:
        attached = put_new(config.method, causal, card, base_path)
    for note in attached.notes:
        tell.line(note)
    if attached.look is not None:
        attached.look(_some_rows(samples))
    _tell_head(config, has_score(causal), "score" in objective.heads, tell)
    put_heads(causal, attached, objective.heads)
    loaded = Loaded(causal, attached, known)
    if attached.look is None and not given:  # else the rows decide how it starts
        start = None if config.adapter is None else Path(config.adapter)
        loaded.kept_as = functools.partial(
            kept_key,
            folder,
            start,
            world,
            config.base,
            method=config.method.model_dump(mode="json"),
            heads=list(objective.heads),
            seed=config.engine.seed,
        )
    return loaded, attached, spare if attached.needs.frozen_base else None, card.roles


def stepper_of(
    config: RunConfig,
    objective: Objective,
    loaded: Loaded,
    attached: Attached,
    layout: str,
    spare: Any,
    folder: Path,
    world: World,
    tell: Tell,
    roles: dict[str, list[str]],
) -> Stepper:
    """What takes the steps, with the models that its objective asks besides."""
    engine, words = config.engine, _words_of_its_own(config, folder)
    rollouts, teacher = objective.rollouts, None
    if objective.teacher:
        size = loaded.causal.config.get_text_config().vocab_size
        teacher = teacher_of(objective.teacher, folder, size, engine, world, tell, words)
    policy = loaded.policy(
        layout,
        heads=objective.heads,
        spread=objective.spread,
        asks=objective.asks,
        teacher=teacher,
        temperature=rollouts.temperature if rollouts else 1.0,
    )
    _among_ranks(policy, attached, engine, world)
    parts: dict[str, Any] = {
        "policy": policy,
        "attached": attached,
        "objective": objective,
        "optimizer": optimizer_for(engine, attached, loaded.causal, roles),
        "rows_per_pass": world.rows_per_pass,
        "clip": engine.clip,
        "seed": engine.seed,
        "loss_scale": 4096.0 if world.dtype == "float16" else 1.0,
        "neftune": engine.neftune,
    }
    if rollouts:
        wanted = rewards.read(rollouts.rewards, on_bad=rollouts.on_bad)
        judges = [
            (weight, reward_model_of(run, spare, folder, layout, world, tell, words))
            for weight, run in wanted.models
        ]
        return RoundStepper(**parts, rollouts=rollouts, rewards=wanted, reward_models=judges)
    if objective.own_answers:
        return OnPolicyStepper(**parts, own=objective.own_answers)
    return Stepper(**parts)


def make_room(stepper: Stepper, world: World) -> None:
    """What is computed again and what lies elsewhere, as it was decided; `auto` is nothing where
    nobody estimated."""
    policy = stepper.policy
    policy.keep_bytes = world.keep_bytes
    if world.parallel == "fsdp" and world.offload not in ("auto", "none"):
        raise CompatError.of(
            "E-DIST-08",
            "engine.offload",
            what=f"`engine.offload: {world.offload}`",
            other="`engine.parallel: fsdp`",
            instead="engine.offload_shares=true, engine.parallel=ddp",
        )
    recompute.install(policy, world.recompute)
    if world.offload in ("activations", "all"):
        offload.keep_activations_away(policy, offload.store_for(policy.device))
    if world.offload in ("optimizer", "all"):
        store = offload.store_for(policy.device)
        stepper.optimizer = offload.AwayOptimizer(stepper.optimizer, store)


def _among_ranks(policy: Policy, attached: Attached, engine: EngineConfig, world: World) -> None:
    """Let all processes of the run start from the weights of the first, and put them in shares
    where the run asks for it; before an optimiser holds them."""
    team = ranks.current()
    if not team.is_many:
        return
    wanted = set(attached.parameters)
    trained = [p for name, p in attached.model.named_parameters() if name in wanted]
    if len(set(team.gather(sum(p.numel() for p in trained)))) > 1:
        raise AssertionError("ranks train other weights")
    team.same_as_first(trained)
    if world.parallel == "fsdp":
        sharding.shard(policy, world.device, hybrid=engine.hybrid, offload=engine.offload_shares)


def _tell_head(config: RunConfig, there: bool, wanted: bool, tell: Tell) -> None:
    """What becomes of the score head that the start brought with it, or that it lacks."""
    if there:
        tell.line(
            say(
                "train.score_kept" if wanted else "train.score_left",
                folder=config.adapter or config.model,
            )
        )
    elif wanted and config.adapter:
        tell.line(say("train.score_new", folder=config.adapter))


def _words_of_its_own(config: RunConfig, folder: Path) -> dict[str, int] | None:
    """Token -> id of the model that learns, where it may know more of them than its base in
    `folder`."""
    added, own = (
        vocabulary.tokens_of(config.method),
        tokenizer_folder(Path(config.adapter) if config.adapter else None, folder),
    )
    if own == folder and not added:
        return None
    tokenizer = load_tokenizer(own)
    vocabulary.add_tokens(tokenizer, added)
    return dict(tokenizer.get_vocab())


def _some_rows(samples: Sequence[Sample]) -> list[list[int]]:
    """Token rows of samples from everywhere in the data."""
    step = max(1, len(samples) // LOOKED_AT)
    return [branch.tokens for sample in samples[::step][:LOOKED_AT] for branch in sample.branches]
