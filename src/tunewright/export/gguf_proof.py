"""Whether a GGUF file is the run: read back by the library `gguf`, run by llama.cpp where its wheel
is installed, else by Transformers' loader, and asked what the run was asked.

The file is compared with the run's weights rounded in the same way, which a right file must equal
up to the order of sums, so that even a type that rounds a lot proves that nothing was lost,
exchanged or forgotten; and with the run itself, which says what the rounding cost.
"""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tunewright.core.errors import ModelError, first_line
from tunewright.core.types import Message
from tunewright.core.words import say
from tunewright.export import gguf_types, llamacpp
from tunewright.export.folder import ExportError
from tunewright.export.gguf_families import Family
from tunewright.export.gguf_types import Type
from tunewright.export.proof import (
    ANSWER_TOKENS,
    Asked,
    InFile,
    Logits,
    Replies,
    differences,
    logits_of,
    losses,
    replies_of,
    score_of,
    shown,
)
from tunewright.text.spelling import unmark

TEXTS = (
    "Hello, world! It's 3.14, not 3; we've 2026 apples.",
    "  two  spaces\tand a tab\n\n\nthree lines\r\n",
    "你好，世界！今天是2026年11月30日，气温23.5℃。",
    "def f(x: int) -> str:\n    return f'{x:>8}' # ok\n\tif a != b and c <= 0xFF:\n        pass\n",
    "🚀👩‍👩‍👧‍👦🇨🇳 emoji ✅ naïve café Ωμέγα Привет العربية हिन्दी ไทย 한국어 日本語",
    "I'LL say: 'DON'T' -- \"quote\" ... ??? !!! ~~~ === <b>x</b> {\"a\": [1, 22, 333, 4444]}",
    "SELECT * FROM t WHERE id=12345678 AND name LIKE '%abc%';",
    "https://example.org/a?b=c&d=%20e#f user@example.org C:\\\\Users\\\\x ∑∞≠≤ ½ ² №",
)
"""What every tokenizer is asked to cut, besides the run's own rows."""


@dataclass
class Ran:
    """What a program made of the file."""

    by: dict[str, str]
    """`name` and `version` of the program."""
    logits: Logits
    replies: Replies
    tokens_per_second: dict[str, float]


@dataclass
class Subject:
    """A file and the run that it should be."""

    path: Path
    out: Path
    """The name that it will have."""
    family: Family
    renderer: Any
    asked: Asked
    keep: Path
    adapter: Path | None = None
    """The file of an adapter; `path` then is its base."""

    @property
    def tokenizer(self) -> Any:
        return self.renderer.tokenizer


def runner_of(family: Family, out: Path) -> str:
    """`llamacpp` or `transformers`. Raises ExportError where neither can run the family."""
    if llamacpp.library() is not None:
        return "llamacpp"
    if family.by_transformers:
        return "transformers"
    raise ExportError.of("E-EXPORT-39", str(out), family=family.arch)


def runner_name(which: str) -> str:
    """The program in words."""
    from importlib.metadata import version

    found = llamacpp.release() if which == "llamacpp" else version("transformers")
    return say(f"gguf.runs.{which}", version=found)


