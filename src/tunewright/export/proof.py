"""Whether an exported model is the run: what both say to the same prompts, and how far apart it is.

Serves every exporter: logits of a model that computes, the differences of two answers, how many
stored weights differ from the base's, and the record that is left as `proof.json`. Logits lie in
files while a model is replaced by the next: for a small model they are larger than its weights.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from tunewright.core.comparing import contains, folded
from tunewright.core.telling import Tell, silent
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.engine.decoding import answers
from tunewright.export.folder import ExportError
from tunewright.export.prompts import Prompts, Question
from tunewright.models.load import stock_attention
from tunewright.sources import headers
from tunewright.sources.remote_code import place_of
from tunewright.text.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

RECORD = "proof.json"
FEW_PROMPTS = 4
ASKED = "2 + 2?"
LARGEST_FOLD_GAP = 1e-3
"""Largest difference of a logit, as a share of the largest one, by which the order of sums may move
a model into which an update was folded, in float32."""
ANSWER_TOKENS = 64
"""Most tokens of an answer that is compared."""


@dataclass(frozen=True)
class InFile:
    """Logits (tokens, vocabulary) in float32, row after row in a file."""

    path: Path
    columns: int

    def read(self) -> Tensor:
        """The whole of it."""
        import numpy as np
        import torch

        rows = np.fromfile(self.path, dtype=np.float32).reshape(-1, self.columns)
        return torch.from_numpy(rows)


@dataclass
class Logits:
    """What a model said to the prompts: for each logits (tokens, vocabulary) in float32, and the
    most likely token at each of all positions."""

    parts: list[Tensor | InFile]
    top: Any
    largest: float
    is_finite: bool
    skips: list[int]
    """For each prompt how many of its first positions are not compared: another has them."""

    @classmethod
    def of(cls, values: Tensor) -> Logits:
        """Of logits (positions, vocabulary) in memory."""
        return cls.gathered([values])

    @classmethod
    def gathered(cls, parts: list[Tensor | InFile], skips: list[int] | None = None) -> Logits:
        """Of the logits of several prompts."""
        import torch

        top, largest, is_finite = [], 0.0, True
        skips = skips or [0] * len(parts)
        for part, skip in zip(parts, skips, strict=True):
            values = part.read() if isinstance(part, InFile) else part
            top.append(values[skip:].argmax(-1))
            largest = max(largest, float(values.abs().max()))
            is_finite = is_finite and bool(values.isfinite().all())
        return cls(parts, torch.cat(top), largest, is_finite, skips)

    def __iter__(self) -> Iterator[Tensor]:
        for values, skip in zip(self.whole(), self.skips, strict=True):
            yield values[skip:]

    def whole(self) -> Iterator[Tensor]:
        """The logits of each prompt, at all of its positions."""
        for part in self.parts:
            yield part.read() if isinstance(part, InFile) else part

    @property
    def values(self) -> Tensor:
        """All of them as one tensor."""
        import torch

        return torch.cat(list(self))


@dataclass
class Replies:
    """The answers to the questions: their texts, and whether each ended at a stop token."""

    texts: list[str]
    stopped: list[bool]
    ran_over: int = 0
    """How many wrote a stop token of the run and went on."""


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
    untouched: Logits | None = None
    """What its base said; None where there is no other base."""
    questions: list[Question] = field(default_factory=list)
    replies: Replies | None = None


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """A hidden folder in `folder` for what is compared, gone afterwards."""
    place = folder / ".asked"
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


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

    def ask(self, model: Any, causal: Any, prompts: Prompts, keep: Path | None) -> Logits:
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


def load_plain(folder: Path, dtype: str, kind: str = "AutoModelForCausalLM") -> Any:
    """The folder as plain Transformers loads it with its class `kind`, in its own dtype, with the
    attention that computes all of it. Nothing of ours touches the model. Raises ExportError where
    it does not fit."""
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
    if model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(stock_attention(model))
    return model.eval()


def logits_of(model: Any, prompts: Prompts, keep: Path | None = None) -> Logits:
    """Logits in float32 at every position of every prompt, one prompt at a time, with the model's
    stock attention. `keep` is a folder that takes them; without one they stay in memory."""
    import torch

    parts: list[Tensor | InFile] = []
    with torch.inference_mode():
        for number, ids in enumerate(prompts.ids):
            given = torch.tensor([ids], device=model.device)
            values = model(input_ids=given, use_cache=False).logits[0].float().cpu()
            if keep is None:
                parts.append(values)
                continue
            keep.mkdir(exist_ok=True)
            path = keep / f"{number}.f32"
            values.numpy().tofile(path)
            parts.append(InFile(path, values.shape[1]))
    return Logits.gathered(parts, prompts.shared)


def gap_of(run: Logits, other: Logits) -> float:
    """Largest difference of a logit, as a share of the run's largest logit."""
    # Row by row: a difference of all rows at once would double the memory.
    largest = max(
        float((a - b).abs().max())
        for one, two in zip(run, other, strict=True)
        for a, b in zip(one, two, strict=True)
    )
    return largest / max(run.largest, 1e-30)


