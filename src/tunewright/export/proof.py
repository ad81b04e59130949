"""Whether an exported folder is the run: what both are asked, what they answer, and how far apart
that is.

Serves every exporter: prompts from the run's own data, logits of a model that computes, the
differences of two answers, and how many stored weights differ from the base's.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from tunewright.core.config import DataConfig
from tunewright.core.errors import TunewrightError
from tunewright.core.telling import Tell, silent
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.data import inspect
from tunewright.engine import opening
from tunewright.export.folder import ExportError
from tunewright.sources import headers
from tunewright.sources.remote_code import place_of

MAX_PROMPTS, PROMPT_TOKENS = 16, 256
QUESTIONS = (
    "What is the capital of France?",
    "请用一句话介绍你自己。",
    "Write two lines about the sea.",
    "Count from one to ten.",
    "为什么天空是蓝色的？",
)
"""Asked when neither the run's data nor its questions can be read."""


@dataclass
class Prompts:
    """Token ids that both models are asked, and where they came from: `data`, `questions` or
    `built-in`."""

    ids: list[list[int]]
    kind: str

    @property
    def positions(self) -> int:
        """Rows of logits that are compared."""
        return sum(map(len, self.ids))


@dataclass
class Logits:
    """What a model said to the prompts: logits (positions, vocabulary) and the most likely token at
    each position."""

    values: Any
    top: Any
    largest: float
    is_finite: bool

    @classmethod
    def of(cls, values: Any) -> Logits:
        """Of logits (positions, vocabulary) in float32."""
        largest = float(values.abs().max())
        return cls(values, values.argmax(-1), largest, bool(values.isfinite().all()))


@dataclass
class Asked:
    """What a run said before it was exported."""

    prompts: Prompts
    run: Logits
    effect: float
    """How far the run is from its base: the largest difference of a logit, as a share of the
    largest logit."""
    changed: float
    """Share of positions whose most likely token is not the base's."""


@dataclass
class Proof:
    """How the folder `out` is shown to be the run in `trained`."""

    base: Path
    trained: Path
    out: Path
    dtype: str
    tell: Tell
    needs_effect: ClassVar[bool]
    """Whether a run that moves no answer of its base is no result."""

    def ask(self, model: Any, causal: Any, prompts: Prompts) -> Logits:
        """What `model` (the causal model `causal`, or a method on it) says to the prompts."""
        raise NotImplementedError

    def finish(self, folder: Path) -> None:
        """Make of the written model what it is to be."""

    def prove(self, folder: Path, asked: Asked) -> dict[str, Any]:
        """What the verdict says of the written files, which stand in `folder` until they are
        proven. Raises ExportError where they are not the run."""
        raise NotImplementedError

    def changed(self, folder: Path) -> dict[str, int]:
        """How much of the base the files changed. Raises ExportError where that is nothing."""
        found = changed_tensors(self.base, folder, self.dtype)
        if found["tensors_changed"] == 0:
            raise ExportError.of("E-EXPORT-06", str(self.trained), dtype=self.dtype)
        return found

    def require_finite(self, merged: Logits) -> None:
        """Raise ExportError for numbers that are not finite."""
        if not merged.is_finite:
            share = say("export.not_finite")
            raise ExportError.of("E-EXPORT-08", str(self.out), dtype=self.dtype, share=share)


def choose_prompts(
    target: opening.Target, renderer: Any, max_positions: int, words: Sequence[int] = ()
) -> Prompts:
    """What both models are asked: whole training rows of the run, else its questions with their
    answers, else a few sentences. Before them stand the tokens `words` that were added to the
    vocabulary: their rows are looked at whatever else is asked."""
    half = PROMPT_TOKENS // 2
    added = [[*renderer.lead, *words[i : i + half]] for i in range(0, len(words), half)]
    for kind, found in (
        ("data", _rows_of_data(target, renderer)),
        ("questions", _rows_of_questions(target, renderer)),
    ):
        if found:
            return Prompts(_within(added + found, max_positions), kind)
    return Prompts(
        _within(
            added + [renderer.prompt([Message("user", text)]) for text in QUESTIONS], max_positions
        ),
        "built-in",
    )


def _within(rows: list[list[int]], max_positions: int) -> list[list[int]]:
    kept: list[list[int]] = []
    left = max_positions
    for row in rows[:MAX_PROMPTS]:
        cut = row[: min(PROMPT_TOKENS, left)]
        left -= len(cut)
        kept += [cut] if cut else []
    return kept


def _rows_of_data(target: opening.Target, renderer: Any) -> list[list[int]]:
    """The first rows of the run's data as token ids; none where the data is no longer there or no
    longer readable."""
    names = {
        key.removeprefix("data."): value
        for key, value in target.settings.items()
        if key.startswith("data.") and value is not None
    }
    try:
        config = DataConfig.model_validate({**names, "held_out": 0, "limit": MAX_PROMPTS})
        # Of a pair both answers.
        return [
            branch.tokens
            for sample in inspect(config, renderer).train
            for branch in sample.branches
        ]
    except (TunewrightError, ValueError, OSError):
        return []