def prove(subject: Subject, kind: Type, rounded: Logits, which: str) -> dict[str, Any]:
    """What the record says of the file. Raises ExportError where it is not the run."""
    ran = RUNNERS[which](subject)
    asked, where = subject.asked, str(subject.out)
    if not ran.logits.is_finite:
        share = say("export.not_finite")
        raise _disagrees(subject, which, share, kind)
    against = differences(rounded, ran.logits)
    found = differences(asked.run, ran.logits)
    least = gguf_types.LEAST["rounded" if kind.is_rounded else "exact"]
    base = None
    if asked.untouched is not None:
        base = differences(asked.untouched, ran.logits)
    nearer = base is not None and base["divergence_nats"] <= found["divergence_nats"]
    is_base = nearer and base is not None and base["top1_agreement"] >= least
    if against["top1_agreement"] < least and not is_base:
        raise _disagrees(subject, which, f"{100 * against['top1_agreement']:.1f}", kind)
    if nearer and base is not None:
        nats = {k: f"{v['divergence_nats']:.2g}" for k, v in (("base", base), ("run", found))}
        raise ExportError.of("E-EXPORT-36", where, **nats)
    score = score_of(asked.questions, _known(asked), ran.replies)
    if ran.replies.ran_over:
        raise ExportError.of("E-EXPORT-38", where, count=ran.replies.ran_over)
    limits = {"least_top1_against_rounded_weights": least, "expected_top1": kind.expected}
    rounding = differences(asked.run, rounded)
    return {
        "run_by": ran.by,
        "computed_in": _computed_in(which, kind),
        **found,
        "against_rounded_weights": against,
        "rounding_alone": rounding,
        "against_base": base,
        "bounds": limits,
        "loss": losses(asked, ran.logits),
        "answers": score,
        "positions": asked.prompts.positions,
        "prompts": len(asked.prompts.ids),
        "prompts_from": asked.prompts.kind,
        "held_out_prompts": asked.prompts.held_out,
        "tokens_per_second": ran.tokens_per_second,
        "warnings": _warnings(kind, found, rounding, asked, score),
    }


def _known(asked: Asked) -> Replies:
    assert asked.replies is not None
    return asked.replies


def _computed_in(which: str, kind: Type) -> str:
    if which == "transformers":
        return "float32"
    return "float32, activations rounded to 8 bit" if kind.is_rounded else "float32"


def _disagrees(subject: Subject, which: str, share: str, kind: Type) -> ExportError:
    least = gguf_types.LEAST["rounded" if kind.is_rounded else "exact"]
    figures = {"share": share, "least": f"{100 * least:.0f}"}
    return ExportError.of("E-EXPORT-35", str(subject.out), runner=runner_name(which), **figures)


def _warnings(
    kind: Type,
    found: dict[str, float],
    rounding: dict[str, float],
    asked: Asked,
    score: dict[str, Any],
) -> list[str]:
    said = []
    if found["top1_agreement"] < kind.expected:
        share = f"{100 * (1 - found['top1_agreement']):.0f}"
        said.append(say("gguf.warning.rounding", type=kind.name, share=share))
    if asked.untouched is not None:
        moved = differences(asked.untouched, asked.run)["divergence_nats"]
        if rounding["divergence_nats"] > moved:
            nats = {"rounding": f"{rounding['divergence_nats']:.2g}", "training": f"{moved:.2g}"}
            said.append(say("gguf.warning.swallowed", type=kind.name, **nats))
    if score["stopped"] < score["stopped_in_run"]:
        figures = {"run": score["stopped_in_run"], "exported": score["stopped"]}
        said.append(say("gguf.warning.stops", **figures))
    return said


# ---- how it is asked


def prompt_text(renderer: Any, messages: list[Message]) -> str:
    """The text of a question as the run was asked it."""
    form = renderer.form_of(None)
    turns = renderer.template.prepare(renderer.shaped(messages)[0], None, form)
    return str(unmark(renderer.template.ask(turns, len(turns.messages)), turns.marks))


def dialogues(asked: list[list[Message]]) -> list[list[Message]]:
    """The questions `asked`, and some of our own: one with answers in it among them."""
    first = [Message("user", "Hi 你好"), Message("assistant", "Hello."), Message("user", "2+2?")]
    more = [*first, Message("assistant", "4\n\nfour"), Message("user", "{{ x }}\n<b>?")]
    return [*asked, first[:1], first, more]


def dialogues_of(subject: Subject) -> list[list[Message]]:
    """The dialogues whose texts are compared."""
    return dialogues([one.messages for one in subject.asked.questions])