def agreement(run: Logits, other: Logits) -> float:
    """Share of positions with the same most likely token."""
    return float((run.top == other.top).double().mean())


def differences(run: Logits, other: Logits) -> dict[str, float]:
    """How far `other` is from `run`: the largest and the mean difference of a logit as shares of
    the run's largest, the share of positions with the same most likely token, and the mean
    divergence KL(run || other) in nats."""
    largest = total = nats = 0.0
    count = positions = 0
    for one, two in zip(run, other, strict=True):
        width = min(one.shape[1], two.shape[1])  # a file may leave out rows without a token
        for a, b in zip(one[:, :width].split(32), two[:, :width].split(32), strict=True):
            if not len(a):
                continue
            gap = (a - b).abs()
            largest, total = max(largest, float(gap.max())), total + float(gap.double().sum())
            p, q = a.double().log_softmax(-1), b.double().log_softmax(-1)
            nats += float((p.exp() * (p - q)).sum())
            count, positions = count + gap.numel(), positions + len(gap)
    scale = max(run.largest, 1e-30)
    return {
        "largest_logit_difference": largest / scale,
        "mean_logit_difference": total / max(count, 1) / scale,
        "top1_agreement": agreement(run, other),
        "divergence_nats": max(nats / max(positions, 1), 0.0),
    }


def loss_of(said: Logits, prompts: Prompts) -> float | None:
    """Mean loss in nats of the tokens that are learnt; None where the prompts say of none."""
    import torch

    nats = tokens = 0.0
    for values, ids, weights in zip(said.whole(), prompts.ids, prompts.weights, strict=True):
        counts = torch.tensor(weights[1:], dtype=torch.float64)
        if not float(counts.sum()) or values.shape[0] < 2:
            continue
        chances = values[:-1].double().log_softmax(-1)
        told = chances.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
        nats, tokens = nats - float((counts * told).sum()), tokens + float(counts.sum())
    return nats / tokens if tokens and math.isfinite(nats) else None


def losses(asked: Asked, exported: Logits) -> dict[str, Any] | None:
    """Mean loss of the learnt tokens: of the base, the run, and what was exported. None where the
    prompts have none."""
    run = loss_of(asked.run, asked.prompts)
    if run is None:
        return None
    base = None if asked.untouched is None else loss_of(asked.untouched, asked.prompts)
    return {
        "base": base,
        "run": run,
        "exported": loss_of(exported, asked.prompts),
        "held_out_prompts": asked.prompts.held_out,
        "prompts": len(asked.prompts.ids),
    }