def _rows_of_questions(target: opening.Target, renderer: Any) -> list[list[int]]:
    """The questions that the run asked before and after, each with the tuned answer."""
    path = (target.run or Path()) / "before_after.jsonl"
    if target.run is None or not path.is_file():
        return []
    found = []
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        for line in path.read_text(encoding="utf-8").splitlines()[:MAX_PROMPTS]:
            row = json.loads(line)
            found.append(
                renderer.render(
                    [
                        Message("user", row["question"]),
                        Message("assistant", row.get("after") or "-"),
                    ]
                ).ids
            )
    return found


def load_plain(folder: Path, dtype: str, kind: str = "AutoModelForCausalLM") -> Any:
    """The folder as plain Transformers loads it with its class `kind`, in its own dtype.
    Nothing of ours touches the model. Raises ExportError where it does not fit."""
    import transformers

    place = place_of(folder)
    with silent():
        loaded: Any = getattr(transformers, kind).from_pretrained(
            str(place.folder),
            dtype="auto",
            local_files_only=True,
            trust_remote_code=place.model,
            output_loading_info=True,
        )
    model, info = loaded
    tied = set(getattr(model, "all_tied_weights_keys", None) or ())
    odd = [
        *(set(info["missing_keys"]) - tied),
        *info["unexpected_keys"],
        *map(str, info["mismatched_keys"]),
    ]
    found = str(model.dtype).removeprefix("torch.")
    if odd or found != dtype:
        raise ExportError.of(
            "E-EXPORT-11", str(folder), cause=", ".join(sorted(odd)[:3]) or f"{found}, {dtype}"
        )
    return model.eval()


def logits_of(model: Any, prompts: Prompts) -> Logits:
    """Logits in float32 at every position of every prompt, one prompt at a time, with the model's
    stock attention."""
    import torch

    parts = []
    with torch.inference_mode():
        for ids in prompts.ids:
            parts.append(
                model(input_ids=torch.tensor([ids], device=model.device), use_cache=False)
                .logits[0]
                .float()
            )
        return Logits.of(torch.cat(parts))


def gap_of(run: Logits, other: Logits) -> float:
    """Largest difference of a logit, as a share of the run's largest logit."""
    # Row by row: a difference of all rows at once would double the memory.
    largest = max(float((a - b).abs().max()) for a, b in zip(run.values, other.values, strict=True))
    return largest / max(run.largest, 1e-30)


def agreement(run: Logits, other: Logits) -> float:
    """Share of positions with the same most likely token."""
    return float((run.top == other.top).double().mean())


def changed_tensors(base: Path, merged: Path, dtype: str) -> dict[str, int]:
    """How many weights of the merged files differ from the base's, rounded to the same dtype;
    read tensor by tensor from the files."""
    import torch
    from safetensors import safe_open

    where = {
        name: path
        for path in headers.weight_files(base)[0]
        for name in headers.read_safetensors_header(path)
    }
    names = {
        name
        for path in headers.weight_files(merged)[0]
        for name in headers.read_safetensors_header(path)
    }
    changed = total = numbers = all_numbers = 0
    with contextlib.ExitStack() as stack:
        opened = {
            path: stack.enter_context(safe_open(path, framework="pt"))
            for path in set(where.values())
        }
        # With blocks put between the old ones every later block has another name: then contents are
        # looked for, not names.
        known = (
            {
                _digest(opened[path].get_tensor(n).to(getattr(torch, dtype)))
                for n, path in where.items()
            }
            if names > set(where)
            else set()
        )
        for path in headers.weight_files(merged)[0]:
            with safe_open(path, framework="pt") as ours:
                for name in ours.keys():  # noqa: SIM118  # not a dictionary
                    total += 1
                    value = ours.get_tensor(name)
                    all_numbers += value.numel()
                    if known and _digest(value) in known:
                        continue
                    if (
                        known or name not in where
                    ):  # a layout of its own on disk: counted as changed, the logits decide
                        changed, numbers = changed + 1, numbers + value.numel()
                        continue
                    before = opened[where[name]].get_tensor(name).to(getattr(torch, dtype))
                    more = value.numel() - before.numel()  # rows may have been added, or cut off
                    if more:
                        shared = min(len(value), len(before))
                        value, before = value[:shared], before[:shared]
                    differing = int((value != before).sum()) + max(more, 0)
                    changed, numbers = changed + bool(differing), numbers + differing
    return {
        "tensors_changed": changed,
        "tensors": total,
        "numbers_changed": numbers,
        "numbers": all_numbers,
    }


def _digest(tensor: Any) -> str:
    """SHA-256 of a tensor's bytes."""
    import torch

    return hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).hexdigest()