def require_words(
    subject: Subject, cut: Callable[[list[tuple[str, bool]]], list[list[int]]], runner: str
) -> int:
    """Raise ExportError unless `cut` gives the run's token ids of every text. Returns how many
    texts were compared."""
    prompts = [prompt_text(subject.renderer, one) for one in dialogues_of(subject)]
    texts = [(text, False) for text in TEXTS] + [(text, True) for text in prompts]
    # What somebody typed is compared, too: rows of the data without their control tokens.
    texts += [(one.messages[-1].content, False) for one in subject.asked.questions]
    control = subject.renderer.control
    texts = [(text, said) for text, said in texts if said or not any(c in text for c in control)]
    wanted = [cut_by(subject.tokenizer, text) for text, _ in texts]
    for run, exported in zip(wanted, cut(texts), strict=True):
        if run != exported:
            at = next(
                (i for i, (a, b) in enumerate(zip(run, exported, strict=False)) if a != b),
                min(len(run), len(exported)),
            )
            said = [str(ids[max(0, at - 1) : at + 4]) for ids in (run, exported)]
            piece = subject.renderer.decode(run[max(0, at - 4) : at + 4])
            raise ExportError.of(
                "E-EXPORT-32",
                str(subject.out),
                text=shown(piece),
                run=said[0],
                exported=said[1],
                runner=runner,
            )
    return len(texts)