def require_same_asking(
    out: Path, folder: Path, renderer: Any, questions: list[Question]
) -> list[str]:
    """Raise ExportError unless the folder that will be `out` is asked as the run was: the same
    text and tokens of every question, and every stop token of the run's. Returns a warning where a
    program that asks with the template as it comes would ask otherwise."""
    from tunewright.engine.naming import renderer_of

    own = renderer_of(load_tokenizer(folder), folder, thinking=renderer.thinking)
    lost = [i for i in renderer.stop_ids if i not in own.stop_ids]
    if lost:
        tokens = ", ".join(str(renderer.tokenizer.convert_ids_to_tokens(i)) for i in lost)
        raise ExportError.of("E-EXPORT-34", str(out), tokens=tokens)
    for one in questions:
        wanted, found = (r.prompt(one.messages) for r in (renderer, own))
        if wanted != found:
            said = [shown(r.decode(ids)) for r, ids in ((renderer, wanted), (own, found))]
            raise ExportError.of("E-EXPORT-33", str(out), run=said[0], exported=said[1])
    wanted, asked = renderer.prompt([Message("user", ASKED)]), _as_it_comes(own.tokenizer)
    if asked is None or asked == wanted:
        return []
    texts = {"run": shown(renderer.decode(wanted)), "exported": shown(own.decode(asked))}
    return [say("export.warning.asked_otherwise", **texts)]


def _as_it_comes(tokenizer: Any) -> list[int] | None:
    """Tokens of a question as a program makes them that knows nothing but the folder; None where
    there is no template, or it needs more."""
    if not tokenizer.chat_template:
        return None
    try:
        return list(
            tokenizer.apply_chat_template(
                [{"role": "user", "content": ASKED}], add_generation_prompt=True, return_dict=False
            )
        )
    except Exception:  # a template is somebody's program; what it refuses, it says to who asks
        return None


def require_folded(out: Path, asked: Asked, model: Any, keep: Path) -> None:
    """Raise ExportError unless `model`, into which the training was folded, says what the run said;
    a few prompts show it."""
    few = Prompts(asked.prompts.ids[:FEW_PROMPTS], asked.prompts.kind)
    run = _first(asked.run)
    folded = logits_of(model, few, keep / "folded")
    gap = gap_of(run, folded)
    if gap <= LARGEST_FOLD_GAP:
        return
    if asked.untouched is not None:
        base = differences(_first(asked.untouched), folded)["divergence_nats"]
        found = differences(run, folded)["divergence_nats"]
        if base < found:
            raise ExportError.of("E-EXPORT-36", str(out), base=f"{base:.2g}", run=f"{found:.2g}")
    figures = {"gap": f"{gap:.1e}", "limit": f"{LARGEST_FOLD_GAP:.0e}"}
    raise ExportError.of("E-EXPORT-07", str(out), **figures)


def _first(said: Logits) -> Logits:
    return Logits.gathered(said.parts[:FEW_PROMPTS], said.skips[:FEW_PROMPTS])


def shown(text: str, most: int = 120) -> str:
    """A text for a message."""
    return repr(text if len(text) <= most else text[: most - 3] + "...")


def replies_of(
    causal: Any, attached: Any, renderer: Any, questions: list[Question]
) -> tuple[Replies, list[list[int]]]:
    """The likeliest answers of a model that computes, and the token ids of the questions."""
    asked = [renderer.prompt(one.messages) for one in questions]
    model = answers.answering(causal, attached, renderer)
    found = answers.answer(model, asked, max_new_tokens=ANSWER_TOKENS)
    model.forget()
    return Replies([one.text for one in found], [one.end == "stop" for one in found]), asked


def score_of(questions: list[Question], run: Replies, other: Replies) -> dict[str, Any]:
    """How the answers compare: how many are the same text, hold what was expected, and stop."""
    known = [i for i, one in enumerate(questions) if one.expected.strip()]
    right = [[contains(r.texts[i], questions[i].expected) for i in known] for r in (run, other)]
    same = [folded(a) == folded(b) for a, b in zip(run.texts, other.texts, strict=True)]
    return {
        "asked": len(questions),
        "same": sum(same),
        "with_expectation": len(known),
        "right_in_run": sum(right[0]),
        "right": sum(right[1]),
        "stopped_in_run": sum(run.stopped),
        "stopped": sum(other.stopped),
    }


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
