"""The other models that a run names, found and opened: its teacher and its reward models."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from tunewright.core import compat
from tunewright.core.config import EngineConfig
from tunewright.core.telling import Tell
from tunewright.core.types import Teaching
from tunewright.core.words import say
from tunewright.engine.loaded import base_of, from_files, to_score
from tunewright.engine.naming import find, read_config
from tunewright.engine.oracles.reference import describe
from tunewright.engine.oracles.reward_model import (
    RewardModel,
    Steps,
    require_same_words,
    same_weights,
)
from tunewright.engine.oracles.teacher import Teacher, require_same_vocabulary
from tunewright.engine.placement import World
from tunewright.engine.policy import Policy
from tunewright.text.tokenizer import load_tokenizer


def teacher_of(
    teaching: Teaching,
    student: Path,
    student_size: int,
    engine: EngineConfig,
    world: World,
    tell: Tell,
    own_words: dict[str, int] | None = None,
) -> Teacher:
    """The teacher a run names. Its files are found and its vocabulary is compared with that of the
    model in `student`, whose head has `student_size` rows; `own_words` are the student's token ids
    where it has more of them than that model.

    Its weights are read when they are needed. Raises CompatError for another vocabulary and what
    `find` raises.
    """
    found = find(teaching.model, tell)
    size = int(read_config(found).get_text_config().vocab_size)
    require_same_vocabulary(
        teaching.model, found.tokenizer_folder, size, student, student_size, own_words
    )

    def opened() -> Policy:
        loaded = from_files(found.source.folder, found.adapter, world, base_of(found.settings))
        layout, why = loaded.choose_layout(
            engine.model_copy(update={"layout": "auto"}), world.dtype
        )
        tell.line(say("distill.teacher", teacher=teaching.model, layout=layout, why=why))
        return loaded.policy(layout)

    about = functools.partial(describe, found.source.folder, found.adapter, world.dtype)
    return Teacher(teaching, min(size, student_size), opened, about)


def reward_model_of(
    run: Path,
    base: Any,
    base_folder: Path,
    layout: str,
    world: World,
    tell: Tell,
    words: dict[str, int] | None = None,
) -> RewardModel:
    """The reward model of a run folder. `base` is a second tree over the untouched base, or None
    where its weights will change; `words` are the token ids of the model that learns, where it has
    more of them than its base.

    Raises ModelError for a run that gives no scores, or whose words have other token ids than the
    policy's.
    """
    found = find(str(run), tell)
    require_same_words(run, found.tokenizer_folder, base_folder, words)
    shared = (
        found.adapter is not None
        and base is not None
        and same_weights(found.source.folder, base_folder)
    )
    tell.line(say("rounds.reward_shared" if shared else "rounds.reward_own", folder=run))
    policy = to_score(found, layout, world, causal=base if shared else None)
    steps = None
    if compat.judges(found.settings.get("objective.kind")) == "steps":
        tokenizer = load_tokenizer(found.tokenizer_folder)
        steps = Steps(
            str(found.settings.get("objective.whole") or "min"),
            lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=True)),
        )
    return RewardModel(policy, f"reward_{run.name}", world.rows_per_pass, steps)