def cut_by(tokenizer: Any, text: str) -> list[int]:
    """Token ids of a text by a Hugging Face tokenizer, nothing put before or behind it."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def require_rendered(subject: Subject, rendered: list[str], adds_bos: bool) -> None:
    """Raise ExportError unless these are the run's texts of the dialogues, byte for byte. A program
    that puts the first token in front itself takes it out of the text."""
    bos = subject.tokenizer.bos_token if adds_bos else None
    for messages, exported in zip(dialogues_of(subject), rendered, strict=True):
        run = prompt_text(subject.renderer, messages)
        if bos:
            run, exported = run.removeprefix(bos), exported.removeprefix(bos)
        if run != exported:
            said = {"run": shown(run, 400), "exported": shown(exported, 400)}
            raise ExportError.of("E-EXPORT-33", str(subject.out), **said)


def require_stops(subject: Subject, stops: list[bool], excused: list[str]) -> None:
    """Raise ExportError unless the program stops where the run does."""
    tokens = [subject.tokenizer.convert_ids_to_tokens(i) for i in subject.renderer.stop_ids]
    lost = [t for t, there in zip(tokens, stops, strict=True) if not there and t not in excused]
    if lost:
        raise ExportError.of("E-EXPORT-34", str(subject.out), tokens=", ".join(map(str, lost)))


# ---- who runs it


def in_llamacpp(subject: Subject) -> Ran:
    """The file in llama.cpp, in a process of its own with one thread."""
    runner = runner_name("llamacpp")
    asked, renderer = subject.asked, subject.renderer
    asks = [(renderer.prompt(one.messages), ANSWER_TOKENS) for one in asked.questions]
    dialogues = [
        [{"role": m.role, "content": m.content} for m in one] for one in dialogues_of(subject)
    ]
    said: llamacpp.Said | None = None

    def cut(texts: list[tuple[str, bool]]) -> list[list[int]]:
        nonlocal said
        said = llamacpp.run(
            subject.path,
            subject.keep / "file",
            adapter=subject.adapter,
            rows=asked.prompts.ids,
            asks=asks,
            texts=texts,
            stop_ids=list(renderer.stop_ids),
        )
        return said.ids

    try:
        require_words(subject, cut, runner)
        assert said is not None
        require_rendered(subject, llamacpp.render(subject.path, dialogues), said.adds_bos)
    except llamacpp.CannotRun as e:
        where = str(subject.out)
        raise ExportError.of("E-EXPORT-37", where, runner=runner, cause=first_line(e)) from e
    excused = _without_place(subject)
    require_stops(subject, said.stops, excused)
    # A stop token without a place is a stop word of the program that runs the file.
    tokens = subject.tokenizer.convert_ids_to_tokens
    stops = {i for i in renderer.stop_ids if tokens(i) not in excused}
    files = [subject.keep / "file" / f"{i}.f32" for i in range(len(asked.prompts.ids))]
    texts = [renderer.read(ids).strip() for ids, _ in said.answers]
    written = sum(len(ids) for ids, _ in said.answers)
    read = sum(len(ids) for ids, _ in asks)
    return Ran(
        {"name": "llama.cpp", "package": llamacpp.PACKAGE, "version": llamacpp.release()},
        Logits.gathered([InFile(path, said.rows) for path in files], asked.prompts.shared),
        Replies(
            texts,
            [end == "stop" for _, end in said.answers],
            sum(not stops.isdisjoint(ids) for ids, _ in said.answers),
        ),
        {
            "prompts": _rate(asked.prompts.positions, said.seconds["reading"]),
            "answers_with_their_prompts": _rate(written + read, said.seconds["writing"]),
        },
    )


def _without_place(subject: Subject) -> list[str]:
    """Stop tokens that are known to have no place in the file."""
    from tunewright.export.gguf_words import words_of

    rows = len(subject.tokenizer) + 1
    with_all = max(rows, *(i + 1 for i in subject.renderer.stop_ids))
    return words_of(subject.tokenizer, subject.renderer, with_all, str(subject.out)).lost_stops


def in_transformers(subject: Subject) -> Ran:
    """The file in Transformers, unpacked by its own loader."""
    import time
    from importlib.metadata import version

    from tunewright.engine.naming import renderer_of
    from tunewright.sources import gguf

    release, asked = version("transformers"), subject.asked
    where = str(subject.out)
    folder = subject.keep / "unpacked"
    try:
        gguf.convert(subject.path, folder)
        from tunewright.models import load
        from tunewright.text.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(folder)
        model: Any = load.load_model(folder, dtype="float32")
    except ModelError as e:
        runner = runner_name("transformers")
        raise ExportError.of("E-EXPORT-37", where, runner=runner, cause=first_line(e)) from e

    def cut(texts: list[tuple[str, bool]]) -> list[list[int]]:
        return [cut_by(tokenizer, text) for text, _ in texts]

    require_words(subject, cut, runner_name("transformers"))
    own = renderer_of(tokenizer, folder, thinking=subject.renderer.thinking)
    require_rendered(subject, [prompt_text(own, one) for one in dialogues_of(subject)], False)
    stops = [i in own.stop_ids for i in subject.renderer.stop_ids]
    require_stops(subject, stops, [*_without_place(subject), *_by_text(subject)])
    started = time.perf_counter()
    logits = logits_of(model, asked.prompts, subject.keep / "file")
    seconds = time.perf_counter() - started
    replies, _ = replies_of(model, None, own, asked.questions)
    del model
    gc.collect()
    by = {"name": "transformers", "version": release}
    return Ran(by, logits, replies, {"prompts": _rate(asked.prompts.positions, seconds)})


def _by_text(subject: Subject) -> list[str]:
    """Stop tokens that llama.cpp knows by their text; the loader reads places only."""
    from tunewright.export.gguf_words import KNOWN_STOPS

    tokens = [subject.tokenizer.convert_ids_to_tokens(i) for i in subject.renderer.stop_ids]
    last = str(subject.tokenizer.convert_ids_to_tokens(subject.renderer.stop_id))
    return [t for t in tokens if t in KNOWN_STOPS and t != last]


def _rate(count: int, seconds: float) -> float:
    return round(count / seconds, 1) if seconds > 0 and math.isfinite(seconds) else 0.0


RUNNERS: dict[str, Callable[[Subject], Ran]] = {
    "llamacpp": in_llamacpp,
    "transformers": in_transformers,
}
